"""The two heads: fully connected layers for the class of a region, convolutions for its box.

Shapes: R regions in all images together, C channels of H x W cells of a pooled region.
"""

from typing import Any

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detlib.modeling import ROI_BOX_HEAD_REGISTRY
from detlib.modeling.backbone.resnet import BottleneckBlock
from detlib.utils.errors import ConfigError

__all__ = ["BasicResBlock", "DoubleConvFCBBoxHead", "EmptyBranchError"]


class EmptyBranchError(ConfigError, AssertionError):
    """One of the two heads has no layer."""

    __str__ = ConfigError.__str__


@ROI_BOX_HEAD_REGISTRY.register()
class DoubleConvFCBBoxHead(nn.Module):
    """A residual block and bottlenecks, averaged over the region, beside fully connected layers; nothing is shared.

    It takes two features for each region and returns two, the first for the class and the second for the box.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_convs: int, num_fcs: int, conv_dim: int, fc_dim: int, norm: str
    ) -> None:
        """
        Args:
            input_shape: channels, height and width of a region.
            num_convs: bottlenecks after the residual block that brings the channels to ``conv_dim``.
            num_fcs: fully connected layers.
            conv_dim: channels for the box; a bottleneck has a quarter of them inside.
            fc_dim: channels for the class.
            norm: of all convolutions, see :func:`get_norm`.
        """
        super().__init__()
        if num_convs <= 0 or num_fcs <= 0:
            raise EmptyBranchError(
                f"the double head needs convolutions for boxes and fully connected layers for classes, got {num_convs} "
                f"and {num_fcs}; set MODEL.ROI_BOX_HEAD.NUM_CONV and NUM_FC above 0, as 4 and 2."
            )
        blocks: list[nn.Module] = [BasicResBlock(input_shape.channels, conv_dim, norm)]
        for _ in range(num_convs):
            blocks.append(BottleneckBlock(conv_dim, conv_dim, bottleneck_channels=conv_dim // 4, norm=norm))
        self.convs = nn.Sequential(*blocks)

        width = input_shape.channels * input_shape.height * input_shape.width
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(num_fcs):
            fc = nn.Linear(width, fc_dim)
            weight_init.c2_xavier_fill(fc)
            layers += [fc, nn.ReLU()]
            width = fc_dim
        self.fcs = nn.Sequential(*layers)
        self.output_shape = (ShapeSpec(channels=fc_dim), ShapeSpec(channels=conv_dim))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "input_shape": input_shape,
            "num_convs": cfg.MODEL.ROI_BOX_HEAD.NUM_CONV,
            "num_fcs": cfg.MODEL.ROI_BOX_HEAD.NUM_FC,
            "conv_dim": cfg.MODEL.ROI_BOX_HEAD.CONV_DIM,
            "fc_dim": cfg.MODEL.ROI_BOX_HEAD.FC_DIM,
            "norm": cfg.MODEL.ROI_BOX_HEAD.NORM,
        }

    def forward(self, x_cls: Tensor, x_reg: Tensor) -> tuple[Tensor, Tensor]:
        """From two (R, C, H, W) to (R, fc_dim) and (R, conv_dim)."""
        return self.fcs(x_cls), self.convs(x_reg).mean(dim=(2, 3))


class BasicResBlock(CNNBlockBase):
    """3x3 and 1x1 convolutions beside a projection, to reach the channels of the bottlenecks."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.conv1 = _conv(in_channels, in_channels, 3, norm)
        self.conv2 = _conv(in_channels, out_channels, 1, norm)
        self.shortcut = _conv(in_channels, out_channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv2(F.relu_(self.conv1(x))) + self.shortcut(x))


def _conv(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """A convolution with a norm instead of a bias, as those of the bottlenecks."""
    padding = kernel_size // 2
    norm = get_norm(norm, out_channels)
    conv = Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False, norm=norm)
    weight_init.c2_msra_fill(conv)
    return conv
