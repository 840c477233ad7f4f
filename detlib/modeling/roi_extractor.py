"""From feature maps and boxes to features of regions, by name.

Shapes: N images, L feature maps of C channels, R boxes in all images together.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import build_component
from detlib.layers import ShapeSpec
from detlib.modeling.poolers import ROIPooler
from detlib.structures import Boxes, RotatedBoxes
from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = [
    "ROI_EXTRACTOR_REGISTRY",
    "GenericRoIExtractor",
    "SingleRoIExtractor",
    "build_roi_extractor",
    "channels_of_all",
    "shape_of_region",
]

ROI_EXTRACTOR_REGISTRY = Registry("ROI_EXTRACTOR")
ROI_EXTRACTOR_REGISTRY.__doc__ = """
RoI extractors: modules built by `build_component`, offered ``input_shape``, the list of ``ShapeSpec`` of the feature
maps that they get, and from the POOLER keys of their head ``output_size``, ``sampling_ratio`` and ``roi_layer``. Called
with the list of maps and the ``Boxes`` of each image, they give (R, ``out_channels``, height, width), where height and
width are their ``output_size``, one number or both. Heads that enlarge boxes, as Double-Head R-CNN does, also pass
``roi_scale_factor``.
"""


def build_roi_extractor(node: Any, input_shape: list[ShapeSpec], **offers: Any) -> nn.Module:
    """The extractor of a node ``{NAME: SingleRoIExtractor, ...}`` on feature maps of the given shapes.

    Args:
        offers: further arguments for an extractor that takes them and whose node does not have them.
    """
    extractor = build_component(ROI_EXTRACTOR_REGISTRY, node, input_shape=input_shape, **offers)
    missing = [name for name in ("out_channels", "output_size") if not hasattr(extractor, name)]
    if missing:
        raise ConfigError(
            f"the RoI extractor {type(extractor).__name__} has no {' and no '.join(missing)}; give it the attributes "
            f"out_channels and output_size, from which heads know the shape of a region."
        )
    return extractor


def shape_of_region(extractor: nn.Module) -> ShapeSpec:
    """Channels, height and width of what an extractor gives for one region."""
    size = extractor.output_size
    height, width = (size, size) if isinstance(size, int) else size
    return ShapeSpec(channels=extractor.out_channels, height=height, width=width)


def channels_of_all(input_shape: list[ShapeSpec]) -> int:
    """The number of channels that all feature maps have.

    Raises:
        ConfigError: they have different numbers.
    """
    channels = [shape.channels for shape in input_shape]
    if len(set(channels)) > 1:
        raise ConfigError(
            f"MODEL.ROI_HEADS.IN_FEATURES have {channels} channels; regions are pooled from maps with equally many, "
            f"such as those of an FPN."
        )
    return channels[0]


@ROI_EXTRACTOR_REGISTRY.register()
class SingleRoIExtractor(ROIPooler):
    """Pool each region from the one feature map that fits its size (FPN, https://arxiv.org/abs/1612.03144, eq. 1)."""

    def __init__(
        self,
        input_shape: list[ShapeSpec],
        output_size: int | tuple[int, int] = 7,
        sampling_ratio: int = 0,
        roi_layer: str = "ROIAlignV2",
        finest_scale: int = 56,
    ) -> None:
        """
        Args:
            input_shape: of the L feature maps, finest first.
            output_size: cells per region, height and width.
            sampling_ratio: samples per cell and axis; 0 takes about one per cell of the feature map.
            roi_layer: the pooler_type of :class:`ROIPooler`.
            finest_scale: map i gets the boxes whose side, the square root of the area, is at least this times 2^i and
                below twice that; the first and the last map get smaller and larger ones too.
        """
        scales = [1.0 / shape.stride for shape in input_shape]
        finest_level = input_shape[0].stride.bit_length() - 1  # A level k has the stride 2^k.
        super().__init__(output_size, scales, sampling_ratio, roi_layer, finest_scale, finest_level)
        self.out_channels = channels_of_all(input_shape)


@ROI_EXTRACTOR_REGISTRY.register()
class GenericRoIExtractor(nn.Module):
    """Pool each region from every feature map (GRoIE, https://arxiv.org/abs/2004.13665, without its convolutions)."""

    def __init__(
        self,
        input_shape: list[ShapeSpec],
        output_size: int | tuple[int, int] = 7,
        sampling_ratio: int = 0,
        roi_layer: str = "ROIAlignV2",
        aggregation: str = "sum",
    ) -> None:
        """Take the arguments of :class:`SingleRoIExtractor`, save one.

        Args:
            aggregation: "sum" adds the L features of a region, "concat" puts their channels one after another.
        """
        super().__init__()
        if aggregation not in ("sum", "concat"):
            raise ConfigError(f"AGGREGATION of GenericRoIExtractor is {aggregation!r}; it must be 'sum' or 'concat'.")
        self.poolers = nn.ModuleList(
            ROIPooler(output_size, [1.0 / shape.stride], sampling_ratio, roi_layer) for shape in input_shape
        )
        self.aggregation = aggregation
        self.output_size = self.poolers[0].output_size
        if aggregation == "sum":
            self.out_channels = channels_of_all(input_shape)
        else:
            self.out_channels = sum(shape.channels for shape in input_shape)

    def forward(
        self, x: list[Tensor], box_lists: list[Boxes | RotatedBoxes], roi_scale_factor: float | None = None
    ) -> Tensor:
        """
        Args:
            x: L feature maps of shape (N, C, H, W), finest first.
            box_lists: of each of N images, in the coordinates of the network's input.
            roi_scale_factor: as :class:`ROIPooler` takes it.

        Returns:
            (R, C, output height, output width), or (R, L * C, ...) if concatenated, in the order of the boxes.
        """
        pooled = [
            pooler([feature_map], box_lists, roi_scale_factor)
            for pooler, feature_map in zip(self.poolers, x, strict=True)
        ]
        return torch.cat(pooled, dim=1) if self.aggregation == "concat" else torch.stack(pooled).sum(dim=0)
