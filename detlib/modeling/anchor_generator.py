"""Anchors: reference boxes at every cell of every feature map (Faster R-CNN, arXiv:1506.01497, sec. 3.1.1).

Shapes: L feature maps, H x W cells in one of them, A anchors at each cell.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec
from detlib.structures import Boxes, RotatedBoxes
from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = [
    "ANCHOR_GENERATOR_REGISTRY",
    "BufferList",
    "DefaultAnchorGenerator",
    "RotatedAnchorGenerator",
    "build_anchor_generator",
]

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Anchor generators, called as ``generator(cfg, input_shape)`` with the list of ``ShapeSpec`` of the feature maps.
"""


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build what ``cfg.MODEL.ANCHOR_GENERATOR.NAME`` names."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)


class _AnchorsAtEveryCell(nn.Module):
    """The same set of anchors at every cell of a feature map; ``generate_cell_anchors`` makes the set."""

    box_type: type[Boxes] | type[RotatedBoxes]

    def __init__(self, strides: Sequence[int], offset: float, **options: Sequence[Any]) -> None:
        """
        Args:
            options: arguments of ``generate_cell_anchors`` in their order, each a list for every map or one for all.
        """
        super().__init__()
        _check_offset(offset)
        self.strides = list(strides)
        self.num_features = len(self.strides)
        self.offset = offset
        lists = [_one_list_per_feature(value, self.num_features, name.upper()) for name, value in options.items()]
        self.cell_anchors = BufferList([self.generate_cell_anchors(*of_feature) for of_feature in zip(*lists)])

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return {
            "sizes": cfg.MODEL.ANCHOR_GENERATOR.SIZES,
            "aspect_ratios": cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
            "strides": [x.stride for x in input_shape],
            "offset": cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
        }

    @property
    def num_anchors(self) -> list[int]:
        """A for each feature map."""
        return [len(anchors) for anchors in self.cell_anchors]

    @property
    def num_cell_anchors(self) -> list[int]:
        """The same as :attr:`num_anchors`."""
        return self.num_anchors

    def forward(self, features: list[Tensor]) -> list[Boxes] | list[RotatedBoxes]:
        """
        Args:
            features: L maps of shape (N, C, H, W).

        Returns:
            For each map the H * W * A anchors of one image, ordered as dense predictions of shape (N, H * W * A, ...).
        """
        return [
            self.box_type(_grid_anchors(x.shape[-2:], stride, self.offset, cell_anchors))
            for x, stride, cell_anchors in zip(features, self.strides, self.cell_anchors)
        ]


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(_AnchorsAtEveryCell):
    """Axis-aligned anchors, the same set at every cell of a feature map."""

    box_dim: int = 4
    box_type = Boxes

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]] | Sequence[float],
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float],
        strides: Sequence[int],
        offset: float = 0.5,
    ) -> None:
        """
        Args:
            sizes: for each feature map, the square roots of the anchors' areas in pixels; one list serves all maps.
            aspect_ratios: for each feature map, height over width; one list serves all maps.
            strides: of each feature map, in pixels.
            offset: of the first anchor's centre from the image's corner, in strides, in [0, 1). With 0.5 the centres
                are those of the cells; configs of the zoo use 0.
        """
        super().__init__(strides, offset, sizes=sizes, aspect_ratios=aspect_ratios)

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """Anchors centred on (0, 0): all aspect ratios of the first size, then those of the next.

        Returns:
            (len(sizes) * len(aspect_ratios), 4) boxes in XYXY format.
        """
        half_wh = _widths_and_heights(sizes, aspect_ratios) / 2
        return torch.tensor(np.concatenate([-half_wh, half_wh], axis=1), dtype=torch.float32)


