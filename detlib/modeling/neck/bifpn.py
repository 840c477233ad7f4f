"""The weighted bi-directional feature pyramid of EfficientDet (https://arxiv.org/abs/1911.09070, sec. 3).

Shapes: N images, L input maps, P levels, finest first; p<k> has stride 2^k and is (N, out_channels, H / 2^k, W / 2^k).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlib.layers import DepthwiseSeparableConv2d, ShapeSpec
from detlib.modeling.neck.build import NECK_REGISTRY
from detlib.modeling.neck.pyramid import conv, pyramid_shape, select_maps
from detlib.utils.errors import ConfigError

__all__ = ["BiFPN", "fast_normalized_fusion"]


def fast_normalized_fusion(maps: list[Tensor], weights: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Mean of M maps of one shape with learned weights: sum_i w_i x_i / (epsilon + sum_j w_j), w = relu(weights).

    EfficientDet, sec. 3.3.

    Args:
        weights: (M).
    """
    weights = weights.relu()
    weights = weights / (weights.sum() + epsilon)
    return sum(weight * x for weight, x in zip(weights.unbind(), maps, strict=True))


@NECK_REGISTRY.register()
class BiFPN(nn.Module):
    """Levels joined from coarse to fine and back, several times, each time with a weight for every map that is joined.

    Maps are halved by max-pooling and doubled by repetition; each joined map passes a depthwise separable convolution,
    its norm and a swish.
    """

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        in_features: list[str] | None = None,
        out_channels: int = 64,
        num_outs: int = 5,
        num_layers: int = 3,
        norm: str | Callable[[int], nn.Module] = "BN",
        epsilon: float = 1e-4,
    ) -> None:
        """Build the neck; the defaults are those of EfficientDet-D0.

        Args:
            input_shape: of the maps given to :meth:`forward`, by name.
            in_features: the L maps to build on, finest first, each with twice the stride of the one before; None for
                all.
            out_channels: of every level.
            num_outs: P, L or more; the levels beyond L are made of the coarsest map.
            num_layers: how many times levels are joined both ways.
            norm: after each convolution, see :func:`get_norm`.
            epsilon: see :func:`fast_normalized_fusion`.
        """
        super().__init__()
        self.in_features, shapes = select_maps(input_shape, in_features)
        self._output_shape = pyramid_shape(shapes, out_channels, num_outs)
        if num_outs < 2 or num_layers < 1:
            raise ConfigError(
                f"BiFPN joins levels, and MODEL.NECK.NUM_OUTS is {num_outs} and NUM_LAYERS {num_layers}; set NUM_OUTS "
                f"to 2 or more and NUM_LAYERS to 1 or more."
            )
        self.size_divisibility = shapes[-1].stride
        self.lateral_convs = nn.ModuleList(conv(shape.channels, out_channels, 1, norm=norm) for shape in shapes)
        self.num_extra_levels = num_outs - len(shapes)
        if self.num_extra_levels > 0:
            self.extra_conv = conv(shapes[-1].channels, out_channels, 1, norm=norm)
        self.layers = nn.Sequential(*(_Layer(num_outs, out_channels, norm, epsilon) for _ in range(num_layers)))

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        Args:
            x: maps (N, C, H / stride, W / stride) by name, sizes rounded up where they are not whole.

        Returns:
            The levels by name, finest first.
        """
        maps = [x[name] for name in self.in_features]
        levels = [lateral_conv(feature_map) for lateral_conv, feature_map in zip(self.lateral_convs, maps)]
        for i in range(self.num_extra_levels):
            levels.append(_halve(self.extra_conv(maps[-1]) if i == 0 else levels[-1]))
        return dict(zip(self._output_shape, self.layers(levels)))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every level."""
        return dict(self._output_shape)


class _Layer(nn.Module):
    """Both ways once (fig. 2 d): levels between the ends are joined on each, and on the way up with their input too."""

    def __init__(self, num_levels: int, channels: int, norm: str | Callable[[int], nn.Module], epsilon: float) -> None:
        super().__init__()

        def node(num_maps: int) -> _Node:
            return _Node(num_maps, channels, norm, epsilon)

        self.down = nn.ModuleList(node(2) for _ in range(num_levels - 2))  # Of the levels between the ends.
        self.up = nn.ModuleList([node(2), *(node(3) for _ in range(num_levels - 2)), node(2)])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        joined = list(levels)  # On the way down; the coarsest has nothing above it.
        for i in range(len(levels) - 2, 0, -1):
            joined[i] = self.down[i - 1]([levels[i], _enlarge(joined[i + 1], levels[i])])
        outputs = [self.up[0]([levels[0], _enlarge(joined[1], levels[0])])]
        for i in range(1, len(levels) - 1):
            outputs.append(self.up[i]([levels[i], joined[i], _halve(outputs[-1])]))
        outputs.append(self.up[-1]([levels[-1], _halve(outputs[-1])]))
        return outputs


class _Node(nn.Module):
    """Join maps of one shape and convolve the result."""

    def __init__(self, num_maps: int, channels: int, norm: str | Callable[[int], nn.Module], epsilon: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_maps))
        self.epsilon = epsilon
        self.conv = DepthwiseSeparableConv2d(channels, channels, norm2=norm, activation2=nn.SiLU())

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv(fast_normalized_fusion(maps, self.weights, self.epsilon))


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    """Repeat cells, to the size of a map that is twice as large."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def _halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
