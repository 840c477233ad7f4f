"""Plain vision transformer (https://arxiv.org/abs/2010.11929) for detection (ViTDet, https://arxiv.org/abs/2203.16527).

Shapes: B images, H x W patches of an image, C channels, n heads of d channels.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from detlib.config import CfgNode
from detlib.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.build import BACKBONE_REGISTRY
from detlib.modeling.backbone.fpn import build_top_block
from detlib.modeling.backbone.utils import (
    Mlp,
    PatchEmbed,
    attention_with_rel_pos,
    get_abs_pos,
    init_transformer,
    window_partition,
    window_unpartition,
)
from detlib.utils.errors import ConfigError

__all__ = [
    "SimpleFeaturePyramid",
    "ViT",
    "build_vit_backbone",
    "build_vit_fpn_backbone",
    "get_vit_lr_decay_rate",
]


class ViT(Backbone):
    """Transformer blocks on patches; all look at the whole image, or most of them at windows.

    There is no class token and no norm at the end: the only output is the map after the last block.
    """

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        rel_pos_zero_init: bool = True,
        window_size: int = 0,
        window_block_indexes: Sequence[int] = (),
        residual_block_indexes: Sequence[int] = (),
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_feature: str = "last_feat",
    ) -> None:
        """
        Args:
            img_size: side of the images that relative positions are made for; at other sizes they are interpolated.
            drop_path_rate: of the last block; the first has 0, those between lie on a line.
            use_abs_pos: add a learned position to each patch, interpolated from ``pretrain_img_size``.
            use_rel_pos: learn what the distance of patches means to attention.
            rel_pos_zero_init: start distances with zeros, else at random.
            window_size: side of windows, in patches.
            window_block_indexes: blocks that look at windows, counted from 0.
            residual_block_indexes: blocks that end with a convolutional residual block.
            use_act_checkpoint: compute blocks again in the backward pass, to save memory.
            pretrain_use_cls_token: whether ``pos_embed`` begins with the position of a class token.
            out_feature: name of the output.
        """
        super().__init__()
        if window_block_indexes and window_size < 1:
            raise ConfigError(
                f"blocks {list(window_block_indexes)} use windows, so their side must not be {window_size}"
            )
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.use_act_checkpoint = use_act_checkpoint
        self.patch_embed = PatchEmbed((patch_size, patch_size), (patch_size, patch_size), (0, 0), in_chans, embed_dim)
        self.pos_embed = None
        if use_abs_pos:
            num_positions = (pretrain_img_size // patch_size) ** 2 + int(pretrain_use_cls_token)
            self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            _Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                norm_layer=norm_layer,
                act_layer=act_layer,
                use_rel_pos=use_rel_pos,
                rel_pos_zero_init=rel_pos_zero_init,
                window_size=window_size if i in window_block_indexes else 0,
                use_residual_block=i in residual_block_indexes,
                map_size=img_size // patch_size,
            )
            for i in range(depth)
        )
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: embed_dim}
        self._out_feature_strides = {out_feature: patch_size}
        self.apply(init_transformer)

    @property
    def size_divisibility(self) -> int:
        return self.patch_embed.proj.stride[0]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, in_chans, height, width), multiples of the patch size; else the rest of the image is ignored.
        """
        x = self.patch_embed(x)  # (B, H, W, C)
        if self.pos_embed is not None:
            x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, x.shape[1:3])
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self._recompute() else block(x)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}

    def _recompute(self) -> bool:
        return self.use_act_checkpoint and torch.is_grad_enabled()

    def lr_factor(self, name: str, decay: float) -> float:
        """Factor of the learning rate, ``decay`` to the number of layers above a parameter, for SOLVER.LAYER_DECAY.

        Args:
            name: of the parameter, within this module.
        """
        return get_vit_lr_decay_rate(f"backbone.net.{name}", decay, len(self.blocks))


