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
from detlib.structures import Boxes
from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = ["ANCHOR_GENERATOR_REGISTRY", "BufferList", "DefaultAnchorGenerator", "build_anchor_generator"]

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Anchor generators, called as ``generator(cfg, input_shape)`` with the list of ``ShapeSpec`` of the feature maps.
"""


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build what ``cfg.MODEL.ANCHOR_GENERATOR.NAME`` names."""
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Axis-aligned anchors, the same set at every cell of a feature map."""

    box_dim: int = 4

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
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise ConfigError(f"MODEL.ANCHOR_GENERATOR.OFFSET is {offset}; it must be at least 0 and below 1.")
        self.strides = list(strides)
        self.num_features = len(self.strides)
        self.offset = offset
        sizes = _one_list_per_feature(sizes, self.num_features, "SIZES")
        aspect_ratios = _one_list_per_feature(aspect_ratios, self.num_features, "ASPECT_RATIOS")
        self.cell_anchors = BufferList([self.generate_cell_anchors(s, a) for s, a in zip(sizes, aspect_ratios)])

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

    def forward(self, features: list[Tensor]) -> list[Boxes]:
        """
        Args:
            features: L maps of shape (N, C, H, W).

        Returns:
            For each map the H * W * A anchors of one image, ordered as dense predictions of shape (N, H * W * A, ...).
        """
        return [
            Boxes(_grid_anchors(x.shape[-2:], stride, self.offset, cell_anchors))
            for x, stride, cell_anchors in zip(features, self.strides, self.cell_anchors)
        ]

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """Anchors centred on (0, 0): all aspect ratios of the first size, then those of the next.

        Returns:
            (len(sizes) * len(aspect_ratios), 4) boxes in XYXY format.
        """
        size = np.asarray(sizes, dtype=np.float64)[:, None]
        root = np.sqrt(np.asarray(aspect_ratios, dtype=np.float64))[None, :]
        half_wh = np.stack([size / root, size * root], axis=-1).reshape(-1, 2) / 2
        return torch.tensor(np.concatenate([-half_wh, half_wh], axis=1), dtype=torch.float32)


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


def _grid_anchors(grid_size: Sequence[int], stride: int, offset: float, cell_anchors: Tensor) -> Tensor:
    """Shift the (A, 4) anchors of one cell to all cells: (H * W * A, 4)."""
    height, width = grid_size
    x = (torch.arange(width, dtype=torch.float32, device=cell_anchors.device) + offset) * stride
    y = (torch.arange(height, dtype=torch.float32, device=cell_anchors.device) + offset) * stride
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)  # (H * W, 1, 4)
    return (shifts + cell_anchors).view(-1, 4)


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
