"""MobileNet (https://arxiv.org/abs/1704.04861) and MobileNetV2 (https://arxiv.org/abs/1801.04381).

Shapes: N images; the output of the part with stride s is (N, channels, ceil(H / s), ceil(W / s)).
"""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detlib.layers import CNNBlockBase, Conv2d, get_norm
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.build import BACKBONE_REGISTRY
from detlib.modeling.backbone.norm_eval import eval_batch_norms
from detlib.utils.errors import ConfigError

__all__ = ["DepthwiseSeparableBlock", "InvertedResidual", "MobileNet", "MobileNetV2"]

Norm = str | Callable[[int], nn.Module]
Activation = Callable[[Tensor], Tensor]

# MobileNet, table 1: channels and stride of each block. The first block belongs to the stem.
_V1_BLOCKS = {
    "stem": [(64, 1)],
    "res2": [(128, 2), (128, 1)],
    "res3": [(256, 2), (256, 1)],
    "res4": [(512, 2)] + [(512, 1)] * 5,
    "res5": [(1024, 2), (1024, 1)],
}

# MobileNetV2, table 2: expansion, channels, number of blocks, stride of the first one.
_V2_STAGES = {
    "stage1": (1, 16, 1, 1),
    "stage2": (6, 24, 2, 2),
    "stage3": (6, 32, 3, 2),
    "stage4": (6, 64, 4, 2),
    "stage5": (6, 96, 3, 1),
    "stage6": (6, 160, 3, 2),
    "stage7": (6, 320, 1, 1),
}


class _PartsInARow(Backbone):
    """Parts that work one after the other, each a row of blocks; those after the last wanted one are dropped."""

    def __init__(
        self, parts: dict[str, list[CNNBlockBase]], out_features: Sequence[str], freeze_at: int, norm_eval: bool
    ) -> None:
        super().__init__()
        _check_out_features(type(self).__name__, out_features, list(parts))
        names = list(parts)
        self.part_names = tuple(names[: max(names.index(name) for name in out_features) + 1])
        self._out_features = list(out_features)
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}
        stride = 1
        for name in self.part_names:
            for block in parts[name]:
                stride *= block.stride
            self.add_module(name, nn.Sequential(*parts[name]))
            self._out_feature_channels[name] = parts[name][-1].out_channels
            self._out_feature_strides[name] = stride
        self.norm_eval = norm_eval
        self.freeze(freeze_at)
        self.train()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, C, H, W).

        Returns:
            The wanted outputs by name.
        """
        if x.dim() != 4:
            raise ValueError(f"{type(self).__name__} takes images of shape (N, C, H, W), got {tuple(x.shape)}")
        outputs = {}
        for name in self.part_names:
            x = self.get_submodule(name)(x)
            outputs[name] = x
        return {name: outputs[name] for name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> nn.Module:
        """Stop training of the first ``freeze_at`` parts (1: the stem, 2: the next too) and freeze their norms."""
        for name in self.part_names[: max(freeze_at, 0)]:
            for block in self.get_submodule(name):
                block.freeze()
        return self

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode of all but, with ``norm_eval``, batch norms."""
        super().train(mode)
        if self.norm_eval:
            eval_batch_norms(self)
        return self


@BACKBONE_REGISTRY.register()
class MobileNet(_PartsInARow):
    """MobileNet: a 3x3 convolution and 13 depthwise-separable ones.

    The output "stem" has stride 2, "res2" to "res5" have strides 4 to 32.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width_mult: float = 1.0,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        norm: Norm = "BN",
        norm_eval: bool = False,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            width_mult: factor on all channels, which are rounded to multiples of 8.
            out_features: which of "stem", "res2", ..., "res5" to return.
            norm_eval: keep batch norms in evaluation mode.
            freeze_at: how many parts not to train, the stem being the first; see :meth:`freeze`.
        """
        _check_width(width_mult)
        channels = _scaled(32, width_mult)
        parts: dict[str, list[CNNBlockBase]] = {"stem": [ConvBlock(in_channels, channels, 3, 2, norm, F.relu_)]}
        for name, blocks in _V1_BLOCKS.items():
            for width, stride in blocks:
                out_channels = _scaled(width, width_mult)
                block = DepthwiseSeparableBlock(channels, out_channels, stride=stride, norm=norm)
                parts.setdefault(name, []).append(block)
                channels = out_channels
        super().__init__(parts, out_features, freeze_at, norm_eval)


