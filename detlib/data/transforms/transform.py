"""Deterministic transforms that fvcore lacks. Coordinates are continuous: pixel (row i, column j) covers
[j, j + 1] x [i, i + 1], its center is (j + 0.5, i + 0.5).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList
from PIL import Image

__all__ = [
    "ColorTransform",
    "ExtentTransform",
    "LabelPreservingExtentTransform",
    "PILColorTransform",
    "ResizeTransform",
    "RotationTransform",
]

_TORCH_MODES = {
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
    Image.Resampling.BOX: "area",
}


def through_pil(image: np.ndarray, op: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply a PIL operation to an array (H, W) or (H, W, C) of any number of channels, uint8 or floating point.

    Pillow has no mode for most channel counts and dtypes, and takes four channels for transparency, by which it
    weighs the others. Hence all but gray and RGB images of uint8 go channel by channel.
    """
    if image.dtype != np.uint8:
        channels = np.atleast_3d(image).astype(np.float32)
    elif image.ndim == 2 or image.shape[2] == 3:
        return np.asarray(op(Image.fromarray(image)))
    else:
        channels = image
    planes = [np.asarray(op(Image.fromarray(np.ascontiguousarray(plane)))) for plane in np.moveaxis(channels, 2, 0)]
    result = np.stack(planes, axis=2).astype(image.dtype)
    return result[:, :, 0] if image.ndim == 2 else result


class ResizeTransform(Transform):
    """Resize an image to a fixed size."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        """
        Args:
            h: height that the image must have; w: its width.
            new_h: height after resizing; new_w: its width.
            interp: a PIL resampling method, bilinear by default.
        """
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w
        self.interp = Image.Resampling.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize (H, W) or (H, W, C). Only uint8 is smoothed before shrinking, as PIL does and torch does not."""
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(
                f"this ResizeTransform is for images of {self.h} x {self.w} (height x width), got {img.shape[:2]}"
            )
        interp = self.interp if interp is None else interp
        if img.dtype == np.uint8:
            return through_pil(img, lambda plane: plane.resize((self.new_w, self.new_h), interp))
        return self._nearest(img) if interp == Image.Resampling.NEAREST else self._interpolate(img, interp)

    def _nearest(self, img: np.ndarray) -> np.ndarray:
        # floor((i + 0.5) * old / new), as PIL has it, in integers: labels of any dtype keep their values.
        rows = (2 * np.arange(self.new_h) + 1) * self.h // (2 * self.new_h)
        columns = (2 * np.arange(self.new_w) + 1) * self.w // (2 * self.new_w)
        return img[rows[:, None], columns]

    def _interpolate(self, img: np.ndarray, interp: int) -> np.ndarray:
        if interp not in _TORCH_MODES:
            raise ValueError(f"a {img.dtype} image cannot be resized with {interp!r}; use BILINEAR, or a uint8 image")
        mode = _TORCH_MODES[interp]
        planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(img).transpose(2, 0, 1)))[None]  # (1, C, H, W)
        align_corners = None if mode == "area" else False
        planes = F.interpolate(planes, (self.new_h, self.new_w), mode=mode, align_corners=align_corners)
        resized = planes[0].permute(1, 2, 0).numpy()
        return resized[:, :, 0] if img.ndim == 2 else resized

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def inverse(self) -> "ResizeTransform":
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class RotationTransform(Transform):
    """Rotate an image counter-clockwise about a point; what enters from outside is black."""

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: Sequence[float] | None = None,
        interp: int | None = None,
    ) -> None:
        """
        Args:
            h: height of the image; w: its width.
            angle: in degrees.
            expand: enlarge the output so that it holds the whole image; the image is then in its middle.
            center: (x, y) to rotate about, the middle of the image by default. Without effect if expand is set.
            interp: an OpenCV interpolation flag, linear by default.
        """
        super().__init__()
        self.h, self.w, self.angle, self.expand, self.interp = h, w, angle, expand, interp
        self.image_center = np.array((w / 2, h / 2))
        self.center = self.image_center if center is None else np.asarray(center, dtype=float)
        cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
        size = (h * sin + w * cos, h * cos + w * sin) if expand else (w, h)
        self.bound_w, self.bound_h = np.rint(size).astype(int).tolist()
        self.rm_coords = self.create_rotation_matrix()
        # OpenCV puts the center of the first pixel at 0, not 0.5 (https://github.com/opencv/opencv/issues/11784).
        self.rm_image = self.create_rotation_matrix(offset=-0.5)

    def create_rotation_matrix(self, offset: float = 0) -> np.ndarray:
        """Return the (2, 3) matrix of the map p -> R (p - center) + center, in coordinates shifted by offset."""
        cos, sin = np.cos(np.deg2rad(self.angle)), np.sin(np.deg2rad(self.angle))
        rotation = np.array([[cos, sin], [-sin, cos]])  # Counter-clockwise to the eye, as y points down.
        if self.expand:
            source, target = self.image_center, np.array((self.bound_w / 2, self.bound_h / 2))
        else:
            source = target = self.center
        shift = target + offset - rotation @ (source + offset)
        return np.column_stack((rotation, shift))

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(
                f"this RotationTransform is for images of {self.h} x {self.w} (height x width), got {img.shape[:2]}"
            )
        if img.size == 0 or self.angle % 360 == 0:
            return img
        import cv2

        interp = self.interp if interp is None else interp
        flags = cv2.INTER_LINEAR if interp is None else interp
        rotated = cv2.warpAffine(img, self.rm_image, (self.bound_w, self.bound_h), flags=flags)
        return rotated.reshape(*rotated.shape[:2], *img.shape[2:])  # OpenCV drops an only channel.

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        import cv2

        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> TransformList:
        """Rotate back and crop to the former size; only with expand, as otherwise corners are lost."""
        if not self.expand:
            raise NotImplementedError("a RotationTransform without expand cuts corners off and has no inverse")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        crop = CropTransform((back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2, self.w, self.h)
        return TransformList([back, crop])


class ExtentTransform(Transform):
    """Cut a rectangle out of the image, also one that reaches beyond it, and resize it."""

    def __init__(
        self, src_rect: Sequence[float], output_size: tuple[int, int], interp: int = Image.BILINEAR, fill: int = 0
    ) -> None:
        """
        Args:
            src_rect: x0, y0, x1, y1 in the image; x0 > x1 or y0 > y1 mirrors.
            output_size: (height, width).
            interp: a PIL resampling method.
            fill: value of pixels outside of the image.
        """
        super().__init__()
        self.src_rect, self.output_size, self.interp, self.fill = src_rect, output_size, interp, fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        height, width = self.output_size

        def extract(plane: Image.Image) -> Image.Image:
            return plane.transform(
                (width, height),
                Image.Transform.EXTENT,
                data=tuple(self.src_rect),
                resample=self.interp if interp is None else interp,
                fillcolor=self.fill if plane.mode != "RGB" else (self.fill,) * 3,
            )

        return through_pil(img, extract)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        height, width = self.output_size
        x0, y0, x1, y1 = self.src_rect
        scale = np.array([width / (x1 - x0), height / (y1 - y0)])
        return ((coords - np.array([x0, y0])) * scale).astype(coords.dtype)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        # Blends labels where interp does: detectron2 does so, and its numbers are the reference. RandomExtent does not.
        return self.apply_image(segmentation)


class LabelPreservingExtentTransform(ExtentTransform):
    """An :class:`ExtentTransform` that copies the nearest label instead of blending labels."""

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)


