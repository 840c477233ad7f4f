"""Atrous spatial pyramid pooling."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.layers._fvcore import weight_init
from detlib.layers.batch_norm import get_norm
from detlib.layers.blocks import DepthwiseSeparableConv2d
from detlib.layers.wrappers import Conv2d

__all__ = ["ASPP"]


class ASPP(nn.Module):
    """Convolutions of several dilations side by side, with pooled context (DeepLabV3, https://arxiv.org/abs/1706.05587).

    The branches are a 1x1 convolution, a 3x3 convolution per dilation and the pooled image; a 1x1 convolution joins
    them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: list[int],
        *,
        norm: str | Callable[[int], nn.Module],
        activation: Callable[[Tensor], Tensor],
        pool_kernel_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        use_depthwise_separable_conv: bool = False,
    ) -> None:
        """Build the branches.

        Args:
            out_channels: channels of each branch and of the result.
            norm: see :func:`get_norm`.
            pool_kernel_size: height and width of the pooling window; None pools the whole map, without a norm as there
                is one value per channel then.
            dropout: probability to drop a value of the result.
        """
        super().__init__()
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout

        def conv(in_channels: int, kernel_size: int, dilation: int = 1) -> Conv2d:
            return _xavier(
                Conv2d(
                    in_channels,
                    out_channels,
                    kernel_size=kernel_size,
                    padding=dilation * (kernel_size // 2),
                    dilation=dilation,
                    bias=norm == "",
                    norm=get_norm(norm, out_channels),
                    activation=deepcopy(activation),
                )
            )

        def separable_conv(dilation: int) -> DepthwiseSeparableConv2d:
            return DepthwiseSeparableConv2d(
                in_channels,
                out_channels,
                padding=dilation,
                dilation=dilation,
                norm1=norm,
                activation1=deepcopy(activation),
                norm2=norm,
                activation2=deepcopy(activation),
            )

        self.convs = nn.ModuleList([conv(in_channels, 1)])
        for dilation in dilations:
            self.convs.append(
                separable_conv(dilation) if use_depthwise_separable_conv else conv(in_channels, 3, dilation)
            )
        if pool_kernel_size is None:
            context = _xavier(Conv2d(in_channels, out_channels, kernel_size=1, activation=deepcopy(activation)))
            self.convs.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), context))
        else:
            self.convs.append(nn.Sequential(nn.AvgPool2d(pool_kernel_size, stride=1), conv(in_channels, 1)))
        self.project = conv(len(self.convs) * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.pool_kernel_size is not None:
            window = self.pool_kernel_size
            if height % window[0] or width % window[1]:
                raise ValueError(
                    f"a map of {height} x {width} cells is no multiple of pool_kernel_size {tuple(window)}"
                )
        branches = [branch(x) for branch in self.convs]
        branches[-1] = F.interpolate(branches[-1], size=(height, width), mode="bilinear", align_corners=False)
        x = self.project(torch.cat(branches, dim=1))
        return F.dropout(x, self.dropout, training=self.training) if self.dropout > 0 else x


def _xavier(conv: Conv2d) -> Conv2d:
    weight_init.c2_xavier_fill(conv)
    return conv
