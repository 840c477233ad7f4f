"""Path aggregation: a feature pyramid with a second pass, from fine to coarse (PANet, https://arxiv.org/abs/1803.01534).

Shapes: N images, L input maps, finest first; the level p<k> has stride 2^k and is (N, out_channels, H / 2^k, W / 2^k).
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from detlib.layers import ShapeSpec
from detlib.modeling.neck.build import NECK_REGISTRY
from detlib.modeling.neck.pyramid import conv, pyramid_shape, select_maps
from detlib.utils.errors import ConfigError

__all__ = ["PAFPN"]

_SOURCES = ("on_input", "on_lateral", "on_output")


@NECK_REGISTRY.register()
class PAFPN(nn.Module):
    """An FPN whose levels are joined once more on the way back up: coarse ones see fine detail after few layers.

    The way up adds maps that have not yet passed their last convolution, and has no ReLU of its own; sec. 3.1 has the
    finished maps and a ReLU after each convolution. It is what configs for mmdetection mean by the name. Their
    ``start_level`` and ``end_level`` are the ends of ``in_features`` here.
    """

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        in_features: list[str] | None = None,
        out_channels: int = 256,
        num_outs: int = 5,
        add_extra_convs: str = "",
        relu_before_extra_convs: bool = False,
        norm: str | Callable[[int], nn.Module] = "",
        activation: str = "",
        no_norm_on_lateral: bool = False,
    ) -> None:
        """
        Args:
            input_shape: of the maps given to :meth:`forward`, by name.
            in_features: the L maps to build on, finest first, each with twice the stride of the one before; None for
                all.
            out_channels: of every level.
            num_outs: L or more levels; those beyond L are made of coarser ones.
            add_extra_convs: makes them by convolutions of stride 2, the first of the coarsest input map ("on_input"),
                of the same after its 1x1 convolution ("on_lateral") or of the level before ("on_output"), the others of
                the level before. "" subsamples the level before.
            relu_before_extra_convs: apply a ReLU before each such convolution but the first.
            norm: after each convolution, see :func:`get_norm`.
            activation: after each convolution: "ReLU", "LeakyReLU", "GELU", "SiLU" or "" for none.
            no_norm_on_lateral: leave the norm out after the 1x1 convolutions.
        """
        super().__init__()
        self.in_features, shapes = select_maps(input_shape, in_features)
        self._output_shape = pyramid_shape(shapes, out_channels, num_outs)
        _check_extra_convs(add_extra_convs, relu_before_extra_convs)
        self.add_extra_convs = add_extra_convs
        self.relu_before_extra_convs = relu_before_extra_convs
        self.size_divisibility = shapes[-1].stride

        def convs(count: int, stride: int = 1) -> nn.ModuleList:
            return nn.ModuleList(conv(out_channels, out_channels, 3, stride, norm, activation) for _ in range(count))

        lateral_norm = "" if no_norm_on_lateral else norm
        self.lateral_convs = nn.ModuleList(
            conv(shape.channels, out_channels, 1, norm=lateral_norm, activation=activation) for shape in shapes
        )
        self.fpn_convs = convs(len(shapes))
        self.downsample_convs = convs(len(shapes) - 1, stride=2)
        self.pafpn_convs = convs(len(shapes) - 1)
        self.num_extra_levels = num_outs - len(shapes)
        self.extra_convs = convs(self.num_extra_levels if add_extra_convs else 0, stride=2)
        if add_extra_convs == "on_input" and self.extra_convs:
            self.extra_convs[0] = conv(shapes[-1].channels, out_channels, 3, 2, norm, activation)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """
        Args:
            x: maps (N, C, H / stride, W / stride) by name, sizes rounded up where they are not whole.

        Returns:
            The levels by name, finest first.
        """
        maps = [x[name] for name in self.in_features]
        merged = [lateral_conv(feature_map) for lateral_conv, feature_map in zip(self.lateral_convs, maps)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:], mode="nearest")
        lateral = merged[-1]  # Nothing is added to the coarsest.

        merged = [fpn_conv(level) for fpn_conv, level in zip(self.fpn_convs, merged)]
        for i, downsample_conv in enumerate(self.downsample_convs):
            merged[i + 1] = merged[i + 1] + downsample_conv(merged[i])
        levels = [merged[0], *(pafpn_conv(level) for pafpn_conv, level in zip(self.pafpn_convs, merged[1:]))]

        sources = {"on_input": maps[-1], "on_lateral": lateral, "on_output": levels[-1]}
        for i in range(self.num_extra_levels):
            if not self.add_extra_convs:
                level = F.max_pool2d(levels[-1], kernel_size=1, stride=2)
            elif i == 0:
                level = self.extra_convs[0](sources[self.add_extra_convs])
            else:
                level = self.extra_convs[i](F.relu(levels[-1]) if self.relu_before_extra_convs else levels[-1])
            levels.append(level)
        return dict(zip(self._output_shape, levels))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every level."""
        return dict(self._output_shape)


def _check_extra_convs(add_extra_convs: str, relu_before_extra_convs: bool) -> None:
    if add_extra_convs not in ("", *_SOURCES):
        raise ConfigError(
            f"MODEL.NECK.ADD_EXTRA_CONVS is {add_extra_convs!r}; it must be one of {', '.join(_SOURCES)}, or '' to "
            f"subsample."
        )
    if relu_before_extra_convs and not add_extra_convs:
        raise ConfigError(
            f"MODEL.NECK.RELU_BEFORE_EXTRA_CONVS has no convolutions to come before; set MODEL.NECK.ADD_EXTRA_CONVS to "
            f"one of {', '.join(_SOURCES)}."
        )
