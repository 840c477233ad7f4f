"""All augmentations under the path of old imports; they live in the files imported here."""

from detlib.data.transforms.color import RandomBrightness, RandomContrast, RandomLighting, RandomSaturation
from detlib.data.transforms.cropping import (
    CenterCrop,
    FixedSizeCrop,
    MinIoURandomCrop,
    RandomCrop,
    RandomCrop_CategoryAreaConstraint,
    RandomExtent,
    RandomPaddedCrop,
    RandomResizedCrop,
)
from detlib.data.transforms.geometric import (
    RandomApply,
    RandomFlip,
    RandomResize,
    RandomRotation,
    Resize,
    ResizeScale,
    ResizeShortestEdge,
)
from detlib.data.transforms.photometric import ColorJitter, GaussianBlur, RandomErasing, RandomGrayscale, Solarize

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "FixedSizeCrop",
    "GaussianBlur",
    "MinIoURandomCrop",
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
    "Solarize",
]
