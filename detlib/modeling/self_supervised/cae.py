"""CAE: predict the hidden part of an image in the space of the encoder, and from there its visual words.

Chen et al., "Context Autoencoder for Self-Supervised Representation Learning" (https://arxiv.org/abs/2202.03026).
Shapes: N images, L patches, K of them visible and M hidden, D channels, V words.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.config import CfgNode, build_component, configurable
from detlib.modeling.backbone import BACKBONE_REGISTRY
from detlib.modeling.backbone.utils import Mlp
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import LOSS_REGISTRY, build_loss
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread, ssl_parts
from detlib.modeling.self_supervised.masking import check_size, gather_tokens, masks_of, split_by_mask
from detlib.modeling.self_supervised.momentum import MomentumEncoder, build_momentum_encoder
from detlib.modeling.self_supervised.target_generators import TARGET_GENERATOR_REGISTRY
from detlib.modeling.self_supervised.vision_transformer import (
    NORM_EPS,
    TransformerBlock,
    VisionTransformer,
    init_xavier,
)
from detlib.utils.errors import ConfigError, DatasetError

__all__ = ["CAE", "CAEHead", "CAELoss", "CAENeck", "CAEViT"]


@META_ARCH_REGISTRY.register()
class CAE(SelfSupModel):
    """An encoder of visible patches, a regressor of what it would make of hidden ones, and a decoder to their words.

    Besides ``views`` samples have a ``mask`` of the patches that are hidden, as many in each image, and a
    ``target_image`` (3, 8 h, 8 w), for h x w patches, with the same crop of the image in the range of ``INPUT.FORMAT``.
    """

    needs = ("NECK", "HEAD", "TARGET_GENERATOR")

    @configurable
    def __init__(self, *, teacher: MomentumEncoder, target_generator: nn.Module, **parts: Any) -> None:
        """
        Args:
            teacher: of the backbone; with a momentum of 0 it is the encoder as this step finds it.
            target_generator: gives the words (N, h, w) of images, as a DALLEEncoder.
            parts: of :class:`SelfSupModel`: a CAEViT, a CAENeck and a CAEHead.
        """
        super().__init__(**parts)
        if not isinstance(self.backbone, CAEViT):
            raise ConfigError(f"MODEL.BACKBONE of CAE must be a CAEViT; it is a {type(self.backbone).__name__}")
        vocab_size = getattr(self.neck, "vocab_size", None)
        if vocab_size != target_generator.vocab_size:
            raise ConfigError(
                f"MODEL.SSL.NECK.VOCAB_SIZE is {vocab_size}, but MODEL.SSL.TARGET_GENERATOR has "
                f"{target_generator.vocab_size} words"
            )
        self.teacher = teacher
        self.target_generator = target_generator.requires_grad_(False)
        self.target_generator.frozen_on_purpose = True  # It has a file of its own.

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = ssl_parts(cfg, cls.needs)
        return {
            **parts,
            "teacher": build_momentum_encoder(cfg, parts["backbone"], None),
            "target_generator": build_component(TARGET_GENERATOR_REGISTRY, cfg.MODEL.SSL.TARGET_GENERATOR),
        }

    def tensor(self, views: list[Tensor], samples: list[dict[str, Any]]) -> Tensor:
        """The class token and all patches of the whole image, (N, 1 + L, D)."""
        return self.backbone.encode(self.backbone.embed(views[0]))

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss_main``, of the words of hidden patches, and ``loss_align``, of their latent vectors."""
        ids_visible, ids_hidden = self._split(views[0], samples)
        words = self._words(samples).flatten(1).gather(1, ids_hidden)  # (N, M)
        self.teacher.update(self.backbone, None)
        with torch.no_grad():
            targets = self.teacher.backbone.encode_patches(views[0], ids_hidden)[:, 1:]  # (N, M, D)
        latent = self.backbone.encode_patches(views[0], ids_visible)[:, 1:]  # (N, K, D)
        log_spread(latent.mean(dim=1))
        logits, regressed = self._decode(latent, ids_visible, ids_hidden)
        return self.head(logits, words, regressed, targets)

    @torch.no_grad()
    def predict(self, views: list[Tensor], samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """For each image its ``words`` (h, w), those of hidden patches predicted, and the ``mask`` (h, w)."""
        ids_visible, ids_hidden = self._split(views[0], samples)
        words = self._words(samples)
        latent = self.backbone.encode_patches(views[0], ids_visible)[:, 1:]
        logits, _ = self._decode(latent, ids_visible, ids_hidden)
        filled = words.flatten(1).scatter(1, ids_hidden, logits.argmax(dim=2)).view_as(words)
        mask = torch.zeros_like(words).flatten(1).scatter(1, ids_hidden, 1).view_as(words).bool()
        return [{"words": image, "mask": hidden} for image, hidden in zip(filled, mask)]

    def _decode(self, latent: Tensor, ids_visible: Tensor, ids_hidden: Tensor) -> tuple[Tensor, Tensor]:
        positions = self.backbone.pos_embed[:, 1:]
        return self.neck(latent, gather_tokens(positions, ids_visible), gather_tokens(positions, ids_hidden))

    def _split(self, images: Tensor, samples: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """The visible patches (N, K) and the hidden ones (N, M), on the device of the model."""
        check_size(images, self.backbone)
        masks = masks_of(samples, (self.backbone.grid_size, self.backbone.grid_size), same_count=True)
        visible, hidden = split_by_mask(masks.flatten(1))
        return visible.to(images.device, non_blocking=True), hidden.to(images.device, non_blocking=True)

    def _words(self, samples: list[dict[str, Any]]) -> Tensor:
        """The words (N, h, w) of the target images."""
        side = self.backbone.grid_size * self.target_generator.stride
        for sample in samples:
            shape = tuple(sample["target_image"].shape) if "target_image" in sample else None
            if shape != (3, side, side):
                came = f"a target_image of {shape}" if shape else f"no 'target_image', but {', '.join(sorted(sample))}"
                raise DatasetError(
                    f"{sample.get('file_name', 'a sample')!r} has {came}; let INPUT.VIEWS give one of (3, {side}, "
                    f"{side}), {self.target_generator.stride} pixels for each patch"
                )
        images = torch.stack([sample["target_image"] for sample in samples]).to(self.device, non_blocking=True)
        return self.target_generator(images)


@BACKBONE_REGISTRY.register()
class CAEViT(VisionTransformer):
    """The encoder: a ViT with factors on its branches and no bias of keys; as a backbone it sees all patches."""

    def __init__(self, *, layer_scale: float = 0.1, k_bias: bool = False, **options: Any) -> None:
        """
        Args:
            layer_scale: what the factors start with.
            k_bias: see :class:`TransformerBlock`.
            options: of :class:`VisionTransformer`.
        """
        super().__init__(layer_scale=layer_scale, k_bias=k_bias, **options)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def encode_patches(self, images: Tensor, ids: Tensor) -> Tensor:
        """The class token and some patches, which see nothing of the others: (N, 1 + K, D).

        Args:
            images: (N, 3, H, W), normalised.
            ids: (N, K).
        """
        return self.encode(gather_tokens(self.embed(images), ids))


@NECK_REGISTRY.register()
class CAENeck(nn.Module):
    """The latent contextual regressor, the decoder, and the layer that scores words (sec. 3.2)."""

    def __init__(
        self,
        in_channels: int,
        vocab_size: int = 8192,
        regressor_depth: int = 4,
        decoder_depth: int = 4,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
    ) -> None:
        """
        Args:
            vocab_size: V.
            layer_scale: what the factors on the branches start with.
        """
        super().__init__()
        self.vocab_size = self.out_channels = vocab_size
        self.mask_token = nn.Parameter(torch.zeros(1, 1, in_channels))
        self.regressor = nn.ModuleList(
            _RegressorBlock(in_channels, num_heads, mlp_ratio, layer_scale) for _ in range(regressor_depth)
        )
        self.regressor_norm = nn.LayerNorm(in_channels, eps=NORM_EPS)
        self.decoder = nn.ModuleList(
            TransformerBlock(in_channels, num_heads, mlp_ratio, k_bias=False, layer_scale=layer_scale)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(in_channels, eps=NORM_EPS)
        self.classifier = nn.Linear(in_channels, vocab_size)
        self.apply(init_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)

    def forward(self, latent: Tensor, pos_visible: Tensor, pos_hidden: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            latent: of the visible patches, without the class token, (N, K, D).
            pos_visible: their positions, likewise.
            pos_hidden: (N, M, D).

        Returns:
            The scores of words, (N, M, V), and the latent vectors, (N, M, D), of hidden patches.
        """
        queries = self.mask_token.expand(*pos_hidden.shape[:2], -1)
        positions = torch.cat([pos_visible, pos_hidden], dim=1)
        for block in self.regressor:
            queries = block(queries, latent, pos_hidden, positions)
        regressed = self.regressor_norm(queries)
        x = regressed + pos_hidden
        for block in self.decoder:
            x = block(x)
        return self.classifier(self.decoder_norm(x)), regressed


class _RegressorBlock(nn.Module):
    """Hidden patches look at visible ones, which stay as they are, and at each other."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, layer_scale: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"{num_heads} heads do not divide {dim} channels; see MODEL.SSL.NECK.NUM_HEADS")
        self.num_heads = num_heads
        self.norm_q = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_k = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_v = nn.LayerNorm(dim, eps=NORM_EPS)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, queries: Tensor, latent: Tensor, pos_queries: Tensor, positions: Tensor) -> Tensor:
        """
        Args:
            queries: (N, M, D).
            latent: (N, K, D).
            pos_queries: (N, M, D).
            positions: of ``latent`` and then of ``queries``, (N, K + M, D).

        Returns:
            The queries of the next block.
        """
        values = torch.cat([latent, queries], dim=1)  # (N, K + M, D)
        q = self._heads(self.q(self.norm_q(queries + pos_queries)))
        k = self._heads(self.k(self.norm_k(values + positions)))
        v = self._heads(self.v(self.norm_v(values)))
        attended = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = self.norm2(queries + self.gamma_1 * attended)  # The sum itself is normalised, not only what the MLP takes.
        return x + self.gamma_2 * self.mlp(x)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


@HEAD_REGISTRY.register()
class CAEHead(nn.Module):
    """The losses of words and latent vectors."""

    def __init__(self, loss: Any = None) -> None:
        """
        Args:
            loss: by default CAELoss.
        """
        super().__init__()
        self.loss_module = build_loss(loss or {"NAME": "CAELoss"})

    def forward(self, logits: Tensor, words: Tensor, latent: Tensor, latent_target: Tensor) -> dict[str, Tensor]:
        """The losses by name.

        Args:
            logits: (N, M, V).
            words: (N, M).
            latent: (N, M, D).
            latent_target: likewise; it gets no gradient.
        """
        main, align = self.loss_module(logits.flatten(0, 1), words.flatten(), latent, latent_target.detach())
        return {"loss_main": main, "loss_align": align}


@LOSS_REGISTRY.register()
class CAELoss(nn.Module):
    """The cross entropy of words, and the weighted squared error of latent vectors (eq. 4)."""

    def __init__(self, align_weight: float = 2.0) -> None:
        """
        Args:
            align_weight: lambda.
        """
        super().__init__()
        self.align_weight = align_weight

    def forward(self, logits: Tensor, words: Tensor, latent: Tensor, latent_target: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            logits: (N * M, V).
            words: (N * M,).
            latent: (N, M, D).
            latent_target: likewise.
        """
        align = F.mse_loss(latent.float(), latent_target.float())
        return F.cross_entropy(logits.float(), words), self.align_weight * align
