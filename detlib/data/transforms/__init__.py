"""Transforms, applied alike to images, boxes, masks and keypoints, and the random policies that choose them.

Usually imported as ``from detlib.data import transforms as T``.
"""

from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    GridSampleTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    ScaleTransform,
    Transform,
    TransformList,
    VFlipTransform,
)

from detlib.data.transforms.augmentation import (
    AugInput,
    Augmentation,
    AugmentationList,
    StandardAugInput,
    TransformGen,
    apply_augmentations,
    apply_transform_gens,
)
from detlib.data.transforms.augmentation_impl import (
    CenterCrop,
    ColorJitter,
    FixedSizeCrop,
    GaussianBlur,
    MinIoURandomCrop,
    RandomApply,
    RandomBrightness,
    RandomContrast,
    RandomCrop,
    RandomCrop_CategoryAreaConstraint,
    RandomErasing,
    RandomExtent,
    RandomFlip,
    RandomGrayscale,
    RandomLighting,
    RandomPaddedCrop,
    RandomResize,
    RandomResizedCrop,
    RandomRotation,
    RandomSaturation,
    Resize,
    ResizeScale,
    ResizeShortestEdge,
    Solarize,
)
from detlib.data.transforms.build import AUGMENTATION_REGISTRY, build_augmentations
from detlib.data.transforms.transform import (
    ColorTransform,
    ExtentTransform,
    PILColorTransform,
    ResizeTransform,
    RotationTransform,
)

__all__ = [
    "AUGMENTATION_REGISTRY",
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "BlendTransform",
    "CenterCrop",
    "ColorJitter",
    "ColorTransform",
    "CropTransform",
    "ExtentTransform",
    "FixedSizeCrop",
    "GaussianBlur",
    "GridSampleTransform",
    "HFlipTransform",
    "MinIoURandomCrop",
    "NoOpTransform",
    "PILColorTransform",
    "PadTransform",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomCrop_CategoryAreaConstraint",
    "RandomErasing",
    "RandomExtent",
    "RandomFlip",
    "RandomGrayscale",
    "RandomLighting",
    "RandomPaddedCrop",
    "RandomResize",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
    "ResizeTransform",
    "RotationTransform",
    "ScaleTransform",
    "Solarize",
    "StandardAugInput",
    "Transform",
    "TransformGen",
    "TransformList",
    "VFlipTransform",
    "apply_augmentations",
    "apply_transform_gens",
    "build_augmentations",
]

_BASES = (Augmentation, Transform)  # Of which one cannot make any.
for _public in map(globals().get, dict.fromkeys(__all__)):
    if isinstance(_public, type) and issubclass(_public, _BASES) and _public not in _BASES:
        AUGMENTATION_REGISTRY.register(_public)
