"""ResNet (https://arxiv.org/abs/1512.03385) and ResNeXt (https://arxiv.org/abs/1611.05431).

Shapes: N images; the output of the stage with stride s is (N, channels, H / s, W / s).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detlib.config import CfgNode
from detlib.layers import CNNBlockBase, Conv2d, DeformConv, ModulatedDeformConv, ShapeSpec, get_norm
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.build import BACKBONE_REGISTRY
from detlib.modeling.backbone.zero_init import zero_init_residual
from detlib.utils.errors import ConfigError

__all__ = [
    "BasicBlock",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "ResNet",
    "ResNetBlockBase",
    "build_resnet_backbone",
    "make_stage",
]

ResNetBlockBase = CNNBlockBase  # An older name.

_NUM_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ResNet(Backbone):
    """A stem and stages of residual blocks; with ``num_classes``, also a linear classifier."""

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: list[list[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: list[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        """
        Args:
            stem: the layers before the first stage.
            stages: the blocks of res2, res3 and so on.
            num_classes: adds average pooling and a linear layer, whose output is named "linear".
            out_features: which of "stem", "res2", ..., "linear" to return; by default the last one.
            freeze_at: how many stages not to train, the stem being the first; see :meth:`freeze`.
        """
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        names = [f"res{i + 2}" for i in range(len(stages))]
        if out_features is None:
            out_features = ["linear" if num_classes is not None else names[-1]]
        _check_out_features(out_features, names, num_classes)
        # Stages after the last wanted one are not built, so that nothing is loaded, saved or trained in vain.
        if "linear" not in out_features:
            names = names[: max((names.index(f) + 1 for f in out_features if f in names), default=0)]

        self._out_features = out_features
        self._out_feature_strides = {"stem": stem.stride}
        self._out_feature_channels = {"stem": stem.out_channels}
        self.stage_names = tuple(names)
        self.stages: list[nn.Sequential] = []
        stride, channels = stem.stride, stem.out_channels
        for name, blocks in zip(names, stages):
            stage = nn.Sequential(*blocks)
            self.add_module(name, stage)
            self.stages.append(stage)
            for block in blocks:
                stride *= block.stride
            channels = blocks[-1].out_channels
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = channels

        if num_classes is not None:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(channels, num_classes)
            # "Accurate, Large Minibatch SGD" (arXiv:1706.02677, sec. 5.1) draws the classifier from N(0, 0.01^2).
            nn.init.normal_(self.linear.weight, std=0.01)
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, C, H, W).

        Returns:
            The wanted outputs by name; "linear" is (N, num_classes).
        """
        if x.dim() != 4:
            raise ValueError(f"ResNet takes images of shape (N, C, H, W), got {tuple(x.shape)}")
        x = self.stem(x)
        outputs = {"stem": x}
        for name, stage in zip(self.stage_names, self.stages):
            x = stage(x)
            outputs[name] = x
        if self.num_classes is not None:
            outputs["linear"] = self.linear(self.avgpool(x).flatten(1))
        return {name: outputs[name] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels.get(name), stride=self._out_feature_strides.get(name))
            for name in self._out_features
        }

    def freeze(self, freeze_at: int = 0) -> nn.Module:
        """Stop training of the first ``freeze_at`` parts (1: the stem, 2: res2 too) and freeze their norms."""
        if freeze_at >= 1:
            self.stem.freeze()
        for stage in self.stages[: max(freeze_at - 1, 0)]:
            for block in stage:
                block.freeze()
        return self

    @staticmethod
    def make_stage(
        block_class: type[CNNBlockBase], num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
    ) -> list[CNNBlockBase]:
        """Blocks of one kind, the first of which takes ``in_channels``.

        Args:
            kwargs: arguments of ``block_class``. One that ends in ``_per_block`` is a list with a value for each block:
                ``stride_per_block=[2, 1, 1]``.
        """
        per_block = {k.removesuffix("_per_block"): v for k, v in kwargs.items() if k.endswith("_per_block")}
        shared = {k: v for k, v in kwargs.items() if not k.endswith("_per_block")}
        for name, values in per_block.items():
            if name in shared or len(values) != num_blocks:
                raise ValueError(
                    f"make_stage takes either {name} or {name}_per_block with {num_blocks} values, got {kwargs}"
                )
        blocks = []
        for i in range(num_blocks):
            own = {name: values[i] for name, values in per_block.items()}
            blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **own, **shared))
            in_channels = out_channels
        return blocks

    @staticmethod
    def make_default_stages(
        depth: int, block_class: type[CNNBlockBase] | None = None, *, base_channels: int = 64, **kwargs: Any
    ) -> list[list[CNNBlockBase]]:
        """The four stages of ResNet-18, 34, 50, 101 or 152.

        Args:
            block_class: by default BasicBlock below 50 layers, else BottleneckBlock.
            base_channels: of the stem and of the 3x3 convolutions in res2; they double from stage to stage.
            kwargs: further arguments of the blocks; strides and, with 64 ``base_channels``, channels are the paper's.
        """
        if block_class is None:
            block_class = BasicBlock if _num_blocks(depth) and depth < 50 else BottleneckBlock
        expansion = 1 if depth < 50 else 4
        stages = []
        in_channels = base_channels
        for i, num_blocks in enumerate(_num_blocks(depth)):
            width = base_channels * 2**i
            if issubclass(block_class, BottleneckBlock | DeformBottleneckBlock):
                kwargs["bottleneck_channels"] = width
            stride_per_block = [1 if i == 0 else 2] + [1] * (num_blocks - 1)
            stages.append(
                ResNet.make_stage(
                    block_class,
                    num_blocks,
                    stride_per_block=stride_per_block,
                    in_channels=in_channels,
                    out_channels=width * expansion,
                    **kwargs,
                )
            )
            in_channels = width * expansion
        return stages


