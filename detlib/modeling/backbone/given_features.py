"""What stands below a pyramid or a detector whose feature maps another module has computed."""

from torch import Tensor

from detlib.layers import ShapeSpec
from detlib.modeling.backbone.backbone import Backbone

__all__ = ["GivenFeatures"]


class GivenFeatures(Backbone):
    """A backbone without layers: it takes feature maps by name and returns them."""

    def __init__(self, shapes: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self._shapes = dict(shapes)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        return x

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes
