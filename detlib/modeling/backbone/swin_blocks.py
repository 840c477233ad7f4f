"""Parts of the Swin Transformer (https://arxiv.org/abs/2103.14030): window attention and what surrounds it.

Shapes: B images, H x W positions of a stage, C channels, n heads, windows of N = Wh * Ww positions.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from detlib.modeling.backbone.utils import Mlp

__all__ = [
    "BasicLayer",
    "PatchEmbed",
    "PatchMerging",
    "SwinTransformerBlock",
    "WindowAttention",
    "window_partition",
    "window_reverse",
]


class BasicLayer(nn.Module):
    """One stage: blocks whose windows are shifted in turn, and what reduces the map for the next stage."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float | Sequence[float] = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        downsample: Callable[..., nn.Module] | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        """
        Args:
            drop_path: of all blocks, or a rate for each.
            downsample: PatchMerging or None.
        """
        super().__init__()
        self.window_size = window_size
        self.shift_size = window_size // 2
        self.depth = depth
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                dim=dim,
                num_heads=num_heads,
                window_size=window_size,
                shift_size=0 if i % 2 == 0 else window_size // 2,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop,
                attn_drop=attn_drop,
                drop_path=drop_path[i] if isinstance(drop_path, Sequence) else drop_path,
                norm_layer=norm_layer,
            )
            for i in range(depth)
        )
        self.downsample = None if downsample is None else downsample(dim=dim, norm_layer=norm_layer)

    def forward(self, x: Tensor, H: int, W: int) -> tuple[Tensor, int, int, Tensor, int, int]:
        """
        Args:
            x: (B, H * W, C).

        Returns:
            the stage's map (B, H * W, C), H and W, and the reduced map, its height and its width.
        """
        mask = _shift_mask(H, W, self.window_size, self.shift_size, x)
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(_run_block, block, x, mask, H, W, use_reentrant=False)
            else:
                x = _run_block(block, x, mask, H, W)
        if self.downsample is None:
            return x, H, W, x, H, W
        return x, H, W, self.downsample(x, H, W), (H + 1) // 2, (W + 1) // 2


def _run_block(block: nn.Module, x: Tensor, mask: Tensor, H: int, W: int) -> Tensor:
    # Set here, so that a block computed again in the backward pass has the size that its input had.
    block.H, block.W = H, W
    return block(x, mask)


def _shift_mask(H: int, W: int, window_size: int, shift_size: int, like: Tensor) -> Tensor:
    """What to add to the attention of shifted windows (sec. 3.2): -inf between positions that are no neighbours.

    Returns:
        (windows per image, N, N).
    """

    def region(size: int) -> Tensor:
        padded = size + -size % window_size
        position = torch.arange(padded, device=like.device)
        return (position >= padded - window_size).long() + (position >= padded - shift_size).long()

    regions = 3 * region(H)[:, None] + region(W)[None, :]
    windows = window_partition(regions[None, :, :, None], window_size).flatten(1)  # (windows, N)
    apart = windows[:, None, :] != windows[:, :, None]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill_(apart, float("-inf"))


class SwinTransformerBlock(nn.Module):
    """Window attention and an MLP, each normalised before and added to its input."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        """
        Args:
            shift_size: by how much windows are shifted, below window_size.
        """
        super().__init__()
        if not 0 <= shift_size < window_size:
            raise ValueError(f"shift_size {shift_size} must be at least 0 and below window_size {window_size}")
        self.dim = dim
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.mlp_ratio = mlp_ratio
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(
            dim, (window_size, window_size), num_heads, qkv_bias, qk_scale, attn_drop=attn_drop, proj_drop=drop
        )
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.H: int | None = None
        self.W: int | None = None

    def forward(self, x: Tensor, mask_matrix: Tensor) -> Tensor:
        """
        Args:
            x: (B, H * W, C), where the attributes H and W are set before.
            mask_matrix: (windows per image, N, N), added to the attention of shifted windows.
        """
        H, W, size, shift = self.H, self.W, self.window_size, self.shift_size
        windows = self.norm1(x).unflatten(1, (H, W))
        windows = F.pad(windows, (0, 0, 0, -W % size, 0, -H % size))  # (B, Hp, Wp, C)
        Hp, Wp = windows.shape[1:3]
        if shift > 0:
            windows = torch.roll(windows, shifts=(-shift, -shift), dims=(1, 2))
        windows = window_partition(windows, size).flatten(1, 2)  # (B * windows per image, N, C)
        windows = self.attn(windows, mask=mask_matrix if shift > 0 else None)
        attended = window_reverse(windows.unflatten(1, (size, size)), size, Hp, Wp)
        if shift > 0:
            attended = torch.roll(attended, shifts=(shift, shift), dims=(1, 2))
        x = x + self.drop_path(attended[:, :H, :W].flatten(1, 2))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias for each distance of two positions (eq. 4)."""

    def __init__(
        self,
        dim: int,
        window_size: tuple[int, int],
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        """
        Args:
            window_size: (Wh, Ww).
        """
        super().__init__()
        self.dim = dim
        self.window_size = window_size
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        Wh, Ww = window_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * Wh - 1) * (2 * Ww - 1), num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Saved, as published weights hold it.
        self.register_buffer("relative_position_index", _relative_position_index(Wh, Ww))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (B * windows per image, N, C), the windows of an image one after the other.
            mask: (windows per image, N, N), added to the attention of each head.
        """
        num_windows, N, C = x.shape
        q, k, v = self.qkv(x).view(num_windows, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]  # (1, n, N, N)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(num_windows // mask.shape[0], 1, 1, 1)
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout, scale=self.scale)
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(num_windows, N, C)))


def _relative_position_index(Wh: int, Ww: int) -> Tensor:
    """Where in the table the bias of each pair of positions lies, (Wh * Ww, Wh * Ww)."""
    rows, columns = torch.meshgrid(torch.arange(Wh), torch.arange(Ww), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    row_distance = rows[:, None] - rows[None, :] + Wh - 1
    return row_distance * (2 * Ww - 1) + columns[:, None] - columns[None, :] + Ww - 1


class PatchEmbed(nn.Module):
    """Patches of an image as vectors; the image is padded to whole patches."""

    def __init__(
        self,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = None if norm_layer is None else norm_layer(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) to (B, embed_dim, H, W)."""
        height, width = x.shape[-2:]
        x = self.proj(F.pad(x, (0, -width % self.patch_size[1], 0, -height % self.patch_size[0])))
        if self.norm is not None:
            x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x


class PatchMerging(nn.Module):
    """Each 2 x 2 positions become one of twice the channels (sec. 3.1); odd maps are padded."""

    def __init__(self, dim: int, norm_layer: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.dim = dim
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(4 * dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """(B, H * W, C) to (B, ceil(H / 2) * ceil(W / 2), 2 C)."""
        if x.shape[1] != H * W:
            raise ValueError(f"PatchMerging got {x.shape[1]} positions, which is not {H} x {W}")
        x = F.pad(x.unflatten(1, (H, W)), (0, 0, 0, W % 2, 0, H % 2))
        # Down comes before right, as in published weights.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1).flatten(1, 2)))


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """(B, H, W, C), multiples of window_size, to (B * windows per image, window_size, window_size, C), row by row."""
    B, H, W, C = x.shape
    x = x.view(B, H // window_size, window_size, W // window_size, window_size, C)
    return x.transpose(2, 3).reshape(-1, window_size, window_size, C)


def window_reverse(windows: Tensor, window_size: int, H: int, W: int) -> Tensor:
    """Undo :func:`window_partition`: to (B, H, W, C)."""
    x = windows.view(-1, H // window_size, W // window_size, window_size, window_size, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, H, W, windows.shape[-1])
