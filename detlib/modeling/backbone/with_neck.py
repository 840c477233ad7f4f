"""A backbone and a neck as one backbone."""

from torch import Tensor, nn

from detlib.layers import ShapeSpec
from detlib.modeling.backbone.backbone import Backbone

__all__ = ["BackboneWithNeck"]


class BackboneWithNeck(Backbone):
    """Feature maps of a neck on those of a backbone."""

    def __init__(self, bottom_up: Backbone, neck: nn.Module) -> None:
        """
        Args:
            bottom_up: its weights are ``bottom_up.*``, as in an FPN, so that both load the same pre-trained ones.
            neck: from a dict of maps to a dict of maps, with ``output_shape()``; see ``NECK_REGISTRY``.
        """
        super().__init__()
        self.bottom_up = bottom_up
        self.neck = neck

    @property
    def size_divisibility(self) -> int:
        return max(self.bottom_up.size_divisibility, getattr(self.neck, "size_divisibility", 0))

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.neck(self.bottom_up(x))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.neck.output_shape()
