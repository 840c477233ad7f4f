"""MViTv2 (https://arxiv.org/abs/2112.01526): attention over pooled queries, keys and values, coarser by the stage.

Shapes: B images, H x W positions, C channels, n heads of d channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from detlib.config import CfgNode
from detlib.layers import ShapeSpec
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.build import BACKBONE_REGISTRY
from detlib.modeling.backbone.fpn import FPN, build_fpn
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

__all__ = ["MViT", "build_mvit_backbone", "build_mvit_fpn_backbone"]


class MViT(Backbone):
    """Stages scale2 to scale5. All blocks attend to windows, save the last ones of the last three stages."""

    def __init__(
        self,
        img_size: int = 224,
        patch_kernel: tuple[int, int] = (7, 7),
        patch_stride: tuple[int, int] = (4, 4),
        patch_padding: tuple[int, int] = (3, 3),
        in_chans: int = 3,
        embed_dim: int = 96,
        depth: int = 16,
        num_heads: int = 1,
        last_block_indexes: Sequence[int] = (0, 2, 11, 15),
        qkv_pool_kernel: tuple[int, int] = (3, 3),
        adaptive_kv_stride: int = 4,
        adaptive_window_size: int = 56,
        residual_pooling: bool = True,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = False,
        use_rel_pos: bool = True,
        rel_pos_zero_init: bool = True,
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_features: Sequence[str] = ("scale2", "scale3", "scale4", "scale5"),
    ) -> None:
        """
        Args:
            img_size: side of the images that relative positions are made for; at other sizes they are interpolated.
            embed_dim: channels of the first stage; they and the heads double from stage to stage.
            last_block_indexes: the last block of each stage, counted from 0.
            qkv_pool_kernel: of the convolutions that pool queries, keys and values.
            adaptive_kv_stride: of keys and values in the first stage; it halves from stage to stage.
            adaptive_window_size: side of windows in the first stage, in positions, likewise.
            residual_pooling: add the pooled queries to what attention gives (eq. 7).
            drop_path_rate: of the last block; the first has 0, those between lie on a line.
            use_abs_pos: add a learned position to each patch, interpolated from ``pretrain_img_size``.
            use_rel_pos: learn what the distance of positions means to attention.
            use_act_checkpoint: compute blocks again in the backward pass, to save memory.
            pretrain_use_cls_token: whether ``pos_embed`` begins with the position of a class token.
            out_features: stages to return; those after the last one are not built.
        """
        super().__init__()
        names = [f"scale{i + 2}" for i in range(len(last_block_indexes))]
        _check_stages(out_features, names, last_block_indexes, depth)
        self.use_act_checkpoint = use_act_checkpoint
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.patch_embed = PatchEmbed(patch_kernel, patch_stride, patch_padding, in_chans, embed_dim)
        self.pos_embed = None
        if use_abs_pos:
            num_patches = (pretrain_img_size // patch_stride[0]) * (pretrain_img_size // patch_stride[1])
            num_positions = num_patches + int(pretrain_use_cls_token)
            self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self._out_features = list(out_features)
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}
        self._name_after_block: dict[int, str] = {}
        self.blocks = nn.ModuleList()
        for stage in range(max(map(names.index, out_features)) + 1):
            first = last_block_indexes[stage - 1] + 1 if stage > 0 else 0
            last, channels = last_block_indexes[stage], embed_dim * 2**stage
            for i in range(first, last + 1):
                # The first block of a stage gets the map of the stage before, and makes it coarser and wider.
                is_first = stage > 0 and i == first
                halvings = stage - 1 if is_first else stage
                # Global attention over the large maps of the inner stages has half as many keys along each axis.
                is_global = stage > 0 and i == last
                is_large = is_global and stage < len(names) - 1
                block = _Block(
                    channels // 2 if is_first else channels,
                    channels,
                    num_heads * 2**stage,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    drop_path=drop_path_rate * i / max(depth - 1, 1),
                    norm_layer=norm_layer,
                    act_layer=act_layer,
                    pool_kernel=qkv_pool_kernel,
                    stride_q=2 if is_first else 1,
                    stride_kv=max(adaptive_kv_stride // 2**stage, 1) * (2 if is_large else 1),
                    residual_pooling=residual_pooling,
                    window_size=0 if is_global else adaptive_window_size // 2**halvings,
                    rel_pos_size=img_size // patch_stride[0] // 2**halvings if use_rel_pos else 0,
                    rel_pos_zero_init=rel_pos_zero_init,
                )
                self.blocks.append(block)
            if names[stage] in out_features:
                self._add_output(names[stage], last, channels, patch_stride[0] * 2**stage, norm_layer)
        self.apply(init_transformer)

    def _add_output(
        self, name: str, last_block: int, channels: int, stride: int, norm_layer: Callable[[int], nn.Module]
    ) -> None:
        self.add_module(f"{name}_norm", norm_layer(channels))
        self._name_after_block[last_block] = name
        self._out_feature_channels[name] = channels
        self._out_feature_strides[name] = stride

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, in_chans, height, width).

        Returns:
            The wanted stages, normalised, by name; their sizes are rounded up.
        """
        x = self.patch_embed(x)  # (B, H, W, C)
        if self.pos_embed is not None:
            x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, x.shape[1:3])
        outputs = {}
        for i, block in enumerate(self.blocks):
            recompute = self.use_act_checkpoint and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if i in self._name_after_block:
                name = self._name_after_block[i]
                outputs[name] = getattr(self, f"{name}_norm")(x).permute(0, 3, 1, 2)
        return {name: outputs[name] for name in self._out_features}