class _Block(nn.Module):
    """Attention and an MLP, each normalised before and added to its input."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_path: float,
        norm_layer: Callable[[int], nn.Module],
        act_layer: Callable[[], nn.Module],
        use_rel_pos: bool,
        rel_pos_zero_init: bool,
        window_size: int,
        use_residual_block: bool,
        map_size: int,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = _Attention(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            rel_pos_size=(window_size or map_size) if use_rel_pos else 0,
            rel_pos_zero_init=rel_pos_zero_init,
        )
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer)
        self.window_size = window_size
        self.residual = _ConvBlock(dim, dim // 2, act_layer) if use_residual_block else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut, x, hw = x, self.norm1(x), x.shape[1:3]
        if self.window_size > 0:
            x, pad_hw = window_partition(x, self.window_size)
        x = self.attn(x)
        if self.window_size > 0:
            x = window_unpartition(x, self.window_size, pad_hw, hw)
        x = shortcut + self.drop_path(x)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        if self.residual is not None:
            x = self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x


class _Attention(nn.Module):
    """Multi-head attention on maps."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool, rel_pos_size: int, rel_pos_zero_init: bool) -> None:
        """
        Args:
            rel_pos_size: side of the map that distances are learned for; 0 for none.
        """
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"{num_heads} heads do not divide {dim} channels; see MODEL.VIT.EMBED_DIM and NUM_HEADS")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = self.rel_pos_w = None
        if rel_pos_size:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, dim // num_heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * rel_pos_size - 1, dim // num_heads))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        qkv = self.qkv(x).view(B, H * W, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, n, H * W, d)
        x = attention_with_rel_pos(q, k, v, self.rel_pos_h, self.rel_pos_w, (H, W), (H, W))
        return self.proj(x.transpose(1, 2).reshape(B, H, W, C))


class _ConvBlock(CNNBlockBase):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, which start as the identity (ViTDet, sec. 3)."""

    def __init__(self, channels: int, bottleneck_channels: int, act_layer: Callable[[], nn.Module]) -> None:
        super().__init__(channels, channels, 1)
        self.conv1 = nn.Conv2d(channels, bottleneck_channels, 1, bias=False)
        self.norm1 = get_norm("LN", bottleneck_channels)
        self.act1 = act_layer()
        self.conv2 = nn.Conv2d(bottleneck_channels, bottleneck_channels, 3, padding=1, bias=False)
        self.norm2 = get_norm("LN", bottleneck_channels)
        self.act2 = act_layer()
        self.conv3 = nn.Conv2d(bottleneck_channels, channels, 1, bias=False)
        self.norm3 = get_norm("LN", channels)
        for conv in (self.conv1, self.conv2, self.conv3):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.norm1(self.conv1(x)))
        out = self.act2(self.norm2(self.conv2(out)))
        return x + self.norm3(self.conv3(out))


class SimpleFeaturePyramid(Backbone):
    """Levels p2, p3, ... that are all made from the one map of a plain backbone (ViTDet, sec. 3)."""

    def __init__(
        self,
        net: Backbone,
        in_feature: str,
        out_channels: int,
        scale_factors: Sequence[float],
        top_block: nn.Module | None = None,
        norm: str | Callable = "LN",
        square_pad: int = 0,
    ) -> None:
        """
        Args:
            in_feature: the output of ``net`` to use.
            out_channels: of every level.
            scale_factors: size of each level relative to the map, finest first: 4.0, 2.0, 1.0 or 0.5.
            top_block: makes further, coarser levels; see FPN.
            norm: of the convolutions.
            square_pad: pad the input to a square of this size; 0 for no square.
        """
        super().__init__()
        shape = net.output_shape()[in_feature]
        self.scale_factors = scale_factors
        strides = [int(shape.stride / scale) for scale in scale_factors]
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise ConfigError(f"MODEL.FPN.SCALE_FACTORS is {list(scale_factors)}; each must be half of the one before.")
        names = [int(math.log2(stride)) for stride in strides]
        self.stages: list[nn.Sequential] = []
        for name, scale in zip(names, scale_factors):
            stage = _pyramid_stage(shape.channels, out_channels, scale, norm)
            self.add_module(f"simfp_{name}", stage)
            self.stages.append(stage)
        self.net = net
        self.in_feature = in_feature
        self.top_block = top_block
        if top_block is not None:
            names += range(names[-1] + 1, names[-1] + 1 + top_block.num_levels)
        self._out_features = [f"p{name}" for name in names]
        self._out_feature_strides = {f"p{name}": 2**name for name in names}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = max(strides[-1], net.size_divisibility)
        self._square_pad = square_pad

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, C, H, W), H and W multiples of :attr:`size_divisibility`.

        Returns:
            The levels by name, finest first.
        """
        bottom_up = self.net(x)
        outputs = dict(zip(self._out_features, [stage(bottom_up[self.in_feature]) for stage in self.stages]))
        if self.top_block is not None:
            name = self.top_block.in_feature
            top = self.top_block(bottom_up[name] if name in bottom_up else outputs[name])
            outputs.update(zip(self._out_features[len(self.stages) :], top))
        return outputs