@ANCHOR_GENERATOR_REGISTRY.register()
class RotatedAnchorGenerator(_AnchorsAtEveryCell):
    """Rotated anchors, the same set at every cell of a feature map (RRPN, arXiv:1703.01086, sec. III-C)."""

    box_dim: int = 5
    box_type = RotatedBoxes

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]] | Sequence[float],
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float],
        strides: Sequence[int],
        angles: Sequence[Sequence[float]] | Sequence[float],
        offset: float = 0.5,
    ) -> None:
        """
        Args:
            sizes: for each feature map, the square roots of the anchors' areas in pixels; one list serves all maps.
            aspect_ratios: for each feature map, height over width; one list serves all maps.
            strides: of each feature map, in pixels.
            angles: for each feature map, in degrees, counter-clockwise; one list serves all maps.
            offset: of the first anchor's centre from the image's corner, in strides, in [0, 1).
        """
        super().__init__(strides, offset, sizes=sizes, aspect_ratios=aspect_ratios, angles=angles)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), "angles": cfg.MODEL.ANCHOR_GENERATOR.ANGLES}

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
        angles: Sequence[float] = (-90, -60, -30, 0, 30, 60, 90),
    ) -> Tensor:
        """Anchors centred on (0, 0): all angles of the first aspect ratio of the first size, then those of the next.

        Returns:
            (len(sizes) * len(aspect_ratios) * len(angles), 5) boxes as centre x, centre y, width, height, angle.
        """
        wh = _widths_and_heights(sizes, aspect_ratios)
        angle = np.tile(np.asarray(angles, dtype=np.float64), len(wh))[:, None]
        wh = wh.repeat(len(angles), axis=0)
        return torch.tensor(np.concatenate([np.zeros_like(wh), wh, angle], axis=1), dtype=torch.float32)


class BufferList(nn.Module):
    """Tensors that follow their module to a device and stay out of its ``state_dict``."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        super().__init__()
        for i, buffer in enumerate(buffers):
            self.register_buffer(str(i), buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self):
        return iter(self._buffers.values())


def _widths_and_heights(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> np.ndarray:
    """(len(sizes) * len(aspect_ratios), 2): all aspect ratios, height over width, of the first size, then the next."""
    size = np.asarray(sizes, dtype=np.float64)[:, None]
    root = np.sqrt(np.asarray(aspect_ratios, dtype=np.float64))[None, :]
    return np.stack([size / root, size * root], axis=-1).reshape(-1, 2)


def _grid_anchors(grid_size: Sequence[int], stride: int, offset: float, cell_anchors: Tensor) -> Tensor:
    """Shift the (A, 4 or 5) anchors of one cell to all cells: (H * W * A, 4 or 5)."""
    height, width = grid_size
    x = (torch.arange(width, dtype=torch.float32, device=cell_anchors.device) + offset) * stride
    y = (torch.arange(height, dtype=torch.float32, device=cell_anchors.device) + offset) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    if cell_anchors.shape[1] == 4:
        shifts = torch.stack([x, y, x, y], dim=-1)  # (H, W, 4)
    else:
        zero = torch.zeros_like(x)
        shifts = torch.stack([x, y, zero, zero, zero], dim=-1)  # (H, W, 5)
    return (shifts.flatten(0, 1)[:, None] + cell_anchors).flatten(0, 1)


def _check_offset(offset: float) -> None:
    if not 0.0 <= offset < 1.0:
        raise ConfigError(f"MODEL.ANCHOR_GENERATOR.OFFSET is {offset}; it must be at least 0 and below 1.")


def _one_list_per_feature(values: Sequence, num_features: int, key: str) -> list[Sequence[float]]:
    if not isinstance(values, Sequence) or not len(values):
        raise ConfigError(f"MODEL.ANCHOR_GENERATOR.{key} is {values!r}; it must be a list of lists of numbers.")
    if not isinstance(values[0], Sequence):
        values = [values]
    if len(values) == 1:
        return list(values) * num_features
    if len(values) != num_features:
        raise ConfigError(
            f"MODEL.ANCHOR_GENERATOR.{key} has {len(values)} lists for {num_features} feature maps; "
            f"give one list for all maps, or {num_features}."
        )
    return list(values)
