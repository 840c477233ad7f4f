"""What every backbone promises."""

from collections.abc import Sequence

from torch import Tensor, nn

from detlib.layers import ShapeSpec
from detlib.utils.errors import ConfigError

__all__ = ["Backbone", "select_shapes"]


class Backbone(nn.Module):
    """A network that turns an image into named feature maps and tells their shapes before it has seen one."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, C, H, W).

        Returns:
            Feature maps of shape (N, channels, about H / stride, about W / stride) by name.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a forward(x) that returns a dict of feature maps.")

    @property
    def size_divisibility(self) -> int:
        """Multiple of which the input's height and width must be; 0 if any will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further demands on the input's padding, as :meth:`ImageList.from_tensors` takes them."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map."""
        # What most backbones set on themselves.
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


def select_shapes(shapes: dict[str, ShapeSpec], names: Sequence[str], key: str) -> list[ShapeSpec]:
    """The shapes of the feature maps that a head works on.

    Args:
        shapes: what ``backbone.output_shape()`` gave.
        names: of the maps wanted.
        key: of the config, where the names are from.

    Raises:
        ConfigError: there are no names, or the backbone does not give one of the maps.
    """
    if not names or any(name not in shapes for name in names):
        raise ConfigError(f"{key} is {list(names)}, but the backbone gives {', '.join(shapes)}; name some of these.")
    return [shapes[name] for name in names]
