"""MAE: reconstruct the pixels of most of an image from the few patches that the encoder sees.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (https://arxiv.org/abs/2111.06377).
Shapes: N images, L patches of p x p pixels, K of them visible, D channels of the encoder.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.modeling.backbone import BACKBONE_REGISTRY
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import LOSS_REGISTRY, build_loss
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread, ssl_parts
from detlib.modeling.self_supervised.masking import (
    check_size,
    count_visible,
    gather_tokens,
    patchify,
    random_masking,
    unpatchify,
)
from detlib.modeling.self_supervised.vision_transformer import (
    NORM_EPS,
    TransformerBlock,
    VisionTransformer,
    init_xavier,
    sin_cos_positions,
)
from detlib.utils.errors import ConfigError

__all__ = ["MAE", "MAEPretrainDecoder", "MAEPretrainHead", "MAEReconstructionLoss", "MAEViT"]


@META_ARCH_REGISTRY.register()
class MAE(SelfSupModel):
    """An encoder of visible patches, a small decoder of all of them, and the error on the hidden ones.

    Masks are drawn here, anew for each batch.
    """

    needs = ("NECK", "HEAD")

    @configurable
    def __init__(self, *, mask_ratio: float = 0.75, **parts: Any) -> None:
        """
        Args:
            mask_ratio: share of the patches that are hidden.
            parts: of :class:`SelfSupModel`: a MAEViT, a MAEPretrainDecoder and a MAEPretrainHead.
        """
        super().__init__(**parts)
        if not isinstance(self.backbone, MAEViT):
            raise ConfigError(f"MODEL.BACKBONE of MAE must be a MAEViT; it is a {type(self.backbone).__name__}")
        if not 0 <= mask_ratio < 1 or count_visible(self.backbone.num_patches, mask_ratio) == 0:
            raise ConfigError(
                f"MODEL.SSL.MASK_RATIO is {mask_ratio}; it must be in [0, 1) and leave some of the "
                f"{self.backbone.num_patches} patches visible"
            )
        self.mask_ratio = mask_ratio

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**ssl_parts(cfg, cls.needs), "mask_ratio": cfg.MODEL.SSL.MASK_RATIO}

    def tensor(self, views: list[Tensor], samples: list[dict[str, Any]]) -> Tensor:
        """The pixels that the decoder predicts for each patch: (N, L, p * p * 3), in the order (row, column, channel).

        The features of whole images are had from :meth:`extract_feat`.
        """
        return self.reconstruct(views[0])[0]

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: the squared error on hidden patches."""
        if self.mask_ratio == 0:
            raise ConfigError("MODEL.SSL.MASK_RATIO is 0, which hides no patch, so that there is nothing to learn")
        latent, mask, ids_restore = self.backbone.encode_visible(views[0], self.mask_ratio)
        log_spread(latent[:, 1:].mean(dim=1))
        return {"loss": self.head(self.neck(latent, ids_restore), views[0], mask)}

    @torch.no_grad()
    def predict(self, views: list[Tensor], samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each image a ``reconstruction`` (3, H, W) of all its patches, and the ``mask`` (H, W) of hidden pixels.

        Where the head normalises patches, the pixels do not say how bright and how rich in contrast a patch was; else
        they are in the range of the input.
        """
        prediction, mask = self.reconstruct(views[0])
        size, p = views[0].shape[-2:], self.backbone.patch_size
        pixels = unpatchify(prediction, p, size)  # (N, 3, H, W)
        if not self.head.norm_pix:
            pixels = pixels * self.pixel_std + self.pixel_mean
        masks = unpatchify(mask[:, :, None].expand(-1, -1, p * p), p, size)[:, 0]  # (N, H, W)
        return [{"reconstruction": image, "mask": mask} for image, mask in zip(pixels, masks)]

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the decoder predicts, (N, L, p * p * 3), and which patches it did not see, (N, L).

        Args:
            images: normalised, (N, 3, H, W).
            noise: (N, L), of which the highest hide their patches; by default drawn.
        """
        latent, mask, ids_restore = self.backbone.encode_visible(images, self.mask_ratio, noise)
        return self.neck(latent, ids_restore), mask


@BACKBONE_REGISTRY.register()
class MAEViT(VisionTransformer):
    """The encoder, a ViT; as a backbone it sees all patches."""

    def __init__(self, *, column_first: bool = True, **options: Any) -> None:
        """
        Args:
            column_first: layout of the positions, by default that of the published weights.
            options: of :class:`VisionTransformer`.
        """
        super().__init__(column_first=column_first, **options)

    def encode_visible(
        self, images: Tensor, mask_ratio: float, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hide patches at random and encode the others.

        Args:
            images: (N, 3, H, W), of the size that the backbone is made for.
            mask_ratio: share of the patches to hide.
            noise: (N, L), by default uniform in [0, 1).

        Returns:
            The class token and visible patches, (N, 1 + K, D); the mask, (N, L); and the places, (N, L), that
            restore the order of the patches, see :func:`random_masking`.
        """
        check_size(images, self)
        patches = self.embed(images)  # (N, L, D)
        if noise is None:
            noise = torch.rand(patches.shape[:2], device=patches.device)
        ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
        return self.encode(gather_tokens(patches, ids_keep)), mask, ids_restore


@NECK_REGISTRY.register()
class MAEPretrainDecoder(nn.Module):
    """From visible patches to the pixels of all: mask tokens, blocks, and a linear layer."""

    def __init__(
        self,
        in_channels: int,
        patch_size: int = 16,
        grid_size: int = 14,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        """
        Args:
            in_channels: D.
            grid_size: patches of a row or column, for the positions.
            embed_dim: channels of the blocks; num_heads and mlp_ratio are theirs, too.
        """
        super().__init__()
        self.out_channels = patch_size**2 * 3
        self.decoder_embed = nn.Linear(in_channels, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("decoder_pos_embed", sin_cos_positions(embed_dim, grid_size, column_first=True)[None])
        self.decoder_blocks = nn.ModuleList(TransformerBlock(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.decoder_pred = nn.Linear(embed_dim, self.out_channels)
        self.apply(init_xavier)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """
        Args:
            latent: (N, 1 + K, D).
            ids_restore: (N, L).

        Returns:
            (N, L, p * p * 3).
        """
        x = self.decoder_embed(latent)
        num_hidden = ids_restore.shape[1] - (x.shape[1] - 1)
        shuffled = torch.cat([x[:, 1:], self.mask_token.expand(len(x), num_hidden, -1).to(x.dtype)], dim=1)
        x = torch.cat([x[:, :1], gather_tokens(shuffled, ids_restore)], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


@HEAD_REGISTRY.register()
class MAEPretrainHead(nn.Module):
    """Compare predicted pixels with those of the image."""

    def __init__(self, patch_size: int = 16, norm_pix: bool = True, loss: Any = None) -> None:
        """
        Args:
            norm_pix: normalise the pixels of each patch, which teaches better features (sec. 4.1).
            loss: of predictions and targets (N, L, p * p * 3) and a mask (N, L); by default MAEReconstructionLoss.
        """
        super().__init__()
        self.patch_size = patch_size
        self.norm_pix = norm_pix
        self.loss_module = build_loss(loss or {"NAME": "MAEReconstructionLoss"})

    def forward(self, prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """The loss.

        Args:
            prediction: (N, L, p * p * 3).
            images: (N, 3, H, W), normalised.
            mask: (N, L).
        """
        return self.loss_module(prediction, self.target(images), mask)

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """What is to be predicted, (N, L, p * p * 3)."""
        patches = patchify(images, self.patch_size)
        if not self.norm_pix:
            return patches
        mean, std = _mean_and_std(patches)
        return (patches - mean) / std

    @torch.no_grad()
    def pixels(self, prediction: Tensor, images: Tensor) -> Tensor:
        """Undo :meth:`target`, for pictures: (N, L, p * p * 3), normalised as the images.

        Where patches are normalised, their mean and contrast are those of the images, as no prediction tells them.

        Args:
            prediction: (N, L, p * p * 3).
            images: (N, 3, H, W), normalised.
        """
        if not self.norm_pix:
            return prediction
        mean, std = _mean_and_std(patchify(images, self.patch_size))
        return prediction * std + mean


def _mean_and_std(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Of the values of each patch, (N, L, 1)."""
    var, mean = torch.var_mean(patches, dim=2, keepdim=True)  # unbiased, as in the authors' code
    return mean, (var + 1e-6).sqrt()


@LOSS_REGISTRY.register()
class MAEReconstructionLoss(nn.Module):
    """The squared error, averaged over the values of a patch, then over the hidden patches of all images."""

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            prediction: (N, L, p * p * 3).
            target: likewise.
            mask: (N, L).
        """
        error = (prediction - target).square().mean(dim=2)
        mask = mask.to(error.dtype)
        return (error * mask).sum() / mask.sum()
