"""Feature Pyramid Network (https://arxiv.org/abs/1612.03144).

Shapes: the level p<k> has stride 2**k and is (N, out_channels, H / 2**k, W / 2**k).
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detlib.config import CfgNode
from detlib.layers import Conv2d, ShapeSpec, get_norm
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.build import BACKBONE_REGISTRY
from detlib.modeling.backbone.given_features import GivenFeatures
from detlib.modeling.backbone.resnet import build_resnet_backbone
from detlib.modeling.neck.build import NECK_REGISTRY
from detlib.utils.errors import ConfigError

__all__ = [
    "FPN",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "build_fcos_resnet_fpn_backbone",
    "build_fpn",
    "build_fpn_neck",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
    "build_top_block",
]

_PLACES = "It is set in MODEL.FPN, or where FPN is named as a neck."


class FPN(Backbone):
    """Carry what the deep levels of ``bottom_up`` know down to its fine ones."""

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: list[str],
        out_channels: int,
        norm: str | Callable = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ) -> None:
        """
        Args:
            in_features: outputs of ``bottom_up``, finest first, each with twice the stride of the one before.
            out_channels: of every level.
            norm: after each convolution.
            top_block: makes further, coarser levels. It has ``in_feature``, the name of what it takes (a level or an
                output of ``bottom_up``), and ``num_levels``, how many maps it returns.
            fuse_type: "sum" adds the lateral and the top-down map, "avg" halves their sum.
            square_pad: pad the input to a square of this size; 0 for no square.
        """
        super().__init__()
        if fuse_type not in ("sum", "avg"):
            raise ConfigError(f"FPN: FUSE_TYPE is {fuse_type!r}; it must be 'sum' or 'avg'. {_PLACES}")
        input_shapes = bottom_up.output_shape()
        missing = [f for f in in_features if f not in input_shapes]
        if missing or not in_features:
            raise ConfigError(
                f"FPN: IN_FEATURES is {list(in_features)}, but the backbone gives {', '.join(input_shapes)}. {_PLACES}"
            )
        strides = [input_shapes[f].stride for f in in_features]
        _assert_strides_are_log2_contiguous(strides)

        stages = [int(math.log2(stride)) for stride in strides]
        self.lateral_convs: list[Conv2d] = []
        self.output_convs: list[Conv2d] = []
        for stage, name in zip(stages, in_features):
            lateral = _conv(input_shapes[name].channels, out_channels, 1, norm)
            output = _conv(out_channels, out_channels, 3, norm)
            self.add_module(f"fpn_lateral{stage}", lateral)
            self.add_module(f"fpn_output{stage}", output)
            self.lateral_convs.insert(0, lateral)  # Coarsest first, in the order of the top-down pass.
            self.output_convs.insert(0, output)
        self.top_block = top_block
        self.in_features = tuple(in_features)
        self.bottom_up = bottom_up

        if top_block is not None:
            if top_block.in_feature not in (*input_shapes, *(f"p{stage}" for stage in stages)):
                raise ConfigError(
                    f"{type(top_block).__name__} builds on {top_block.in_feature!r}, but the levels are "
                    f"{', '.join(f'p{stage}' for stage in stages)}; change IN_FEATURES or TOP_BLOCK. {_PLACES}"
                )
            stages += range(stages[-1] + 1, stages[-1] + 1 + top_block.num_levels)
        self._out_features = [f"p{stage}" for stage in stages]
        self._out_feature_strides = {f"p{stage}": 2**stage for stage in stages}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]
        self._square_pad = square_pad
        self._fuse_type = fuse_type

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, C, H, W), H and W multiples of :attr:`size_divisibility`.

        Returns:
            The levels by name, finest first.
        """
        bottom_up = self.bottom_up(x)
        levels: list[Tensor] = []  # finest first
        merged = None
        for name, lateral_conv, output_conv in zip(reversed(self.in_features), self.lateral_convs, self.output_convs):
            lateral = lateral_conv(bottom_up[name])
            if merged is None:
                merged = lateral
            else:
                merged = lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
                if self._fuse_type == "avg":
                    merged = merged / 2
            levels.insert(0, output_conv(merged))
        outputs = dict(zip(self._out_features, levels))
        if self.top_block is not None:
            name = self.top_block.in_feature
            top = self.top_block(bottom_up[name] if name in bottom_up else outputs[name])
            outputs.update(zip(self._out_features[len(levels) :], top))
        return outputs