class _Block(nn.Module):
    """Pooling attention and an MLP; the first block of a stage widens the channels and halves the map."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        drop_path: float,
        norm_layer: Callable[[int], nn.Module],
        act_layer: Callable[[], nn.Module],
        stride_q: int,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = _Attention(dim, dim_out, num_heads, norm_layer=norm_layer, stride_q=stride_q, **attention)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.norm2 = norm_layer(dim_out)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio), act_layer=act_layer)
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None
        self.pool_skip = None
        if stride_q > 1:
            self.pool_skip = nn.MaxPool2d(stride_q + 1, stride=stride_q, padding=(stride_q + 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.proj is not None:
            x = self.proj(normed)
        if self.pool_skip is not None:
            x = self.pool_skip(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(normed))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    """Multi-head attention whose queries, keys and values are pooled by convolutions, over windows or the whole map."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        norm_layer: Callable[[int], nn.Module],
        pool_kernel: tuple[int, int],
        stride_q: int,
        stride_kv: int,
        residual_pooling: bool,
        window_size: int,
        rel_pos_size: int,
        rel_pos_zero_init: bool,
    ) -> None:
        """
        Args:
            window_size: side of windows before pooling; 0 for the whole map.
            rel_pos_size: side of the map, before pooling, that distances are learned for; 0 for none.
        """
        super().__init__()
        if window_size % stride_q or window_size % stride_kv:
            raise ConfigError(
                f"windows of {window_size} cannot be pooled with strides {stride_q} and {stride_kv}; change "
                f"MODEL.MVIT.ADAPTIVE_WINDOW_SIZE or ADAPTIVE_KV_STRIDE."
            )
        self.num_heads = num_heads
        self.residual_pooling = residual_pooling
        self.q_window, self.kv_window = window_size // stride_q, window_size // stride_kv
        head_dim = dim_out // num_heads
        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        self.pool_q, self.norm_q = _pool(head_dim, pool_kernel, stride_q), norm_layer(head_dim)
        self.pool_k, self.norm_k = _pool(head_dim, pool_kernel, stride_kv), norm_layer(head_dim)
        self.pool_v, self.norm_v = _pool(head_dim, pool_kernel, stride_kv), norm_layer(head_dim)
        self.rel_pos_h = self.rel_pos_w = None
        if rel_pos_size:
            num_distances = 2 * max(rel_pos_size // stride_q, rel_pos_size // stride_kv) - 1
            self.rel_pos_h = nn.Parameter(torch.zeros(num_distances, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(num_distances, head_dim))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        n = self.num_heads
        qkv = self.qkv(x).view(B, H, W, 3, n, -1).permute(3, 0, 4, 5, 1, 2).flatten(1, 2)  # (3, B * n, d, H, W)
        q = self.norm_q(self.pool_q(qkv[0]).permute(0, 2, 3, 1))  # (B * n, H', W', d)
        k = self.norm_k(self.pool_k(qkv[1]).permute(0, 2, 3, 1))
        v = self.norm_v(self.pool_v(qkv[2]).permute(0, 2, 3, 1))
        x = self._attend(q, k, v)
        if self.residual_pooling:
            x = x + q
        x = x.unflatten(0, (B, n)).permute(0, 2, 3, 1, 4).flatten(3)  # (B, H', W', n * d)
        return self.proj(x)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        hw = q.shape[1:3]
        if self.q_window:
            q, pad_hw = window_partition(q, self.q_window)
            k, _ = window_partition(k, self.kv_window)
            v, _ = window_partition(v, self.kv_window)
        q_size, k_size = q.shape[1:3], k.shape[1:3]
        maps = [x.flatten(1, 2)[:, None] for x in (q, k, v)]
        x = attention_with_rel_pos(*maps, self.rel_pos_h, self.rel_pos_w, q_size, k_size)
        x = x[:, 0].unflatten(1, q_size)
        return window_unpartition(x, self.q_window, pad_hw, hw) if self.q_window else x


def _check_stages(out_features: Sequence[str], names: list[str], last_block_indexes: Sequence[int], depth: int) -> None:
    if not out_features or not set(out_features) <= set(names):
        raise ConfigError(f"MODEL.MVIT.OUT_FEATURES is {list(out_features)}; choose from {', '.join(names)}.")
    if list(last_block_indexes) != sorted(set(last_block_indexes)) or last_block_indexes[-1] != depth - 1:
        raise ConfigError(
            f"MODEL.MVIT.LAST_BLOCK_INDEXES is {list(last_block_indexes)}; it must rise and end with the last of "
            f"DEPTH {depth} blocks, {depth - 1}."
        )


def _pool(channels: int, kernel: tuple[int, int], stride: int) -> nn.Conv2d:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(channels, channels, kernel, stride=stride, padding=padding, groups=channels, bias=False)


@BACKBONE_REGISTRY.register()
def build_mvit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MViT:
    """An MViTv2 as ``cfg.MODEL.MVIT`` says."""
    options: dict[str, Any] = {key.lower(): value for key, value in cfg.MODEL.MVIT.items()}
    return MViT(**options, in_chans=input_shape.channels, norm_layer=partial(nn.LayerNorm, eps=1e-6))


@BACKBONE_REGISTRY.register()
def build_mvit_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MViTv2 with the feature pyramid of ``cfg.MODEL.FPN``."""
    return build_fpn(cfg, build_mvit_backbone(cfg, input_shape))
