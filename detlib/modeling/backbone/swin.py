"""Swin Transformer (https://arxiv.org/abs/2103.14030): attention in windows that shift from block to block.

Shapes: B images, H x W positions of a stage, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlib.config import CfgNode
from detlib.layers import ShapeSpec
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.build import BACKBONE_REGISTRY
from detlib.modeling.backbone.fpn import FPN, build_fpn
from detlib.modeling.backbone.swin_blocks import (
    BasicLayer,
    PatchEmbed,
    PatchMerging,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from detlib.modeling.backbone.utils import Mlp, init_transformer
from detlib.utils.errors import ConfigError

__all__ = [
    "BasicLayer",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "SwinTransformer",
    "SwinTransformerBlock",
    "WindowAttention",
    "build_swin_backbone",
    "build_swin_fpn_backbone",
    "window_partition",
    "window_reverse",
]


class SwinTransformer(Backbone):
    """Stages of window attention, p0 to p3 with strides 4 to 32; images of any size are padded inside."""

    def __init__(
        self,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int | Sequence[int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
    ) -> None:
        """
        Args:
            pretrain_img_size: side of the images that the positions of ``ape`` are made for.
            embed_dim: channels of the first stage; they double from stage to stage.
            depths: blocks of each stage.
            window_size: side of windows, or one for each stage; every second block shifts them by half.
            qk_scale: factor on products of queries and keys, by default one over the square root of a head's channels.
            drop_path_rate: of the last block; the first has 0, those between lie on a line.
            ape: add a learned position to each patch.
            patch_norm: normalise patches.
            out_indices: stages to return; those after the last one are not built.
            frozen_stages: 0 does not train the patches, 1 neither positions, k + 1 nor the first k stages; -1 trains
                all.
            use_checkpoint: compute blocks again in the backward pass, to save memory.
        """
        super().__init__()
        if not out_indices or not set(out_indices) <= set(range(len(depths))):
            raise ConfigError(f"MODEL.SWIN.OUT_INDICES is {list(out_indices)}; choose from {list(range(len(depths)))}.")
        if len(num_heads) != len(depths):
            raise ConfigError(f"MODEL.SWIN.NUM_HEADS {list(num_heads)} and DEPTHS {list(depths)} differ in length.")
        window_sizes = [window_size] * len(depths) if isinstance(window_size, int) else window_size
        if len(window_sizes) != len(depths):
            raise ConfigError(f"MODEL.SWIN.WINDOW_SIZE {list(window_size)} and DEPTHS {list(depths)} differ in length.")
        self.pretrain_img_size = pretrain_img_size
        self.num_layers = max(out_indices) + 1
        self.embed_dim = embed_dim
        self.ape = ape
        self.patch_norm = patch_norm
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, norm_layer if patch_norm else None)
        self.pos_drop = nn.Dropout(drop_rate)
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.num_features = [embed_dim * 2**i for i in range(self.num_layers)]
        drop_path = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.layers = nn.ModuleList(
            BasicLayer(
                dim=self.num_features[i],
                depth=depths[i],
                num_heads=num_heads[i],
                window_size=window_sizes[i],
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path[sum(depths[:i]) : sum(depths[: i + 1])],
                norm_layer=norm_layer,
                downsample=PatchMerging if i < self.num_layers - 1 else None,
                use_checkpoint=use_checkpoint,
            )
            for i in range(self.num_layers)
        )
        for i in out_indices:
            self.add_module(f"norm{i}", norm_layer(self.num_features[i]))
        self._out_features = [f"p{i}" for i in out_indices]
        self._out_feature_channels = {f"p{i}": self.num_features[i] for i in out_indices}
        self._out_feature_strides = {f"p{i}": patch_size * 2**i for i in out_indices}
        self._size_divisibility = patch_size * 2 ** (self.num_layers - 1)
        self.apply(init_transformer)
        self._freeze()

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, in_chans, height, width).

        Returns:
            The wanted stages, normalised, by name.
        """
        return self.encode(self.patch_embed(x))

    def encode(self, patches: Tensor) -> dict[str, Tensor]:
        """The rest of :meth:`forward`, of patches (B, C, H, W)."""
        H, W = patches.shape[-2:]
        if self.ape:
            patches = patches + F.interpolate(self.absolute_pos_embed, size=(H, W), mode="bicubic")
        x = self.pos_drop(patches.flatten(2).transpose(1, 2))  # (B, H * W, C)
        outputs = {}
        for i, layer in enumerate(self.layers):
            stage, stage_H, stage_W, x, H, W = layer(x, H, W)
            if i in self.out_indices:
                normed = getattr(self, f"norm{i}")(stage)
                outputs[f"p{i}"] = normed.view(-1, stage_H, stage_W, self.num_features[i]).permute(0, 3, 1, 2)
        return {name: outputs[name] for name in self._out_features}

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode of all but the frozen parts, which neither drop nor learn."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        frozen: list[nn.Module] = []
        if self.frozen_stages >= 0:
            frozen.append(self.patch_embed)
        if self.frozen_stages >= 1 and self.ape:
            self.absolute_pos_embed.requires_grad_(False)
        if self.frozen_stages >= 2:
            frozen += [self.pos_drop, *self.layers[: self.frozen_stages - 1]]
        for module in frozen:
            module.eval().requires_grad_(False)


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinTransformer:
    """A Swin Transformer as ``cfg.MODEL.SWIN`` and ``cfg.MODEL.BACKBONE.FREEZE_AT`` say."""
    options: dict[str, Any] = {key.lower(): value for key, value in cfg.MODEL.SWIN.items()}
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return SwinTransformer(**options, in_chans=input_shape.channels, frozen_stages=freeze_at if freeze_at > 0 else -1)


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Swin with the feature pyramid of ``cfg.MODEL.FPN``."""
    return build_fpn(cfg, build_swin_backbone(cfg, input_shape))
