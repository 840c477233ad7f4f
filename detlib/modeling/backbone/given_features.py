"""What stands below a pyramid or a detector whose feature maps another module has computed."""

from collections.abc import Mapping

from torch import Tensor

from detlib.layers import ShapeSpec
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.build import BACKBONE_REGISTRY

__all__ = ["GivenFeatures"]


@BACKBONE_REGISTRY.register()
class GivenFeatures(Backbone):
    """A backbone without layers: it takes feature maps by name and returns them."""

    def __init__(self, shapes: Mapping[str, ShapeSpec | Mapping[str, int]]) -> None:
        """
        Args:
            shapes: of the maps, by name; in a config, mappings with ``channels`` and ``stride``.
        """
        super().__init__()
        self._shapes = {
            name: ShapeSpec(**shape) if isinstance(shape, Mapping) else shape for name, shape in shapes.items()
        }

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return x

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes
