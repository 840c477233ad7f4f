"""Semantic segmentation: a class for every pixel, from a pyramid of features (Panoptic FPN, arXiv:1901.02446, sec. 3).

Shapes: N images of H x W pixels, padded; K classes; s is the stride of the predictions.
"""

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import Conv2d, ShapeSpec, get_norm
from detlib.modeling.backbone import Backbone, build_backbone, select_shapes
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.postprocessing import sem_seg_postprocess
from detlib.modeling.preprocessing import (
    ImagePreprocessor,
    PreprocessesImages,
    check_sem_seg,
    output_size_of,
    pad_labels,
)
from detlib.structures import ImageList
from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = ["SEM_SEG_HEADS_REGISTRY", "SemSegFPNHead", "SemanticSegmentor", "build_sem_seg_head"]

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = """
Heads that make a map of classes of feature maps, called as ``head(cfg, input_shape)`` with a dict from the names of
feature maps to their ``ShapeSpec``. ``head(features, targets)`` returns ``(None, losses)`` when training and
``(logits, {})`` else, the logits being (N, K, H, W).
"""


def build_sem_seg_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build what ``cfg.MODEL.SEM_SEG_HEAD.NAME`` names.

    Args:
        input_shape: of the backbone's feature maps, by name.
    """
    return SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)


@META_ARCH_REGISTRY.register()
class SemanticSegmentor(PreprocessesImages, nn.Module):
    """Backbone and a semantic head."""

    num_stuff_classes_key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ) -> None:
        """
        Args:
            sem_seg_head: see SEM_SEG_HEADS_REGISTRY.
            pixel_mean: of each channel.
            pixel_std: of each channel.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        size_divisibility = max(backbone.size_divisibility, getattr(sem_seg_head, "size_divisibility", 0))
        self.preprocessor = ImagePreprocessor(pixel_mean, pixel_std, size_divisibility, backbone.padding_constraints)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: for each image a dict with

                * ``image``: (C, H, W) in the channel order and range of ``INPUT.FORMAT``;
                * ``sem_seg``: when training, (H, W) class of each pixel, or the head's ``ignore_value``;
                * ``height``, ``width``: size in which the predictions are wanted; by default that of ``image``.

        Returns:
            The losses by name when training. Else for each image a dict whose ``sem_seg`` are the (K, height, width)
            logits.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            _, losses = self.sem_seg_head(features, batch_targets(batched_inputs, images, self.sem_seg_head))
            return losses
        logits, _ = self.sem_seg_head(features)
        return [{"sem_seg": x} for x in resize_to_output(logits, batched_inputs, images.image_sizes)]


