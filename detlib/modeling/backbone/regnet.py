"""RegNet (https://arxiv.org/abs/2003.13678): stages whose widths follow a line, quantised.

Shapes: N images; the output of the stage with stride s is (N, channels, H / s, W / s).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from detlib.config import CfgNode
from detlib.layers import CNNBlockBase, ShapeSpec, get_norm
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.build import BACKBONE_REGISTRY
from detlib.modeling.backbone.fpn import FPN, build_fpn
from detlib.utils.errors import ConfigError

__all__ = [
    "AnyNet",
    "RegNet",
    "ResBasicBlock",
    "ResBottleneckBlock",
    "ResStem",
    "SimpleStem",
    "VanillaBlock",
    "build_regnet_backbone",
    "build_regnet_fpn_backbone",
]


class AnyNet(Backbone):
    """A stem and stages s1, s2, ... of equal blocks b1, b2, ...; each stage has its own depth and width."""

    def __init__(
        self,
        *,
        stem_class: type[CNNBlockBase],
        stem_width: int,
        block_class: type[CNNBlockBase],
        depths: Sequence[int],
        widths: Sequence[int],
        group_widths: Sequence[int],
        strides: Sequence[int],
        bottleneck_ratios: Sequence[float],
        se_ratio: float,
        activation_class: Callable[[], nn.Module],
        freeze_at: int = 0,
        norm: str | Callable = "BN",
        out_features: list[str] | None = None,
    ) -> None:
        """
        Args:
            stem_class: SimpleStem, ResStem or another that takes (w_in, w_out, norm, activation_class).
            block_class: takes (w_in, w_out, stride, norm, activation_class, params).
            depths: blocks of each stage.
            widths: channels of each stage.
            group_widths: channels per group of its 3x3 convolutions.
            strides: of its first block.
            bottleneck_ratios: width of its 3x3 convolutions over that of the stage.
            se_ratio: width of squeeze-and-excitation over that of the block's input; 0 for none.
            activation_class: makes an activation.
            freeze_at: how many parts not to train, the stem being the first; see :meth:`freeze`.
            out_features: which of "stem", "s1", "s2", ... to return; by default the last one.
        """
        super().__init__()
        names = [f"s{i + 1}" for i in range(len(depths))]
        out_features = names[-1:] if out_features is None else list(out_features)
        _check_out_features(out_features, names)
        # Stages after the last wanted one are not built, so that nothing is loaded, saved or trained in vain.
        names = names[: max((names.index(f) + 1 for f in out_features if f in names), default=0)]

        self.stem = stem_class(3, stem_width, norm, activation_class)
        stride, channels = self.stem.stride, stem_width
        self._out_features = out_features
        self._out_feature_strides = {"stem": stride}
        self._out_feature_channels = {"stem": channels}
        self.stages_and_names: list[tuple[nn.Sequential, str]] = []
        options = zip(depths, widths, strides, bottleneck_ratios, group_widths)
        for name, (depth, width, first_stride, bottleneck_ratio, group_width) in zip(names, options):
            params = {"bot_mul": bottleneck_ratio, "group_w": group_width, "se_r": se_ratio}
            blocks = OrderedDict()
            for i in range(depth):
                block_stride = first_stride if i == 0 else 1
                blocks[f"b{i + 1}"] = block_class(channels, width, block_stride, norm, activation_class, params)
                channels = width
            stage = nn.Sequential(blocks)
            self.add_module(name, stage)
            self.stages_and_names.append((stage, name))
            stride *= first_stride
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = width
        self.apply(_init_weights)
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, 3, H, W).

        Returns:
            The wanted outputs by name.
        """
        if x.dim() != 4:
            raise ValueError(f"RegNet takes images of shape (N, C, H, W), got {tuple(x.shape)}")
        x = self.stem(x)
        outputs = {"stem": x}
        for stage, name in self.stages_and_names:
            x = stage(x)
            outputs[name] = x
        return {name: outputs[name] for name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> nn.Module:
        """Stop training of the first ``freeze_at`` parts (1: the stem, 2: s1 too) and freeze their norms."""
        if freeze_at >= 1:
            self.stem.freeze()
        for stage, _ in self.stages_and_names[: max(freeze_at - 1, 0)]:
            for block in stage:
                block.freeze()
        return self


class RegNet(AnyNet):
    """An AnyNet whose widths follow from four numbers (sec. 3.3)."""

    def __init__(
        self,
        *,
        stem_class: type[CNNBlockBase],
        stem_width: int,
        block_class: type[CNNBlockBase],
        depth: int,
        w_a: float,
        w_0: int,
        w_m: float,
        group_width: int,
        stride: int = 2,
        bottleneck_ratio: float = 1.0,
        se_ratio: float = 0.0,
        activation_class: Callable[[], nn.Module] | None = None,
        freeze_at: int = 0,
        norm: str | Callable = "BN",
        out_features: list[str] | None = None,
    ) -> None:
        """
        Args:
            depth: number of blocks, over all stages.
            w_a: slope of the width over the blocks.
            w_0: width of the first block, a multiple of 8.
            w_m: factor between widths, above 1; it decides where stages end.
            group_width: channels per group of the 3x3 convolutions.
            stride: of each stage.
            bottleneck_ratio: see AnyNet; of all stages, as are the others.
            activation_class: makes an activation, by default a ReLU.
        """
        widths, depths = _widths_and_depths(depth, w_a, w_0, w_m)
        num_stages = len(widths)
        pairs = [_fit_groups(width, bottleneck_ratio, group_width) for width in widths]
        super().__init__(
            stem_class=stem_class,
            stem_width=stem_width,
            block_class=block_class,
            depths=depths,
            widths=[width for width, _ in pairs],
            group_widths=[group for _, group in pairs],
            strides=[stride] * num_stages,
            bottleneck_ratios=[bottleneck_ratio] * num_stages,
            se_ratio=se_ratio,
            activation_class=_relu if activation_class is None else activation_class,
            freeze_at=freeze_at,
            norm=norm,
            out_features=out_features,
        )


class SimpleStem(CNNBlockBase):
    """A 3x3 convolution with stride 2."""

    def __init__(self, w_in: int, w_out: int, norm: str | Callable, activation_class: Callable[[], nn.Module]) -> None:
        super().__init__(w_in, w_out, 2)
        self.conv = _conv(w_in, w_out, 3, stride=2)
        self.bn = _norm(norm, w_out)
        self.af = activation_class()

    def forward(self, x: Tensor) -> Tensor:
        return self.af(self.bn(self.conv(x)))


class ResStem(CNNBlockBase):
    """The stem of ResNet: a 7x7 convolution and a 3x3 max-pooling, each with stride 2."""

    def __init__(self, w_in: int, w_out: int, norm: str | Callable, activation_class: Callable[[], nn.Module]) -> None:
        super().__init__(w_in, w_out, 4)
        self.conv = _conv(w_in, w_out, 7, stride=2)
        self.bn = _norm(norm, w_out)
        self.af = activation_class()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.af(self.bn(self.conv(x))))


