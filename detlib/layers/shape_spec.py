"""The shape of a feature map, as far as it is known before an image is seen."""

from dataclasses import dataclass

__all__ = ["ShapeSpec"]


@dataclass
class ShapeSpec:
    """What modules tell each other about a feature map when a model is built; None where unknown.

    Attributes:
        stride: pixels of the input image per cell.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