@SEM_SEG_HEADS_REGISTRY.register()
class SemSegFPNHead(nn.Module):
    """Bring every map of the pyramid to one stride, add them up, and classify each cell (fig. 3).

    A map of stride ``2 ** n * common_stride`` passes n times through a convolution, norm, ReLU and upsampling by 2; one
    of the common stride through the former three only.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        conv_dims: int,
        common_stride: int,
        loss_weight: float = 1.0,
        norm: str | Callable | None = None,
        ignore_value: int = -1,
    ) -> None:
        """
        Args:
            input_shape: of the feature maps to use, by name.
            conv_dims: channels of the convolutions.
            common_stride: of the predictions, in pixels.
            loss_weight: factor on the loss.
            norm: after each convolution.
            ignore_value: label of pixels that do not count.
        """
        super().__init__()
        input_shape = dict(sorted(input_shape.items(), key=lambda item: item[1].stride))
        if not input_shape:
            raise ConfigError("the semantic head needs a feature map; set MODEL.SEM_SEG_HEAD.IN_FEATURES.")
        self.in_features = list(input_shape)
        # A map is doubled to the size of the others, from which it differs unless the images are padded to its stride.
        self.size_divisibility = max(shape.stride for shape in input_shape.values())
        self.num_classes = num_classes
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.ignore_value = ignore_value
        for name, shape in input_shape.items():
            self.add_module(name, _scale_head(name, shape, conv_dims, common_stride, norm))
        self.predictor = Conv2d(conv_dims, num_classes, kernel_size=1)
        weight_init.c2_msra_fill(self.predictor)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        names = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
        shapes = select_shapes(input_shape, names, "MODEL.SEM_SEG_HEAD.IN_FEATURES")
        return {
            "input_shape": dict(zip(names, shapes)),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "conv_dims": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
            "common_stride": cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
            "loss_weight": cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT,
            "norm": cfg.MODEL.SEM_SEG_HEAD.NORM,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    @property
    def scale_heads(self) -> list[nn.Module]:
        """What brings each map to the common stride, in the order of ``in_features``."""
        return [getattr(self, name) for name in self.in_features]

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """
        Args:
            features: maps by name.
            targets: when training, (N, H, W) labels.

        Returns:
            When training, None and the losses; else (N, K, H, W) logits and no losses.
        """
        logits = self.layers(features)
        if self.training:
            return None, self.losses(logits, targets)
        return self._upsample(logits), {}

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """The logits (N, K, H / s, W / s), before they are upsampled to pixels."""
        maps = [head(features[name]) for name, head in zip(self.in_features, self.scale_heads)]
        return self.predictor(sum(maps))

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross entropy, averaged over the pixels of the batch that count.

        Args:
            predictions: (N, K, H / s, W / s).
            targets: (N, H, W) int64.
        """
        # Half precision is too coarse for a sum over so many pixels.
        logits = self._upsample(predictions.float())
        loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=self.ignore_value)
        num_pixels = (targets != self.ignore_value).sum().clamp(min=1)
        return {"loss_sem_seg": loss / num_pixels * self.loss_weight}

    def _upsample(self, logits: Tensor) -> Tensor:
        return F.interpolate(logits, scale_factor=self.common_stride, mode="bilinear", align_corners=False)


def batch_targets(batched_inputs: list[dict[str, Any]], images: ImageList, sem_seg_head: nn.Module) -> Tensor:
    """The (N, H, W) labels of a training batch, padded as the images are, with the head's ``ignore_value``."""
    # Heads of projects need not state their classes; their labels are then taken as they are.
    num_classes = getattr(sem_seg_head, "num_classes", None)
    check_sem_seg(batched_inputs, num_classes, sem_seg_head.ignore_value)
    return pad_labels([sample["sem_seg"] for sample in batched_inputs], images, sem_seg_head.ignore_value)


def resize_to_output(
    logits: Tensor, batched_inputs: list[dict[str, Any]], image_sizes: list[tuple[int, int]]
) -> list[Tensor]:
    """From (N, K, H, W) logits of the padded batch to those of each image in the size that is wanted."""
    sizes = [output_size_of(*sample) for sample in zip(batched_inputs, image_sizes)]
    return [sem_seg_postprocess(x, size, *output) for x, size, output in zip(logits, image_sizes, sizes)]


def _scale_head(
    name: str, shape: ShapeSpec, conv_dims: int, common_stride: int, norm: str | Callable | None
) -> nn.Sequential:
    num_upsamplings = math.log2(shape.stride / common_stride)
    if num_upsamplings < 0 or not num_upsamplings.is_integer():
        raise ConfigError(
            f"the semantic head cannot bring {name} of stride {shape.stride} to the stride {common_stride}, as it only "
            f"doubles resolutions; change MODEL.SEM_SEG_HEAD.IN_FEATURES or COMMON_STRIDE."
        )
    layers: list[nn.Module] = []
    for index in range(max(1, int(num_upsamplings))):
        in_channels = shape.channels if index == 0 else conv_dims
        conv = Conv2d(
            in_channels,
            conv_dims,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, conv_dims),
            activation=F.relu,
        )
        weight_init.c2_msra_fill(conv)
        layers.append(conv)
        if num_upsamplings > 0:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)
