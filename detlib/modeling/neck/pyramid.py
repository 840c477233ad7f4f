"""What necks that make feature pyramids have in common.

Shapes: L input maps, finest first; the level p<k> has stride 2^k.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import nn

from detlib.layers import Conv2d, ShapeSpec, get_norm
from detlib.modeling.backbone.backbone import select_shapes
from detlib.utils.errors import ConfigError

__all__ = ["conv", "pyramid_shape", "select_maps"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "ReLU": nn.ReLU,
    "LeakyReLU": nn.LeakyReLU,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
}


def select_maps(
    input_shape: dict[str, ShapeSpec], in_features: list[str] | None
) -> tuple[tuple[str, ...], list[ShapeSpec]]:
    """Names and shapes of the L maps that a pyramid is built on.

    Args:
        in_features: their names, finest first; None for all.

    Raises:
        ConfigError: there is no such map, or strides do not double from map to map.
    """
    names = list(input_shape) if in_features is None else list(in_features)
    shapes = select_shapes(input_shape, names, "MODEL.NECK.IN_FEATURES")
    strides = [shape.stride for shape in shapes]
    double = all(strides) and all(coarse == 2 * fine for fine, coarse in pairwise(strides))
    if not double or strides[0] & (strides[0] - 1) != 0:  # A power of 2 has a single bit.
        raise ConfigError(
            f"MODEL.NECK takes maps whose strides are powers of 2 and double from one to the next, finest first; "
            f"{', '.join(names)} have {strides}. Change MODEL.NECK.IN_FEATURES or the backbone's dilation."
        )
    return tuple(names), shapes


def pyramid_shape(shapes: list[ShapeSpec], out_channels: int, num_outs: int) -> dict[str, ShapeSpec]:
    """Names and shapes of the levels: one for each of the L maps, then coarser ones.

    Args:
        shapes: of the L maps.
        num_outs: how many levels there are.

    Raises:
        ConfigError: there are fewer levels than maps.
    """
    if num_outs < len(shapes):
        raise ConfigError(
            f"MODEL.NECK.NUM_OUTS is {num_outs}, but there are {len(shapes)} maps, each of which gives a level; set it "
            f"to {len(shapes)} or more, or name fewer maps in MODEL.NECK.IN_FEATURES."
        )
    strides = [shapes[0].stride * 2**i for i in range(num_outs)]
    return {f"p{s.bit_length() - 1}": ShapeSpec(channels=out_channels, stride=s) for s in strides}


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    norm: str | Callable[[int], nn.Module] = "",
    activation: str = "",
) -> Conv2d:
    """A convolution of padded maps with a Xavier-uniform weight, and a bias of 0 where no norm follows.

    Args:
        norm: see :func:`get_norm`.
        activation: the name of a module of torch, "" for none.
    """
    if activation and activation not in _ACTIVATIONS:
        raise ConfigError(
            f"MODEL.NECK.ACTIVATION is {activation!r}; it must be one of {', '.join(_ACTIVATIONS)}, or ''."
        )
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=_ACTIVATIONS[activation]() if activation else None,
    )
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