def _pyramid_stage(channels: int, out_channels: int, scale: float, norm: str | Callable) -> nn.Sequential:
    """From the map to a level of ``scale`` times its size."""
    if scale == 4.0:
        layers = [
            nn.ConvTranspose2d(channels, channels // 2, 2, stride=2),
            get_norm(norm, channels // 2) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 2, channels // 4, 2, stride=2),
        ]
        channels = channels // 4
    elif scale == 2.0:
        layers = [nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)]
        channels = channels // 2
    elif scale == 1.0:
        layers = []
    elif scale == 0.5:
        layers = [nn.MaxPool2d(2, stride=2)]
    else:
        raise ConfigError(f"MODEL.FPN.SCALE_FACTORS has {scale}; a level has 4.0, 2.0, 1.0 or 0.5 times the size.")
    for in_channels, kernel_size in ((channels, 1), (out_channels, 3)):
        conv = Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            padding=kernel_size // 2,
            bias=norm == "",
            norm=get_norm(norm, out_channels),
        )
        layers.append(conv)
    return nn.Sequential(*layers)


def get_vit_lr_decay_rate(name: str, lr_decay_rate: float = 1.0, num_layers: int = 12) -> float:
    """Factor of the learning rate of a parameter, ``lr_decay_rate`` to the number of layers above it.

    Patches and positions are layer 0, blocks are 1 to ``num_layers``; convolutions that ViTDet adds, the pyramid and
    all outside of the backbone lie above.

    Args:
        name: of the parameter, from the whole model on: "backbone.net.blocks.3.mlp.fc1.weight".
    """
    layer = num_layers + 1
    if name.startswith("backbone"):
        if ".pos_embed" in name or ".patch_embed" in name:
            layer = 0
        elif ".blocks." in name and ".residual." not in name:
            layer = int(name.split(".blocks.", 1)[1].split(".", 1)[0]) + 1
    return lr_decay_rate ** (num_layers + 1 - layer)


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ViT:
    """A ViT as ``cfg.MODEL.VIT`` says, with one output."""
    options: dict[str, Any] = {key.lower(): value for key, value in cfg.MODEL.VIT.items()}
    return ViT(**options, in_chans=input_shape.channels, norm_layer=partial(nn.LayerNorm, eps=1e-6))


@BACKBONE_REGISTRY.register()
def build_vit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """A ViT with the levels that ``cfg.MODEL.FPN`` asks for, as ViTDet uses it."""
    net = build_vit_backbone(cfg, input_shape)
    name = cfg.MODEL.VIT.OUT_FEATURE
    return SimpleFeaturePyramid(
        net=net,
        in_feature=name,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=cfg.MODEL.FPN.SCALE_FACTORS,
        top_block=build_top_block(cfg, net.output_shape()[name].channels, name),
        norm=cfg.MODEL.FPN.NORM,
        square_pad=cfg.MODEL.FPN.SQUARE_PAD,
    )
