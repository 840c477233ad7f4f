"""SimMIM: replace large squares of an image by one learned token and predict their pixels with a single layer.

Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling" (https://arxiv.org/abs/2111.09886).
Shapes: N images of H x W pixels, h x w patches, C channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import configurable
from detlib.modeling.backbone import BACKBONE_REGISTRY, SwinTransformer
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import LOSS_REGISTRY, build_loss
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread
from detlib.modeling.self_supervised.masking import check_size, masks_of
from detlib.utils.errors import ConfigError

__all__ = ["SimMIM", "SimMIMHead", "SimMIMNeck", "SimMIMReconstructionLoss", "SimMIMSwinTransformer"]


@META_ARCH_REGISTRY.register()
class SimMIM(SelfSupModel):
    """A Swin Transformer on masked images, a layer that predicts pixels, and the error on the hidden ones.

    Besides ``views`` samples have a ``mask`` of the patches that are hidden: (H / 4, W / 4) for patches of 4 pixels.
    """

    needs = ("NECK", "HEAD")

    @configurable
    def __init__(self, **parts: Any) -> None:
        """
        Args:
            parts: of :class:`SelfSupModel`: a SimMIMSwinTransformer, a SimMIMNeck and a SimMIMHead.
        """
        super().__init__(**parts)
        if not isinstance(self.backbone, SimMIMSwinTransformer):
            raise ConfigError(
                f"MODEL.BACKBONE of SimMIM must be a SimMIMSwinTransformer; it is a {type(self.backbone).__name__}"
            )

    def tensor(self, views: list[Tensor], samples: list[dict[str, Any]]) -> Tensor:
        """The image that is predicted, normalised, (N, 3, H, W); where no sample has a mask, nothing is hidden."""
        if any("mask" in sample for sample in samples):
            return self.neck(self._encode(views[0], self._masks(views[0], samples)))
        check_size(views[0], self.backbone)
        return self.neck(self.feature_map(views[0]))

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: the absolute error on hidden pixels."""
        mask = self._masks(views[0], samples)
        features = self._encode(views[0], mask)
        log_spread(features.mean(dim=(2, 3)))
        return {"loss": self.head(self.neck(features), views[0], mask)}

    @torch.no_grad()
    def predict(self, views: list[Tensor], samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each image a ``reconstruction`` (3, H, W), in the range of the input, and the ``mask`` (H, W)."""
        mask = self._masks(views[0], samples)
        images = self.neck(self._encode(views[0], mask)) * self.pixel_std + self.pixel_mean
        masks = repeat_pixels(mask, self.backbone.patch_size)
        return [{"reconstruction": image, "mask": mask} for image, mask in zip(images, masks)]

    def _encode(self, images: Tensor, mask: Tensor) -> Tensor:
        return self.backbone.encode_masked(images, mask)[self.in_feature]

    def _masks(self, images: Tensor, samples: list[dict[str, Any]]) -> Tensor:
        """(N, h, w), on the device of the model."""
        check_size(images, self.backbone)
        grid = (self.backbone.grid_size, self.backbone.grid_size)
        return masks_of(samples, grid).to(images.device, non_blocking=True)


@BACKBONE_REGISTRY.register()
class SimMIMSwinTransformer(SwinTransformer):
    """A Swin Transformer in which one learned token can stand in place of patches."""

    def __init__(
        self,
        img_size: int = 192,
        in_channels: int = 3,
        *,
        patch_size: int = 4,
        depths: Sequence[int] = (2, 2, 6, 2),
        window_size: int = 6,
        drop_path_rate: float = 0.0,
        out_indices: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            img_size: side of the images in pre-training.
            window_size: side of windows; a stage whose map is no larger has one window, which is not shifted.
            out_indices: stages to return; by default the last.
            options: of :class:`~detlib.modeling.SwinTransformer`.
        """
        last_stride = patch_size * 2 ** (len(depths) - 1)
        if img_size % last_stride:
            raise ConfigError(f"MODEL.BACKBONE.IMG_SIZE {img_size} is no multiple of {last_stride}, the last stride")
        map_sizes = [img_size // patch_size // 2**stage for stage in range(len(depths))]
        super().__init__(
            pretrain_img_size=img_size,
            patch_size=patch_size,
            in_chans=in_channels,
            depths=depths,
            window_size=[min(window_size, map_size) for map_size in map_sizes],
            drop_path_rate=drop_path_rate,
            out_indices=out_indices or (len(depths) - 1,),
            **options,
        )
        self.patch_size = patch_size
        self.grid_size = map_sizes[0]
        for layer, map_size in zip(self.layers, map_sizes):
            if map_size <= window_size:
                _leave_windows_in_place(layer)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def encode_masked(self, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The feature maps of images whose hidden patches are replaced.

        Args:
            images: (N, in_channels, H, W).
            mask: (N, h, w), true where a patch is hidden.
        """
        patches = self.patch_embed(images)  # (N, C, h, w)
        token = self.mask_token.view(1, -1, 1, 1).to(patches.dtype)
        return self.encode(torch.where(mask[:, None], token, patches))


def _leave_windows_in_place(layer: nn.Module) -> None:
    layer.shift_size = 0
    for block in layer.blocks:
        block.shift_size = 0


@NECK_REGISTRY.register()
class SimMIMNeck(nn.Module):
    """The pixels of each cell of the last map, by one linear layer (sec. 3.3)."""

    def __init__(self, in_channels: int, stride: int = 32) -> None:
        """
        Args:
            stride: pixels of a cell's side.
        """
        super().__init__()
        self.out_channels = 3
        self.decoder = nn.Sequential(nn.Conv2d(in_channels, 3 * stride**2, 1), nn.PixelShuffle(stride))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H / stride, W / stride) to (N, 3, H, W)."""
        return self.decoder(x)


@HEAD_REGISTRY.register()
class SimMIMHead(nn.Module):
    """Compare a predicted image with what was there."""

    def __init__(self, patch_size: int = 4, loss: Any = None) -> None:
        """
        Args:
            patch_size: side of the squares that the mask is of.
            loss: of two images and a mask (N, 1, H, W); by default SimMIMReconstructionLoss.
        """
        super().__init__()
        self.patch_size = patch_size
        self.loss_module = build_loss(loss or {"NAME": "SimMIMReconstructionLoss"})

    def forward(self, prediction: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        """The loss.

        Args:
            prediction: (N, 3, H, W).
            images: likewise, normalised.
            mask: (N, h, w).
        """
        return self.loss_module(prediction, images, repeat_pixels(mask, self.patch_size)[:, None])


@LOSS_REGISTRY.register()
class SimMIMReconstructionLoss(nn.Module):
    """The absolute error, averaged over hidden pixels and channels (eq. 1)."""

    def forward(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            prediction: (N, C, H, W).
            target: likewise.
            mask: (N, 1, H, W).
        """
        error = (prediction - target).abs()
        mask = mask.to(error.dtype)
        return (error * mask).sum() / (mask.sum() + 1e-5) / target.shape[1]


def repeat_pixels(mask: Tensor, factor: int) -> Tensor:
    """From (N, h, w) to (N, h * factor, w * factor)."""
    return mask.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
