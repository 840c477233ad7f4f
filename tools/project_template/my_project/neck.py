"""A neck: one feature map out of several.

Shapes: N images of H x W pixels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from detlib.layers import ShapeSpec
from detlib.modeling import NECK_REGISTRY

__all__ = ["MyProjectNeck"]


@NECK_REGISTRY.register()
class MyProjectNeck(nn.Module):
    """All maps, brought to the size of the finest one and added, under the name that an FPN would give the result."""

    def __init__(self, input_shape: dict[str, ShapeSpec], out_channels: int = 64) -> None:
        """
        Args:
            input_shape: of the backbone's maps, finest first.
            out_channels: of the map that comes out.
        """
        super().__init__()
        self.laterals = nn.ModuleDict({name: nn.Conv2d(s.channels, out_channels, 1) for name, s in input_shape.items()})
        self.output = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self._stride = min(shape.stride for shape in input_shape.values())
        self._name = f"p{self._stride.bit_length() - 1}"  # p3 for a stride of 8

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """From maps (N, C_i, H / s_i, W / s_i) by name to one of (N, out_channels, H / s, W / s), s being the least."""
        maps = [lateral(features[name]) for name, lateral in self.laterals.items()]
        size = max(x.shape[-2:] for x in maps)
        return {self._name: self.output(sum(F.interpolate(x, size=size) for x in maps))}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {self._name: ShapeSpec(channels=self.output.out_channels, stride=self._stride)}