class LastLevelMaxPool(nn.Module):
    """Subsample p5 to p6, as Faster R-CNN with FPN does."""

    def __init__(self) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 of RetinaNet, from res5 or p5 (https://arxiv.org/abs/1708.02002, sec. 4, note 2)."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for module in (self.p6, self.p7):
            weight_init.c2_xavier_fill(module)

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(F.relu(p6))]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with p2 to p6, as R-CNN uses it."""
    return build_fpn(cfg, build_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with p3 to p7, as RetinaNet uses it; p6 is made from res5."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    shapes = bottom_up.output_shape()
    if "res5" not in shapes:
        raise ConfigError(f"RetinaNet needs res5, but MODEL.RESNETS.OUT_FEATURES is {list(shapes)}; add it there.")
    return build_fpn(cfg, bottom_up, LastLevelP6P7(shapes["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with p3 to p7, as FCOS uses it; p6 is made from p5 (https://arxiv.org/abs/1904.01355, sec. 3.2)."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return build_fpn(cfg, build_resnet_backbone(cfg, input_shape), LastLevelP6P7(channels, channels, "p5"))


def build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module | None = None) -> FPN:
    """The pyramid of ``cfg.MODEL.FPN`` on a backbone.

    Args:
        top_block: see FPN; by default what ``cfg.MODEL.FPN.TOP_BLOCK`` names.
    """
    if top_block is None:
        shapes = bottom_up.output_shape()
        last = cfg.MODEL.FPN.IN_FEATURES[-1] if cfg.MODEL.FPN.IN_FEATURES else ""
        top_block = build_top_block(cfg, shapes[last].channels if last in shapes else 0, last)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        square_pad=cfg.MODEL.FPN.SQUARE_PAD,
    )


@NECK_REGISTRY.register("FPN")
def build_fpn_neck(
    input_shape: dict[str, ShapeSpec],
    in_features: list[str] | None = None,
    out_channels: int = 256,
    norm: str | Callable = "",
    top_block: str = "",
    top_block_in_feature: str = "",
    fuse_type: str = "sum",
) -> FPN:
    """The pyramid on feature maps rather than on a backbone; arguments not named here are those of :class:`FPN`.

    Args:
        input_shape: of the maps, by name.
        in_features: None for all maps.
        top_block: LastLevelMaxPool, LastLevelP6P7 or "" for none.
        top_block_in_feature: what LastLevelP6P7 builds on: an input map, or a level such as p5; "" for the coarsest
            input map.
    """
    in_features = list(input_shape) if in_features is None else in_features
    in_feature = top_block_in_feature or (in_features[-1] if in_features else "")
    in_channels = input_shape[in_feature].channels if in_feature in input_shape else out_channels
    block = _top_block(top_block, in_channels, out_channels, in_feature)
    return FPN(GivenFeatures(input_shape), in_features, out_channels, norm, block, fuse_type)


def build_top_block(cfg: CfgNode, in_channels: int, in_feature: str) -> nn.Module | None:
    """What ``cfg.MODEL.FPN.TOP_BLOCK`` names.

    Args:
        in_channels: of ``in_feature``, the deepest map, on which LastLevelP6P7 builds.
    """
    return _top_block(cfg.MODEL.FPN.TOP_BLOCK, in_channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature)


def _top_block(name: str, in_channels: int, out_channels: int, in_feature: str) -> nn.Module | None:
    if name == "":
        return None
    if name == "LastLevelMaxPool":
        return LastLevelMaxPool()
    if name == "LastLevelP6P7":
        return LastLevelP6P7(in_channels, out_channels, in_feature)
    raise ConfigError(f"FPN: TOP_BLOCK is {name!r}; it must be LastLevelMaxPool, LastLevelP6P7 or empty. {_PLACES}")


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str | Callable) -> Conv2d:
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=norm == "",
        norm=get_norm(norm, out_channels),
    )
    weight_init.c2_xavier_fill(conv)
    return conv


def _assert_strides_are_log2_contiguous(strides: list[int | None]) -> None:
    if not all(strides) or any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise ConfigError(
            f"FPN needs feature maps whose strides double, got {strides}; change the backbone's dilation, or "
            f"IN_FEATURES. {_PLACES}"
        )