make_stage = ResNet.make_stage


class BasicStem(CNNBlockBase):
    """A 7x7 convolution and a 3x3 max-pooling, each with stride 2."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str | Callable = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.in_channels = in_channels
        self.conv1 = _conv(in_channels, out_channels, 7, norm=norm, stride=2, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class BasicBlock(CNNBlockBase):
    """Two 3x3 convolutions beside a shortcut, for ResNet-18 and 34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str | Callable = "BN") -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, out_channels, 3, norm=norm, stride=stride, padding=1)
        self.conv2 = _conv(out_channels, out_channels, 3, norm=norm, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu_(self.conv1(x)))
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))


class BottleneckBlock(CNNBlockBase):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, for 50 layers and more; grouped for ResNeXt."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str | Callable = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        """
        Args:
            bottleneck_channels: of the 3x3 convolution.
            num_groups: of the 3x3 convolution.
            stride_in_1x1: put the stride into the first 1x1 convolution, as the weights of MSRA and Caffe2 need;
                torchvision's have it in the 3x3.
            dilation: of the 3x3 convolution.
        """
        super().__init__(in_channels, out_channels, stride)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm=norm, stride=stride_1x1)
        self.conv2 = _conv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            norm=norm,
            stride=stride_3x3,
            padding=dilation,
            groups=num_groups,
            dilation=dilation,
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))


class DeformBottleneckBlock(CNNBlockBase):
    """A bottleneck whose 3x3 convolution is deformable (https://arxiv.org/abs/1703.06211, https://arxiv.org/abs/1811.11168)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str | Callable = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
    ) -> None:
        """
        Args:
            deform_modulated: version 2, which also weighs each sampled point.
            deform_num_groups: groups of channels with offsets of their own.
        """
        super().__init__(in_channels, out_channels, stride)
        self.deform_modulated = deform_modulated
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, norm=norm, stride=stride_1x1)
        # Two numbers for each of the 9 points, three where they are weighted; 0 makes it a plain convolution.
        points = {"kernel_size": 3, "stride": stride_3x3, "padding": dilation, "dilation": dilation}
        self.conv2_offset = Conv2d(bottleneck_channels, (27 if deform_modulated else 18) * deform_num_groups, **points)
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)
        self.conv2 = (ModulatedDeformConv if deform_modulated else DeformConv)(
            bottleneck_channels,
            bottleneck_channels,
            **points,
            bias=False,
            groups=num_groups,
            deformable_groups=deform_num_groups,
            norm=get_norm(norm, bottleneck_channels),
        )
        weight_init.c2_msra_fill(self.conv2)
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        offset = self.conv2_offset(out)
        if self.deform_modulated:
            offset, mask = offset.split([offset.shape[1] // 3 * 2, offset.shape[1] // 3], dim=1)
            out = self.conv2(out, offset, mask.sigmoid())
        else:
            out = self.conv2(out, offset)
        out = self.conv3(F.relu_(out))
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))