class VanillaBlock(CNNBlockBase):
    """Two 3x3 convolutions without a shortcut."""

    def __init__(
        self,
        w_in: int,
        w_out: int,
        stride: int,
        norm: str | Callable,
        activation_class: Callable[[], nn.Module],
        _params: dict[str, Any],
    ) -> None:
        super().__init__(w_in, w_out, stride)
        self.a = _conv(w_in, w_out, 3, stride=stride)
        self.a_bn = _norm(norm, w_out)
        self.a_af = activation_class()
        self.b = _conv(w_out, w_out, 3)
        self.b_bn = _norm(norm, w_out)
        self.b_af = activation_class()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a_af(self.a_bn(self.a(x)))
        return self.b_af(self.b_bn(self.b(x)))


class ResBasicBlock(CNNBlockBase):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(
        self,
        w_in: int,
        w_out: int,
        stride: int,
        norm: str | Callable,
        activation_class: Callable[[], nn.Module],
        params: dict[str, Any],
    ) -> None:
        super().__init__(w_in, w_out, stride)
        self.proj, self.bn = _shortcut(w_in, w_out, stride, norm)
        layers = OrderedDict()
        layers["a"] = _conv(w_in, w_out, 3, stride=stride)
        layers["a_bn"] = _norm(norm, w_out)
        layers["a_af"] = activation_class()
        layers["b"] = _conv(w_out, w_out, 3)
        layers["b_bn"] = _norm(norm, w_out)
        self.f = nn.Sequential(layers)
        self.af = activation_class()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.proj is None else self.bn(self.proj(x))
        return self.af(shortcut + self.f(x))


