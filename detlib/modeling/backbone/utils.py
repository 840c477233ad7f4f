"""What vision transformers share: windows, positions, attention with relative positions, MLPs.

Shapes: B images or windows, H x W positions, C channels, n heads of d channels.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "Mlp",
    "PatchEmbed",
    "add_decomposed_rel_pos",
    "attention_with_rel_pos",
    "get_abs_pos",
    "get_rel_pos",
    "init_transformer",
    "window_partition",
    "window_unpartition",
]


def window_partition(x: Tensor, window_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut a map into windows, after padding it with zeros at the right and at the bottom.

    Args:
        x: (B, H, W, C).

    Returns:
        Windows (B * windows per image, window_size, window_size, C), row by row, and the padded (H, W).
    """
    B, H, W, C = x.shape
    pad_h, pad_w = -H % window_size, -W % window_size
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    Hp, Wp = H + pad_h, W + pad_w
    x = x.view(B, Hp // window_size, window_size, Wp // window_size, window_size, C)
    return x.transpose(2, 3).reshape(-1, window_size, window_size, C), (Hp, Wp)


def window_unpartition(windows: Tensor, window_size: int, pad_hw: tuple[int, int], hw: tuple[int, int]) -> Tensor:
    """Undo :func:`window_partition`.

    Args:
        windows: (B * windows per image, window_size, window_size, C).
        pad_hw: padded height and width.
        hw: height and width before padding.

    Returns:
        (B, H, W, C).
    """
    (Hp, Wp), (H, W) = pad_hw, hw
    x = windows.view(-1, Hp // window_size, Wp // window_size, window_size, window_size, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, Hp, Wp, windows.shape[-1])[:, :H, :W].contiguous()


def get_rel_pos(q_size: int, k_size: int, rel_pos: Tensor) -> Tensor:
    """The embedding of the distance of each query from each key, along one axis.

    Where there are fewer queries than keys, or the reverse, the fewer ones lie further apart (MViTv2,
    https://arxiv.org/abs/2112.01526, app. A).

    Args:
        rel_pos: (L, C), an embedding for each distance, the most negative first. If L is not
            ``2 * max(q_size, k_size) - 1`` it is interpolated.

    Returns:
        (q_size, k_size, C).
    """
    longer = max(q_size, k_size)
    if rel_pos.shape[0] != 2 * longer - 1:
        rel_pos = F.interpolate(rel_pos.T[None], size=2 * longer - 1, mode="linear")[0].T
    queries = torch.arange(q_size, device=rel_pos.device)[:, None] * max(k_size / q_size, 1.0)
    keys = torch.arange(k_size, device=rel_pos.device)[None, :] * max(q_size / k_size, 1.0)
    # The last key lies behind the first query by this much, which is the index 0.
    offset = (k_size - 1) * max(q_size / k_size, 1.0)
    return rel_pos[(queries - keys + offset).long()]


def add_decomposed_rel_pos(
    attn: Tensor, q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, q_size: tuple[int, int], k_size: tuple[int, int]
) -> Tensor:
    """Add to attention what queries make of vertical and horizontal distances (MViTv2, eq. 5 and 6).

    Args:
        attn: (B, q_h * q_w, k_h * k_w), before the softmax.
        q: (B, q_h * q_w, C), without the factor that attention scales it by.
        rel_pos_h: (L, C), see :func:`get_rel_pos`.
        rel_pos_w: likewise.
        q_size: (q_h, q_w).
        k_size: (k_h, k_w).
    """
    rel_h, rel_w = _decomposed_rel_pos(q, rel_pos_h, rel_pos_w, q_size, k_size)
    return (attn.unflatten(-1, k_size) + rel_h[..., :, None] + rel_w[..., None, :]).flatten(-2)


def _decomposed_rel_pos(
    q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, q_size: tuple[int, int], k_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """What each query adds for each row of keys, (..., q_h * q_w, k_h), and for each column, (..., q_h * q_w, k_w)."""
    q = q.unflatten(-2, q_size)
    rel_h = torch.einsum("...hwc,hkc->...hwk", q, get_rel_pos(q_size[0], k_size[0], rel_pos_h))
    rel_w = torch.einsum("...hwc,wkc->...hwk", q, get_rel_pos(q_size[1], k_size[1], rel_pos_w))
    return rel_h.flatten(-3, -2), rel_w.flatten(-3, -2)


def attention_with_rel_pos(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos_h: Tensor | None,
    rel_pos_w: Tensor | None,
    q_size: tuple[int, int],
    k_size: tuple[int, int],
) -> Tensor:
    """softmax(q k^T / sqrt(d) + distances) v.

    Args:
        q: (B, n, q_h * q_w, d).
        k: (B, n, k_h * k_w, d); v too.
        rel_pos_h: (L, d), see :func:`add_decomposed_rel_pos`; None for attention without distances.

    Returns:
        (B, n, q_h * q_w, d).
    """
    if rel_pos_h is None:
        return F.scaled_dot_product_attention(q, k, v)
    rel_h, rel_w = _decomposed_rel_pos(q, rel_pos_h, rel_pos_w, q_size, k_size)
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(-2)  # (B, n, q_h * q_w, k_h * k_w)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


def get_abs_pos(abs_pos: Tensor, has_cls_token: bool, hw: tuple[int, int]) -> Tensor:
    """Fit learned positions of a square of patches to a map.

    Args:
        abs_pos: (1, patches, C), or (1, 1 + patches, C) with that of a class token in front.
        hw: height and width of the map.

    Returns:
        (1, H, W, C).
    """
    if has_cls_token:
        abs_pos = abs_pos[:, 1:]
    size = math.isqrt(int(abs_pos.shape[1]))
    if size * size != abs_pos.shape[1]:
        raise ValueError(
            f"{abs_pos.shape[1]} absolute positions make no square; is PRETRAIN_USE_CLS_TOKEN {has_cls_token} right?"
        )
    abs_pos = abs_pos.unflatten(1, (size, size))
    if (size, size) == tuple(hw):
        return abs_pos
    maps = F.interpolate(abs_pos.permute(0, 3, 1, 2), size=hw, mode="bicubic", align_corners=False)
    return maps.permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Patches of an image, which may overlap, as vectors: a convolution."""

    def __init__(
        self,
        kernel_size: tuple[int, int] = (16, 16),
        stride: tuple[int, int] = (16, 16),
        padding: tuple[int, int] = (0, 0),
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=kernel_size, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, H', W', embed_dim)."""
        return self.proj(x).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
    ) -> None:
        """
        Args:
            hidden_features: by default in_features; out_features too.
            drop: rate of dropout after each layer.
        """
        super().__init__()
        hidden_features = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, out_features or in_features)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def init_transformer(module: nn.Module) -> None:
    """Linear layers from N(0, 0.02^2), cut off at 2, with biases of 0 (ViT, arXiv:2010.11929); for ``apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
