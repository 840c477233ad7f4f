"""From feature maps and boxes to features of regions, by name."""

from typing import Any

from torch import nn

from detlib.config import build_component
from detlib.layers import ShapeSpec
from detlib.utils.registry import Registry

__all__ = ["ROI_EXTRACTOR_REGISTRY", "build_roi_extractor"]

ROI_EXTRACTOR_REGISTRY = Registry("ROI_EXTRACTOR")
ROI_EXTRACTOR_REGISTRY.__doc__ = """
RoI extractors: modules built by `build_component`, offered ``input_shape``, the list of ``ShapeSpec`` of the feature
maps that they get. Called with the list of maps and the ``Boxes`` of each image, they give (R, ``out_channels``, height,
width), where height and width are their ``output_size``.
"""


def build_roi_extractor(node: Any, input_shape: list[ShapeSpec]) -> nn.Module:
    """The extractor of a node ``{NAME: SingleRoIExtractor, ...}`` on feature maps of the given shapes."""
    return build_component(ROI_EXTRACTOR_REGISTRY, node, input_shape=input_shape)