class ColorTransform(Transform):
    """Any function of an image that leaves every pixel in its place."""

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        """
        Args:
            op: from an array (H, W, C) to one of the same shape.
        """
        if not callable(op):
            raise TypeError(f"{type(self).__name__} needs a function of an image, got {op!r}")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def inverse(self) -> NoOpTransform:
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """A color transform whose function works on a PIL image, e.g. ``PILColorTransform(ImageOps.autocontrast)``."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return np.asarray(self.op(Image.fromarray(img)))


def _apply_rotated_box(transform: Transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Transform boxes (N, 5): x and y of the center, width, height, angle in degrees, counter-clockwise.

    The sides of a box go where the image goes. Where it is sheared, or scaled unevenly, a box becomes a parallelogram;
    then sides keep their new length, and the angle is that of the side that was the height.
    """
    boxes = np.asarray(rotated_boxes, dtype=float).reshape(-1, 5)
    centers, angle = boxes[:, :2], np.deg2rad(boxes[:, 4])
    cos, sin = np.cos(angle), np.sin(angle)
    along_width, along_height = np.column_stack((cos, -sin)), np.column_stack((sin, cos))
    points = np.concatenate((centers, centers + along_width, centers + along_height))
    centers, along_width, along_height = np.split(transform.apply_coords(points), 3)
    along_width, along_height = along_width - centers, along_height - centers
    width = boxes[:, 2] * np.hypot(*along_width.T)
    height = boxes[:, 3] * np.hypot(*along_height.T)
    return np.column_stack((centers, width, height, np.rad2deg(np.arctan2(*along_height.T))))


Transform.register_type("rotated_box", _apply_rotated_box)