@BACKBONE_REGISTRY.register()
class MobileNetV2(_PartsInARow):
    """MobileNetV2: a 3x3 convolution, inverted residuals in 7 stages, and a 1x1 convolution.

    Strides of "stage1" to "stage7" are 2, 4, 8, 16, 16, 32, 32; that of "stem" is 2, that of "conv_out" 32.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        width_mult: float = 1.0,
        out_features: Sequence[str] = ("stage2", "stage3", "stage5", "conv_out"),
        norm: Norm = "BN",
        norm_eval: bool = False,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            width_mult: factor on all channels, which are rounded to multiples of 8; those of "conv_out" only grow.
            out_features: which of "stem", "stage1", ..., "stage7", "conv_out" to return.
            norm_eval: keep batch norms in evaluation mode.
            freeze_at: how many parts not to train, the stem being the first; see :meth:`freeze`.
        """
        _check_width(width_mult)
        channels = _scaled(32, width_mult)
        parts: dict[str, list[CNNBlockBase]] = {"stem": [ConvBlock(in_channels, channels, 3, 2, norm, _relu6())]}
        for name, (expansion, width, num_blocks, first_stride) in _V2_STAGES.items():
            out_channels = _scaled(width, width_mult)
            parts[name] = []
            for stride in [first_stride] + [1] * (num_blocks - 1):
                block = InvertedResidual(channels, out_channels, stride=stride, expansion=expansion, norm=norm)
                parts[name].append(block)
                channels = out_channels
        # The paper (sec. 6.1) makes the last layer wider with the others, but not narrower.
        last_channels = int(1280 * max(1.0, width_mult))
        parts["conv_out"] = [ConvBlock(channels, last_channels, 1, 1, norm, _relu6())]
        super().__init__(parts, out_features, freeze_at, norm_eval)


class ConvBlock(CNNBlockBase):
    """A convolution, a norm and an activation."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, norm: Norm, activation: Activation
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.conv = _conv(in_channels, out_channels, kernel_size, stride=stride, norm=norm, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DepthwiseSeparableBlock(CNNBlockBase):
    """A 3x3 convolution per channel, then a 1x1 convolution across channels, both with norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "BN") -> None:
        super().__init__(in_channels, out_channels, stride)
        self.depthwise = _conv(
            in_channels, in_channels, 3, stride=stride, groups=in_channels, norm=norm, activation=F.relu_
        )
        self.pointwise = _conv(in_channels, out_channels, 1, norm=norm, activation=F.relu_)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class InvertedResidual(CNNBlockBase):
    """Expand channels, convolve each on its own, and project them without an activation (MobileNetV2, sec. 3.3)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, expansion: int = 6, norm: Norm = "BN"
    ) -> None:
        """
        Args:
            expansion: channels of the 3x3 convolution over ``in_channels``; 1 leaves the expanding convolution out.
        """
        super().__init__(in_channels, out_channels, stride)
        hidden = in_channels * expansion
        self.expand = None if expansion == 1 else _conv(in_channels, hidden, 1, norm=norm, activation=_relu6())
        self.depthwise = _conv(hidden, hidden, 3, stride=stride, groups=hidden, norm=norm, activation=_relu6())
        self.project = _conv(hidden, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.expand is None else self.expand(x)
        out = self.project(self.depthwise(out))
        return x + out if self.stride == 1 and self.in_channels == self.out_channels else out


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: Norm,
    activation: Activation | None = None,
) -> Conv2d:
    """A convolution with a norm instead of a bias, which keeps the size at stride 1."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=activation,
    )
    weight_init.c2_msra_fill(conv)
    return conv


def _relu6() -> nn.ReLU6:
    return nn.ReLU6(inplace=True)


def _scaled(channels: int, width_mult: float) -> int:
    """The multiple of 8 that is nearest to ``channels * width_mult``, but no more than 10% below it."""
    wanted = channels * width_mult
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _check_width(width_mult: float) -> None:
    if width_mult <= 0:
        raise ConfigError(f"WIDTH_MULT is {width_mult}; it must be above 0.")


def _check_out_features(model: str, out_features: Sequence[str], names: list[str]) -> None:
    unknown = [name for name in out_features if name not in names]
    if unknown or not out_features:
        raise ConfigError(
            f"OUT_FEATURES of {model} is {list(out_features)}; it must name at least one of {', '.join(names)}."
        )
