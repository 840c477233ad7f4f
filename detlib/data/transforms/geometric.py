"""Random resizing, flipping and rotating; crops are in ``cropping``."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, Transform, VFlipTransform
from PIL import Image

from detlib.data.transforms.augmentation import Augmentation, as_augmentation, as_resampling, as_size
from detlib.data.transforms.transform import ResizeTransform, RotationTransform

__all__ = [
    "RandomApply",
    "RandomFlip",
    "RandomResize",
    "RandomRotation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]


def _check_choice(owner: Augmentation, argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{type(owner).__name__}: {argument} must be one of {', '.join(allowed)}, got {value!r}")


class RandomApply(Augmentation):
    """Apply another augmentation, or a transform, with some probability."""

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        """
        Args:
            prob: of applying it, in [0, 1].
        """
        super().__init__()
        if not 0 <= prob <= 1:
            raise ValueError(f"RandomApply: prob must be in [0, 1], got {prob}")
        self.aug = as_augmentation(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        return self.aug.get_transform(*args) if self._rand_range() < self.prob else NoOpTransform()

    def __call__(self, aug_input: Any) -> Transform:
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()


class RandomFlip(Augmentation):
    """Mirror the image horizontally or vertically. For both, use two."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        super().__init__()
        if horizontal == vertical:
            raise ValueError(
                f"RandomFlip flips either way, got horizontal={horizontal} and vertical={vertical}; "
                "use one RandomFlip for each direction"
            )
        self.prob, self.horizontal, self.vertical = prob, horizontal, vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """Resize to a fixed size, whatever the aspect ratio."""

    def __init__(self, shape: int | tuple[int, int], interp: int | str = Image.BILINEAR) -> None:
        """
        Args:
            shape: (height, width), or one number for both.
            interp: a PIL resampling method, or its name, such as "bicubic".
        """
        super().__init__()
        self.shape, self.interp = as_size(shape, "Resize"), as_resampling(interp, "Resize")

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class ResizeShortestEdge(Augmentation):
    """Resize to a shortest edge drawn at random, less if the longest edge would exceed ``max_size``."""

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int | str = Image.BILINEAR,
    ) -> None:
        """
        Args:
            short_edge_length: smallest and largest length for "range", both included; the lengths to choose among
                for "choice"; or one length. 0 keeps the image as it is.
            sample_style: "range" or "choice".
            interp: a PIL resampling method, or its name, such as "bicubic".
        """
        super().__init__()
        _check_choice(self, "sample_style", sample_style, ("range", "choice"))
        lengths = (short_edge_length,) * 2 if isinstance(short_edge_length, int) else tuple(short_edge_length)
        self.is_range = sample_style == "range"
        if not lengths or (self.is_range and len(lengths) != 2):
            raise ValueError(
                f"ResizeShortestEdge: short_edge_length is {short_edge_length!r}; sample_style 'range' takes (min, "
                "max), 'choice' takes one or more lengths (INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TRAIN_SAMPLING)"
            )
        self.short_edge_length, self.max_size = lengths, max_size
        self.interp = as_resampling(interp, "ResizeShortestEdge")

    def get_transform(self, image: np.ndarray) -> Transform:
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:
            return NoOpTransform()
        height, width = image.shape[:2]
        return ResizeTransform(height, width, *self.get_output_shape(height, width, size, self.max_size), self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Return (height, width) after resizing; the aspect ratio is kept up to rounding."""
        scale = float(short_edge_length) / min(oldh, oldw)
        newh, neww = (short_edge_length, scale * oldw) if oldh < oldw else (scale * oldh, short_edge_length)
        if max(newh, neww) > max_size:
            shrink = max_size * 1.0 / max(newh, neww)
            newh, neww = newh * shrink, neww * shrink
        return max(int(newh + 0.5), 1), max(int(neww + 0.5), 1)


class ResizeScale(Augmentation):
    """Fit the image into a target size times a random scale, as in "Simple Copy-Paste" (arXiv:2012.07177)."""

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int | str = Image.BILINEAR,
    ) -> None:
        super().__init__()
        self.min_scale, self.max_scale = min_scale, max_scale
        self.target_height, self.target_width = target_height, target_width
        self.interp = as_resampling(interp, "ResizeScale")

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        random_scale = np.random.uniform(self.min_scale, self.max_scale)
        scale = min(self.target_height * random_scale / height, self.target_width * random_scale / width)
        new_height, new_width = (max(round(side * scale), 1) for side in (height, width))
        return ResizeTransform(height, width, new_height, new_width, self.interp)


class RandomResize(Augmentation):
    """Resize to one of several sizes."""

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int | str = Image.BILINEAR) -> None:
        """
        Args:
            shape_list: (height, width) of each.
            interp: a PIL resampling method, or its name, such as "bicubic".
        """
        super().__init__()
        self.shape_list, self.interp = shape_list, as_resampling(interp, "RandomResize")

    def get_transform(self, image: np.ndarray) -> Transform:
        shape = self.shape_list[np.random.randint(len(self.shape_list))]
        return ResizeTransform(*image.shape[:2], *shape, self.interp)


class RandomRotation(Augmentation):
    """Rotate counter-clockwise by a random angle."""

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[Sequence[float]] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        """
        Args:
            angle: in degrees: (min, max) for "range", the angles to choose among for "choice", or one angle.
            expand: enlarge the image so that all of it stays visible.
            center: points to rotate about, (x, y) relative to the size of the image: ((min x, min y), (max x, max y))
                for "range", the points to choose among for "choice". The middle by default; no effect with expand.
            sample_style: "range" or "choice".
            interp: an OpenCV interpolation flag.
        """
        super().__init__()
        _check_choice(self, "sample_style", sample_style, ("range", "choice"))
        self.is_range = sample_style == "range"
        self.angle = (angle, angle) if isinstance(angle, (int, float)) else tuple(angle)
        if center is not None and not isinstance(center[0], Sequence):
            center = (center, center)
        self.expand, self.center, self.interp = expand, center, interp

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self.is_range:
            angle = np.random.uniform(*self.angle)
            center = None if self.center is None else np.random.uniform(*self.center)
        else:
            angle = np.random.choice(self.angle)
            center = None if self.center is None else self.center[np.random.randint(len(self.center))]
        if angle % 360 == 0:
            return NoOpTransform()
        if center is not None:
            center = (width * center[0], height * center[1])
        return RotationTransform(height, width, angle, self.expand, center, self.interp)