@BACKBONE_REGISTRY.register()
def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A ResNet as ``cfg.MODEL.RESNETS`` and ``cfg.MODEL.BACKBONE.FREEZE_AT`` say.

    ``RES2_OUT_CHANNELS`` is free at every depth, so 32 makes a ResNet-18 of half the width.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.RES5_DILATION not in (1, 2):
        raise ConfigError(f"MODEL.RESNETS.RES5_DILATION is {resnets.RES5_DILATION}; it must be 1 or 2.")
    basic = resnets.DEPTH < 50
    if basic and (any(resnets.DEFORM_ON_PER_STAGE) or resnets.RES5_DILATION != 1 or resnets.NUM_GROUPS != 1):
        raise ConfigError(
            f"MODEL.RESNETS.DEPTH {resnets.DEPTH} has no bottleneck, so DEFORM_ON_PER_STAGE must be false, "
            f"RES5_DILATION 1 and NUM_GROUPS 1; use a depth of 50 or more for them."
        )
    stem = BasicStem(in_channels=input_shape.channels, out_channels=resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)
    stages = []
    in_channels = resnets.STEM_OUT_CHANNELS
    for i, count in enumerate(_num_blocks(resnets.DEPTH)):
        out_channels = resnets.RES2_OUT_CHANNELS * 2**i
        # A dilated res5 keeps the resolution of res4.
        first_stride = 1 if i == 0 or (i == 3 and resnets.RES5_DILATION == 2) else 2
        stages.append(
            ResNet.make_stage(
                _block_class(basic, resnets.DEFORM_ON_PER_STAGE[i]),
                count,
                stride_per_block=[first_stride] + [1] * (count - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                **_block_options(resnets, i),
            )
        )
        in_channels = out_channels
    resnet = ResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
    return zero_init_residual(resnet) if resnets.ZERO_INIT_RESIDUAL else resnet


def _block_options(resnets: CfgNode, stage: int) -> dict[str, Any]:
    """Arguments of the blocks of stage 0 to 3 that do not concern their place in the network."""
    if resnets.DEPTH < 50:
        return {"norm": resnets.NORM}
    options = {
        "norm": resnets.NORM,
        "bottleneck_channels": resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 2**stage,
        "num_groups": resnets.NUM_GROUPS,
        "stride_in_1x1": resnets.STRIDE_IN_1X1,
        "dilation": resnets.RES5_DILATION if stage == 3 else 1,
    }
    if resnets.DEFORM_ON_PER_STAGE[stage]:
        options["deform_modulated"] = resnets.DEFORM_MODULATED
        options["deform_num_groups"] = resnets.DEFORM_NUM_GROUPS
    return options


def _block_class(basic: bool, deformable: bool) -> type[CNNBlockBase]:
    if basic:
        return BasicBlock
    return DeformBottleneckBlock if deformable else BottleneckBlock


def _num_blocks(depth: int) -> tuple[int, ...]:
    if depth not in _NUM_BLOCKS:
        raise ConfigError(f"a ResNet's DEPTH is {depth}; it must be one of {', '.join(map(str, _NUM_BLOCKS))}.")
    return _NUM_BLOCKS[depth]


def _check_out_features(out_features: Sequence[str], stages: list[str], num_classes: int | None) -> None:
    known = ["stem", *stages] + (["linear"] if num_classes is not None else [])
    unknown = [name for name in out_features if name not in known]
    if unknown or not out_features:
        raise ConfigError(
            f"a ResNet's OUT_FEATURES is {list(out_features)}; it must name at least one of {', '.join(known)}."
        )


def _conv(in_channels: int, out_channels: int, kernel_size: int, *, norm: str | Callable, **kwargs: Any) -> Conv2d:
    """A convolution with a norm instead of a bias."""
    conv = Conv2d(in_channels, out_channels, kernel_size, bias=False, norm=get_norm(norm, out_channels), **kwargs)
    weight_init.c2_msra_fill(conv)
    return conv


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: str | Callable) -> Conv2d | None:
    """A projection where the shape changes (arXiv:1512.03385, option B), else nothing."""
    if in_channels == out_channels and stride == 1:
        return None
    return _conv(in_channels, out_channels, 1, norm=norm, stride=stride)
