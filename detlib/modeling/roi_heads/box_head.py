"""What a region's features pass through before its class and box are predicted."""

import numpy as np
from fvcore.nn import weight_init
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import Conv2d, ShapeSpec, get_norm
from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = ["ROI_BOX_HEAD_REGISTRY", "FastRCNNConvFCHead", "build_box_head"]

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = """
Box heads: called with ``(cfg, input_shape)``, the ``ShapeSpec`` of one pooled region; a module with an
``output_shape``.
"""


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build what ``cfg.MODEL.ROI_BOX_HEAD.NAME`` names, for regions of the given shape."""
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)


# A Sequential, as checkpoints call the layers box_head.conv1, box_head.fc1 and so on.
@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers, each followed by a ReLU; any number of either."""

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: list[int], fc_dims: list[int], conv_norm: str = ""
    ) -> None:
        """
        Args:
            input_shape: channels, height and width of a region.
            conv_dims: channels of each convolution.
            fc_dims: width of each fully connected layer.
            conv_norm: normalisation of the convolutions, see :func:`get_norm`.
        """
        super().__init__()
        if not conv_dims and not fc_dims:
            raise ConfigError("the box head has no layer; set MODEL.ROI_BOX_HEAD.NUM_CONV or NUM_FC above 0.")
        self.conv_norm_relus = []
        channels = input_shape.channels
        for number, width in enumerate(conv_dims, start=1):
            norm = get_norm(conv_norm, width)
            conv = Conv2d(channels, width, 3, padding=1, bias=norm is None, norm=norm, activation=nn.ReLU())
            weight_init.c2_msra_fill(conv)
            self.add_module(f"conv{number}", conv)
            self.conv_norm_relus.append(conv)
            channels = width
        self._output_size: tuple[int, ...] = (channels, input_shape.height, input_shape.width)

        self.fcs = []
        for number, width in enumerate(fc_dims, start=1):
            if number == 1:
                self.add_module("flatten", nn.Flatten())
            fc = nn.Linear(int(np.prod(self._output_size)), width)
            weight_init.c2_xavier_fill(fc)
            self.add_module(f"fc{number}", fc)
            self.add_module(f"fc_relu{number}", nn.ReLU())
            self.fcs.append(fc)
            self._output_size = (width,)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            "input_shape": input_shape,
            "conv_dims": [cfg.MODEL.ROI_BOX_HEAD.CONV_DIM] * cfg.MODEL.ROI_BOX_HEAD.NUM_CONV,
            "fc_dims": [cfg.MODEL.ROI_BOX_HEAD.FC_DIM] * cfg.MODEL.ROI_BOX_HEAD.NUM_FC,
            "conv_norm": cfg.MODEL.ROI_BOX_HEAD.NORM,
        }

    def forward(self, x: Tensor) -> Tensor:
        """From (R, C, H, W) to (R, fc_dims[-1]), or to (R, conv_dims[-1], H, W) without fully connected layers."""
        return super().forward(x)

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels of the output, and its height and width if it has any."""
        if len(self._output_size) == 1:
            return ShapeSpec(channels=self._output_size[0])
        channels, height, width = self._output_size
        return ShapeSpec(channels=channels, height=height, width=width)
