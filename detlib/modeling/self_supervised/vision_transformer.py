"""The plain vision transformer (https://arxiv.org/abs/2010.11929) that MAE, MoCo v3 and CAE pre-train.

Its weights have the names of :class:`detlib.modeling.ViT`, which detectors use.
Shapes: N images, L patches, T tokens, D channels, n heads of d channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from detlib.modeling.backbone import Backbone, get_vit_lr_decay_rate
from detlib.modeling.backbone.utils import Mlp, PatchEmbed, get_abs_pos
from detlib.utils.errors import ConfigError, DatasetError

__all__ = ["TransformerBlock", "VisionTransformer", "init_xavier", "sin_cos_positions"]

NORM_EPS = 1e-6


class VisionTransformer(Backbone):
    """Class token and patches with fixed sine-cosine positions, pre-norm blocks, and a norm at the end."""

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        k_bias: bool = True,
        layer_scale: float = 0.0,
        drop_path_rate: float = 0.0,
        column_first: bool = False,
        use_act_checkpoint: bool = False,
        out_features: Sequence[str] = ("last_feat",),
    ) -> None:
        """
        Args:
            img_size: side of the images in pre-training.
            k_bias: see :class:`TransformerBlock`; layer_scale too.
            drop_path_rate: of the last block; the first has 0, those between lie on a line.
            column_first: layout of the positions, see :func:`sin_cos_positions`.
            use_act_checkpoint: compute blocks again in the backward pass, to save memory.
            out_features: "last_feat", the map of the patches, and "cls_token", in the order wanted.
        """
        super().__init__()
        if img_size % patch_size:
            raise ConfigError(f"MODEL.BACKBONE.IMG_SIZE {img_size} is no multiple of PATCH_SIZE {patch_size}")
        if not out_features or not set(out_features) <= {"last_feat", "cls_token"}:
            raise ConfigError(
                f"MODEL.BACKBONE.OUT_FEATURES is {list(out_features)}; choose from last_feat and cls_token"
            )
        self.use_act_checkpoint = use_act_checkpoint
        self.patch_size = patch_size
        self.grid_size = img_size // patch_size
        self.num_patches = self.grid_size**2
        self.patch_embed = PatchEmbed(
            (patch_size, patch_size), (patch_size, patch_size), (0, 0), in_channels, embed_dim
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        # A saved buffer, as it is no parameter here, but in detectors.
        self.register_buffer("pos_embed", sin_cos_positions(embed_dim, self.grid_size, column_first)[None])
        self.blocks = nn.ModuleList(
            TransformerBlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                k_bias=k_bias,
                layer_scale=layer_scale,
                drop_path=drop_path_rate * i / max(depth - 1, 1),
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self._out_features = list(out_features)
        self._out_feature_channels = {"last_feat": embed_dim, "cls_token": embed_dim}
        self._out_feature_strides = {"last_feat": patch_size, "cls_token": None}
        self.apply(init_xavier)
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.view(embed_dim, -1))
        nn.init.zeros_(self.patch_embed.proj.bias)
        nn.init.normal_(self.cls_token, std=0.02)

    @property
    def size_divisibility(self) -> int:
        return self.patch_size

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, in_channels, H, W), multiples of the patch size; positions are interpolated.

        Returns:
            ``last_feat`` (N, D, H / patch_size, W / patch_size) and ``cls_token`` (N, D), of them those wanted.
        """
        tokens = self.encode(self.embed(x))
        grid = (x.shape[2] // self.patch_size, x.shape[3] // self.patch_size)
        maps = {"cls_token": tokens[:, 0], "last_feat": tokens[:, 1:].transpose(1, 2).unflatten(2, grid)}
        return {name: maps[name] for name in self._out_features}

    def embed(self, images: Tensor) -> Tensor:
        """Patches with their positions, row by row: (N, L, D).

        Raises:
            DatasetError: the patch size does not divide height or width.
        """
        if images.shape[2] % self.patch_size or images.shape[3] % self.patch_size:
            raise DatasetError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels do not fall into whole patches of "
                f"{self.patch_size}; let INPUT give multiples of MODEL.BACKBONE.PATCH_SIZE"
            )
        x = self.patch_embed(images)  # (N, H / patch_size, W / patch_size, D)
        return (x + get_abs_pos(self.pos_embed, True, x.shape[1:3])).flatten(1, 2)

    def encode(self, tokens: Tensor) -> Tensor:
        """Any of the patches (N, T, D), behind the class token: (N, 1 + T, D), normalised."""
        cls_token = self.cls_token + self.pos_embed[:, :1]
        x = torch.cat([cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        recompute = self.use_act_checkpoint and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.norm(x)

    def lr_factor(self, name: str, decay: float) -> float:
        """As that of :class:`detlib.modeling.ViT`; the class token is as deep as the patches."""
        name = "pos_embed" if name == "cls_token" else name
        return get_vit_lr_decay_rate(f"backbone.net.{name}", decay, len(self.blocks))


class TransformerBlock(nn.Module):
    """Attention and an MLP, each normalised before and added to its input."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        k_bias: bool = True,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        """
        Args:
            k_bias: whether keys have a bias, as queries and values have. It does not change what attention gives
                (BEiT, arXiv:2106.08254).
            layer_scale: what the learned factors of both branches start with; 0 for no factors.
            drop_path: rate at which an image skips a branch.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = _Attention(dim, num_heads, k_bias)
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None
        self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        """From (N, T, dim) to (N, T, dim)."""
        x = x + self.drop_path(_scaled(self.attn(self.norm1(x)), self.gamma_1))
        return x + self.drop_path(_scaled(self.mlp(self.norm2(x)), self.gamma_2))


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else gamma * x


class _Attention(nn.Module):
    """Multi-head attention among the tokens of an image."""

    def __init__(self, dim: int, num_heads: int, k_bias: bool) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"{num_heads} heads do not divide {dim} channels; see EMBED_DIM and NUM_HEADS")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=k_bias)
        self.q_bias = None if k_bias else nn.Parameter(torch.zeros(dim))
        self.v_bias = None if k_bias else nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.qkv.weight, self._bias())
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, n, T, d)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _bias(self) -> Tensor:
        if self.q_bias is None:
            return self.qkv.bias
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])


def sin_cos_positions(dim: int, grid_size: int, column_first: bool = False) -> Tensor:
    """Fixed positions of a class token, all 0, and of the patches of a square, row by row: (1 + grid_size^2, dim).

    A patch has [sin(row w), cos(row w), sin(column w), cos(column w)], each of dim / 4 with w_k = 10000^(-4k / dim)
    (MoCo v3, arXiv:2104.02057, sec. 3).

    Args:
        column_first: put those of the column first, as in the weights of MAE.
    """
    if dim % 4:
        raise ConfigError(f"sine-cosine positions need a multiple of 4 channels; got {dim}. See EMBED_DIM")
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid_size, dim / 2)
    rows = waves[:, None].expand(-1, grid_size, -1)
    columns = waves[None].expand(grid_size, -1, -1)
    positions = torch.cat([columns, rows] if column_first else [rows, columns], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros(1, dim), positions.float()])


def init_xavier(module: nn.Module) -> None:
    """Linear layers Xavier-uniform with biases of 0 (MAE, arXiv:2111.06377, app. A); for ``apply``."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
