"""ResNet for small images: the stages of the ImageNet networks behind a stem that keeps the resolution.

Shapes: N images; res2, res3, res4 and res5 have strides 1, 2, 4 and 8, so 32 x 32 pixels end as 4 x 4 cells.
"""

from collections.abc import Callable

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor

from detlib.layers import CNNBlockBase, Conv2d, get_norm
from detlib.modeling.backbone import zero_init
from detlib.modeling.backbone.build import BACKBONE_REGISTRY
from detlib.modeling.backbone.resnet import ResNet
from detlib.utils.errors import ConfigAssertionError

__all__ = ["CifarStem", "ResNet_CIFAR"]


@BACKBONE_REGISTRY.register()
class ResNet_CIFAR(ResNet):
    """A ResNet with a :class:`CifarStem`.

    These are not the narrow networks of three stages that the ResNet paper (sec. 4.2) trains on CIFAR-10.
    """

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int = 3,
        base_channels: int = 64,
        out_features: list[str] | None = None,
        norm: str | Callable = "BN",
        num_classes: int | None = None,
        freeze_at: int = 0,
        deep_stem: bool = False,
        zero_init_residual: bool = False,
    ) -> None:
        """
        Args:
            depth: 18, 34, 50, 101 or 152.
            base_channels: of the stem and of the 3x3 convolutions in res2; they double from stage to stage.
            out_features: which of "stem", "res2", ..., "linear" to return; by default the last one.
            num_classes: adds average pooling and a linear layer, whose output is named "linear".
            freeze_at: how many stages not to train, the stem being the first.
            deep_stem: must be false; there is only the stem of one convolution.
            zero_init_residual: let each residual branch start as 0, by the scale of its last norm.
        """
        if deep_stem:
            raise ConfigAssertionError(
                "ResNet_CIFAR has no deep stem: its stem is one 3x3 convolution; leave deep_stem out."
            )
        super().__init__(
            CifarStem(in_channels, base_channels, norm),
            ResNet.make_default_stages(depth, base_channels=base_channels, norm=norm),
            num_classes=num_classes,
            out_features=out_features,
            freeze_at=freeze_at,
        )
        if zero_init_residual:
            zero_init.zero_init_residual(self)


class CifarStem(CNNBlockBase):
    """A 3x3 convolution with stride 1 and no pooling."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str | Callable = "BN") -> None:
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1, bias=False, norm=get_norm(norm, out_channels))
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv1(x))
