"""Crops, random but for that of the middle."""

from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import CropTransform, NoOpTransform, PadTransform, Transform, TransformList
from PIL import Image

from detlib.data.transforms.augmentation import Augmentation, as_resampling, as_size
from detlib.data.transforms.transform import LabelPreservingExtentTransform, ResizeTransform

__all__ = [
    "CenterCrop",
    "FixedSizeCrop",
    "MinIoURandomCrop",
    "RandomCrop",
    "RandomCrop_CategoryAreaConstraint",
    "RandomExtent",
    "RandomPaddedCrop",
    "RandomResizedCrop",
]

_CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")


class RandomCrop(Augmentation):
    """Cut a random window out of the image. It may cut objects away; see ``recompute_boxes`` of DatasetMapper."""

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        """
        Args:
            crop_type: how the size (height, width) of the window follows from crop_size:
                "relative": crop_size times the size of the image;
                "relative_range": likewise, by factors drawn from [crop_size[0], 1] and [crop_size[1], 1];
                "absolute": crop_size, at most the image;
                "absolute_range": both sides drawn from [crop_size[0], crop_size[1]], at most the image.
            crop_size: two numbers.
        """
        super().__init__()
        if crop_type not in _CROP_TYPES:
            raise ValueError(
                f"RandomCrop: crop_type (INPUT.CROP.TYPE) must be one of {', '.join(_CROP_TYPES)}, got {crop_type!r}"
            )
        if len(crop_size) != 2 or (crop_type == "absolute_range" and crop_size[0] > crop_size[1]):
            raise ValueError(f"RandomCrop: crop_size {tuple(crop_size)} does not fit crop_type {crop_type!r}")
        if crop_type.startswith("relative") and not all(0 < side <= 1 for side in crop_size):
            raise ValueError(
                f"RandomCrop: crop_type {crop_type!r} needs a crop_size in (0, 1], got {tuple(crop_size)}; "
                "for pixels use 'absolute'"
            )
        self.crop_type, self.crop_size = crop_type, crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        crop_height, crop_width = self.get_crop_size((height, width))
        y0 = np.random.randint(height - crop_height + 1)
        x0 = np.random.randint(width - crop_width + 1)
        return CropTransform(x0, y0, crop_width, crop_height)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of the window for an image of (height, width)."""
        height, width = image_size
        if self.crop_type == "absolute":
            return min(self.crop_size[0], height), min(self.crop_size[1], width)
        if self.crop_type == "absolute_range":
            low, high = self.crop_size
            sides = [np.random.randint(min(side, low), min(side, high) + 1) for side in (height, width)]
            return sides[0], sides[1]
        scale = np.asarray(self.crop_size, dtype=np.float32)
        if self.crop_type == "relative_range":
            scale = scale + np.random.rand(2) * (1 - scale)
        return max(int(height * scale[0] + 0.5), 1), max(int(width * scale[1] + 0.5), 1)


class RandomCrop_CategoryAreaConstraint(Augmentation):
    """A :class:`RandomCrop` in which no class may fill too much of the window (DeepLab's semantic training)."""

    def __init__(
        self,
        crop_type: str,
        crop_size: Sequence[float],
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        """
        Args:
            crop_type: see RandomCrop; crop_size too.
            single_category_max_area: largest share of the labelled pixels for one class; 1 lifts the constraint.
            ignored_category: label of pixels that do not count.
        """
        super().__init__()
        self.crop_type, self.crop_size = crop_type, crop_size
        self.crop_aug = RandomCrop(crop_type, crop_size)
        self.single_category_max_area, self.ignored_category = single_category_max_area, ignored_category

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray | None) -> Transform:
        if self.single_category_max_area >= 1:
            return self.crop_aug.get_transform(image)
        if sem_seg is None:
            raise ValueError(
                "RandomCrop_CategoryAreaConstraint needs sem_seg, but this sample has none; "
                "set sem_seg_file_name in the dataset, or use RandomCrop"
            )
        for _ in range(10):  # An image of one class meets no constraint: then the last window is taken.
            crop = self.crop_aug.get_transform(image)
            if self._is_varied(crop.apply_segmentation(sem_seg)):
                break
        return crop

    def _is_varied(self, sem_seg: np.ndarray) -> bool:
        labels, areas = np.unique(sem_seg, return_counts=True)
        if self.ignored_category is not None:
            areas = areas[labels != self.ignored_category]
        return len(areas) > 1 and areas.max() < areas.sum() * self.single_category_max_area


class FixedSizeCrop(Augmentation):
    """Crop to a fixed size at a random place; pad smaller images at the right and bottom."""

    def __init__(
        self, crop_size: tuple[int, int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ) -> None:
        """
        Args:
            crop_size: (height, width).
            pad: whether smaller images are padded; otherwise they stay smaller.
            pad_value: for the image.
            seg_pad_value: for semantic labels.
        """
        super().__init__()
        self.crop_size, self.pad, self.pad_value, self.seg_pad_value = crop_size, pad, pad_value, seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        height, width = image.shape[:2]
        crop_height, crop_width = min(height, self.crop_size[0]), min(width, self.crop_size[1])
        y0, x0 = np.rint(np.random.uniform(size=2) * (height - crop_height, width - crop_width)).astype(int)
        crop = CropTransform(int(x0), int(y0), crop_width, crop_height, width, height)
        if not self.pad:
            return TransformList([crop])
        right, bottom = self.crop_size[1] - crop_width, self.crop_size[0] - crop_height
        pad = PadTransform(0, 0, right, bottom, crop_width, crop_height, self.pad_value, self.seg_pad_value)
        return TransformList([crop, pad])


class RandomResizedCrop(Augmentation):
    """Cut out a window of random area and aspect ratio, and resize it (Inception, arXiv:1409.4842, sec. 6).

    Where no window fits, as the image is too long, it is the largest one in the middle that has an allowed ratio.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interp: int | str = Image.BILINEAR,
    ) -> None:
        """
        Args:
            size: (height, width) of the result, or one number for both.
            scale: (min, max) area of the window relative to the image.
            ratio: (min, max) of its width over its height, uniform in the logarithm, so that tall is as likely as wide.
            interp: a PIL resampling method, or its name, such as "bicubic".
        """
        super().__init__()
        self.size = as_size(size, "RandomResizedCrop")
        check_range("RandomResizedCrop", "scale", scale)
        check_range("RandomResizedCrop", "ratio", ratio)
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.interp = as_resampling(interp, "RandomResizedCrop")

    def get_transform(self, image: np.ndarray) -> TransformList:
        height, width = image.shape[:2]
        window = draw_window(height, width, self.scale, self.ratio) or self._middle(height, width)
        crop = CropTransform(*window, width, height)
        return TransformList([crop, ResizeTransform(crop.h, crop.w, *self.size, self.interp)])

    def _middle(self, height: int, width: int) -> tuple[int, int, int, int]:
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        crop_width, crop_height = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


class CenterCrop(Augmentation):
    """Crop to a fixed size in the middle; pad smaller images on both sides."""

    def __init__(self, size: int | Sequence[int], pad_value: float = 0.0, seg_pad_value: int = 255) -> None:
        """
        Args:
            size: (height, width), or one number for both.
            pad_value: for the image.
            seg_pad_value: for semantic labels.
        """
        super().__init__()
        self.size = as_size(size, "CenterCrop")
        self.pad_value, self.seg_pad_value = pad_value, seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        height, width = image.shape[:2]
        missing = [max(wanted - side, 0) for wanted, side in zip(self.size, (height, width), strict=True)]
        top, left = (pixels // 2 for pixels in missing)
        bottom, right = missing[0] - top, missing[1] - left
        pad = PadTransform(left, top, right, bottom, width, height, self.pad_value, self.seg_pad_value)
        height, width = height + missing[0], width + missing[1]
        # Half pixels are rounded to even, as torchvision does, whose published weights were evaluated so.
        y0, x0 = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        crop = CropTransform(x0, y0, self.size[1], self.size[0], width, height)
        return TransformList([pad, crop] if any(missing) else [crop])


class RandomPaddedCrop(Augmentation):
    """Pad all sides, then crop to a fixed size at a random place, as for CIFAR (arXiv:1512.03385, sec. 4.2)."""

    def __init__(
        self, size: int | Sequence[int], padding: int, pad_value: float = 0.0, seg_pad_value: int = 255
    ) -> None:
        """
        Args:
            size: (height, width), or one number for both.
            padding: pixels on each side.
            pad_value: for the image.
            seg_pad_value: for semantic labels.
        """
        super().__init__()
        self.size = as_size(size, "RandomPaddedCrop")
        self.padding, self.pad_value, self.seg_pad_value = padding, pad_value, seg_pad_value

    def get_transform(self, image: np.ndarray) -> TransformList:
        height, width = image.shape[:2]
        pad = PadTransform(*(self.padding,) * 4, width, height, self.pad_value, self.seg_pad_value)
        height, width = height + 2 * self.padding, width + 2 * self.padding
        if height < self.size[0] or width < self.size[1]:
            raise ValueError(
                f"RandomPaddedCrop: an image is {height} x {width} (height x width) after padding, too small for the "
                f"size {self.size}; resize first, e.g. with ResizeShortestEdge"
            )
        y0, x0 = np.random.randint(height - self.size[0] + 1), np.random.randint(width - self.size[1] + 1)
        return TransformList([pad, CropTransform(x0, y0, self.size[1], self.size[0], width, height)])


class RandomExtent(Augmentation):
    """Zoom and shift: cut a random rectangle, which may reach beyond the image, without resizing it."""

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        """
        Args:
            scale_range: (min, max) of the rectangle's size relative to the image.
            shift_range: (x, y) in [0, 1]; its middle is shifted by up to half of that share of the image.
        """
        super().__init__()
        self.scale_range, self.shift_range = scale_range, shift_range

    def get_transform(self, image: np.ndarray) -> Transform:
        size = np.array(image.shape[1::-1])  # width, height
        half = 0.5 * size * np.random.uniform(*self.scale_range)
        center = 0.5 * size + np.array(self.shift_range) * size * (np.random.rand(2) - 0.5)
        width, height = np.maximum((2 * half).astype(int), 1).tolist()
        return LabelPreservingExtentTransform(
            src_rect=(*(center - half), *(center + half)), output_size=(height, width)
        )


class MinIoURandomCrop(Augmentation):
    """Crop so that every object overlaps the window by a random least IoU (SSD, arXiv:1512.02325, sec. 2.2)."""

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ) -> None:
        """
        Args:
            min_ious: least overlaps to choose among, besides no crop at all and a crop without condition.
            min_crop_size: least side of the window relative to the image.
            mode_trials: how often another least overlap is chosen.
            crop_trials: how many windows are tried for each.
        """
        super().__init__()
        self.min_ious, self.min_crop_size = min_ious, min_crop_size
        self.mode_trials, self.crop_trials = mode_trials, crop_trials
        self.sample_mode = (1, *min_ious, 0)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None) -> Transform:
        if boxes is None:
            return NoOpTransform()
        for _ in range(self.mode_trials):
            self.mode = np.random.choice(self.sample_mode)
            if self.mode == 1:
                break
            windows = self._draw_windows(*image.shape[:2])
            valid = np.flatnonzero(_keeps_objects(windows, boxes, min_iou=self.mode))
            if len(valid):
                x0, y0, x1, y1 = windows[valid[0]].tolist()
                return CropTransform(x0, y0, x1 - x0, y1 - y0)
        return NoOpTransform()

    def _draw_windows(self, height: int, width: int) -> np.ndarray:
        """Draw windows (T, 4), x0, y0, x1, y1 in whole pixels, with an aspect ratio between 1/2 and 2."""
        size = np.array([width, height])
        sides = np.random.uniform(self.min_crop_size, 1, (self.crop_trials, 2)) * size
        start = np.random.uniform(size=sides.shape) * (size - sides)
        windows = np.concatenate((start, start + sides), axis=1).astype(int)
        aspect = sides[:, 1] / sides[:, 0]
        is_empty = (windows[:, 2:] == windows[:, :2]).any(axis=1)
        return windows[(aspect >= 0.5) & (aspect <= 2) & ~is_empty]


def _keeps_objects(windows: np.ndarray, boxes: np.ndarray, min_iou: float) -> np.ndarray:
    """Tell for each window (T, 4) whether it overlaps all boxes (N, 4) enough and holds the middle of one."""
    if len(boxes) == 0:
        return np.ones(len(windows), dtype=bool)
    start = np.maximum(windows[:, None, :2], boxes[None, :, :2])
    end = np.minimum(windows[:, None, 2:], boxes[None, :, 2:])
    intersection = np.clip(end - start, 0, None).prod(axis=2)  # (T, N)
    area_of_windows = (windows[:, 2:] - windows[:, :2]).prod(axis=1)
    area_of_boxes = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    iou = intersection / (area_of_windows[:, None] + area_of_boxes - intersection)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centers > windows[:, None, :2]) & (centers < windows[:, None, 2:])  # (T, N, 2)
    return (iou.min(axis=1) >= min_iou) & inside.all(axis=2).any(axis=1)


def check_range(owner: str, argument: str, values: Sequence[float]) -> None:
    if len(values) != 2 or not 0 < values[0] <= values[1]:
        raise ValueError(f"{owner}: {argument} must be (min, max) with 0 < min <= max, got {values!r}")


def draw_window(
    height: int, width: int, scale: Sequence[float], ratio: Sequence[float], num_tries: int = 10
) -> tuple[int, int, int, int] | None:
    """Draw a window x0, y0, width, height inside of an image, see RandomResizedCrop; None if none of the tries fits."""
    areas = height * width * np.random.uniform(*scale, num_tries)
    ratios = np.exp(np.random.uniform(*np.log(ratio), num_tries))
    sides = np.rint(np.sqrt((areas * ratios, areas / ratios))).astype(int)  # (2, tries): width, height
    fits = ((sides > 0) & (sides <= [[width], [height]])).all(axis=0)
    if not fits.any():
        return None
    window_width, window_height = sides[:, fits.argmax()].tolist()
    x0, y0 = np.random.randint(width - window_width + 1), np.random.randint(height - window_height + 1)
    return x0, y0, window_width, window_height