class ResBottleneckBlock(CNNBlockBase):
    """1x1, grouped 3x3 and 1x1 convolutions beside a shortcut; with squeeze-and-excitation for RegNetY."""

    def __init__(
        self,
        w_in: int,
        w_out: int,
        stride: int,
        norm: str | Callable,
        activation_class: Callable[[], nn.Module],
        params: dict[str, Any],
    ) -> None:
        """
        Args:
            params: "bot_mul", width of the 3x3 convolution over w_out; "group_w", its channels per group; "se_r", width
                of squeeze-and-excitation over w_in, or 0.
        """
        super().__init__(w_in, w_out, stride)
        self.proj, self.bn = _shortcut(w_in, w_out, stride, norm)
        width = round(w_out * params["bot_mul"])
        layers = OrderedDict()
        layers["a"] = _conv(w_in, width, 1)
        layers["a_bn"] = _norm(norm, width)
        layers["a_af"] = activation_class()
        layers["b"] = _conv(width, width, 3, stride=stride, groups=width // params["group_w"])
        layers["b_bn"] = _norm(norm, width)
        layers["b_af"] = activation_class()
        if params["se_r"]:
            layers["se"] = _SqueezeExcitation(width, round(w_in * params["se_r"]), activation_class)
        layers["c"] = _conv(width, w_out, 1)
        layers["c_bn"] = _norm(norm, w_out)
        self.f = nn.Sequential(layers)
        self.af = activation_class()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.proj is None else self.bn(self.proj(x))
        return self.af(shortcut + self.f(x))


class _SqueezeExcitation(nn.Module):
    """Scale each channel by what the mean of all channels says (https://arxiv.org/abs/1709.01507)."""

    def __init__(self, channels: int, hidden: int, activation_class: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d((1, 1))
        self.f_ex = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), activation_class(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.f_ex(self.avg_pool(x))


@BACKBONE_REGISTRY.register()
def build_regnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RegNet:
    """A RegNet as ``cfg.MODEL.REGNET`` and ``cfg.MODEL.BACKBONE.FREEZE_AT`` say."""
    if input_shape.channels != 3:
        raise ConfigError(f"a RegNet takes images of 3 channels, but MODEL.PIXEL_MEAN has {input_shape.channels}")
    options = {key.lower(): value for key, value in cfg.MODEL.REGNET.items()}
    options["stem_class"] = _class("STEM_CLASS", options["stem_class"], SimpleStem, ResStem)
    options["block_class"] = _class(
        "BLOCK_CLASS", options["block_class"], ResBottleneckBlock, ResBasicBlock, VanillaBlock
    )
    return RegNet(**options, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_regnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """RegNet with the feature pyramid of ``cfg.MODEL.FPN``."""
    return build_fpn(cfg, build_regnet_backbone(cfg, input_shape))


def _class(key: str, name: str, *choices: type[CNNBlockBase]) -> type[CNNBlockBase]:
    for choice in choices:
        if choice.__name__ == name:
            return choice
    known = ", ".join(choice.__name__ for choice in choices)
    raise ConfigError(f"MODEL.REGNET.{key} is {name!r}; it must be one of {known}.")


def _widths_and_depths(depth: int, w_a: float, w_0: int, w_m: float) -> tuple[list[int], list[int]]:
    """Width and number of blocks of each stage (eq. 2 to 4)."""
    if w_a < 0 or w_0 <= 0 or w_m <= 1 or w_0 % 8:
        raise ConfigError(
            f"MODEL.REGNET has W_A {w_a}, W_0 {w_0}, W_M {w_m}; W_A must be >= 0, W_0 a multiple of 8, W_M > 1."
        )
    linear = w_0 + w_a * np.arange(depth)
    exponents = np.round(np.log(linear / w_0) / math.log(w_m))
    widths = (np.round(w_0 * np.power(w_m, exponents) / 8) * 8).astype(int)
    widths, depths = np.unique(widths, return_counts=True)
    return widths.tolist(), depths.tolist()


def _fit_groups(width: int, bottleneck_ratio: float, group_width: int) -> tuple[int, int]:
    """The nearest width whose bottleneck divides into groups, and the width of a group."""
    bottleneck = max(1, int(width * bottleneck_ratio))
    group_width = min(group_width, bottleneck)
    # With more channels in the bottleneck than outside, both have to come out even.
    multiple = math.lcm(group_width, int(bottleneck_ratio)) if bottleneck_ratio > 1 else group_width
    bottleneck = max(multiple, round(bottleneck / multiple) * multiple)
    return int(bottleneck / bottleneck_ratio), group_width


def _check_out_features(out_features: list[str], stages: list[str]) -> None:
    unknown = [name for name in out_features if name not in ("stem", *stages)]
    if unknown or not out_features:
        raise ConfigError(
            f"MODEL.REGNET.OUT_FEATURES is {out_features}; it must name at least one of {', '.join(['stem', *stages])}."
        )


def _conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=False
    )


def _norm(norm: str | Callable, channels: int) -> nn.Module:
    layer = get_norm(norm, channels)
    return nn.Identity() if layer is None else layer


def _shortcut(w_in: int, w_out: int, stride: int, norm: str | Callable) -> tuple[nn.Module | None, nn.Module | None]:
    """A projection and its norm where the shape changes, else nothing."""
    if w_in == w_out and stride == 1:
        return None, None
    return _conv(w_in, w_out, 1, stride=stride), _norm(norm, w_out)


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)


def _init_weights(module: nn.Module) -> None:
    # Norms start as the identity by themselves.
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
