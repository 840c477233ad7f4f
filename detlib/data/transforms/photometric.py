"""Changes of color, blur and erasing, as classification and self-supervised learning use them."""

import functools
from collections.abc import Sequence

import numpy as np
import torchvision.transforms.functional as TF
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image, ImageFilter

from detlib.data.transforms.augmentation import Augmentation
from detlib.data.transforms.cropping import check_range, draw_window
from detlib.data.transforms.transform import ColorTransform, through_pil

__all__ = ["ColorJitter", "GaussianBlur", "RandomErasing", "RandomGrayscale", "Solarize"]

_ADJUST = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
    "hue": TF.adjust_hue,
}


class ColorJitter(Augmentation):
    """Change brightness, contrast, saturation and hue, in random order (SimCLR, arXiv:2002.05709, app. A)."""

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        image_format: str = "RGB",
    ) -> None:
        """
        Args:
            brightness: b, for a factor drawn from [max(0, 1 - b), 1 + b]; contrast and saturation likewise.
            hue: h, for a turn of the color circle drawn from [-h, h]; 0.5 is half the circle, and the most.
            image_format: order of the channels, "RGB" or "BGR"; that of INPUT.FORMAT in a config.
        """
        super().__init__()
        if min(brightness, contrast, saturation, hue) < 0 or hue > 0.5:
            raise ValueError(
                f"ColorJitter: strengths are at least 0, and hue at most 0.5; got brightness={brightness}, "
                f"contrast={contrast}, saturation={saturation}, hue={hue}"
            )
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.image_format = _check_format("ColorJitter", image_format)

    def get_transform(self, image: np.ndarray) -> Transform:
        _check_colors("ColorJitter", image)
        steps = [
            (name, np.random.uniform(max(0, 1 - strength), 1 + strength))
            for name, strength in (
                ("brightness", self.brightness),
                ("contrast", self.contrast),
                ("saturation", self.saturation),
            )
            if strength > 0
        ]
        if self.hue > 0:
            steps.append(("hue", np.random.uniform(-self.hue, self.hue)))
        steps = [steps[i] for i in np.random.permutation(len(steps))]
        return ColorTransform(functools.partial(_adjust, steps=steps, image_format=self.image_format))


def _adjust(image: np.ndarray, steps: Sequence[tuple[str, float]], image_format: str) -> np.ndarray:
    picture = _to_picture(image, image_format)
    for name, value in steps:
        picture = _ADJUST[name](picture, value)
    return _from_picture(picture, image_format)


class RandomGrayscale(Augmentation):
    """Replace colors by their luma (ITU-R BT.601), in three equal channels."""

    def __init__(self, prob: float = 0.1, image_format: str = "RGB") -> None:
        """
        Args:
            image_format: see ColorJitter.
        """
        super().__init__()
        self.prob, self.image_format = prob, _check_format("RandomGrayscale", image_format)

    def get_transform(self, image: np.ndarray) -> Transform:
        _check_colors("RandomGrayscale", image)
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return ColorTransform(functools.partial(_to_gray, image_format=self.image_format))


def _to_gray(image: np.ndarray, image_format: str) -> np.ndarray:
    return np.asarray(_to_picture(image, image_format).convert("L").convert("RGB"))


class GaussianBlur(Augmentation):
    """Blur with a random strength. For a probability, wrap it in :class:`RandomApply`."""

    def __init__(self, sigma: float | Sequence[float] = (0.1, 2.0)) -> None:
        """
        Args:
            sigma: (min, max) of the standard deviation in pixels, or one number.
        """
        super().__init__()
        self.sigma = (sigma, sigma) if isinstance(sigma, int | float) else tuple(sigma)
        check_range("GaussianBlur", "sigma", self.sigma)

    def get_transform(self, image: np.ndarray) -> Transform:
        if image.dtype != np.uint8:
            raise ValueError(f"GaussianBlur needs a uint8 image, got {image.dtype}")
        return ColorTransform(functools.partial(_blur, sigma=np.random.uniform(*self.sigma)))


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return through_pil(image, lambda plane: plane.filter(ImageFilter.GaussianBlur(sigma)))


class Solarize(Augmentation):
    """Invert bright values. For a probability, wrap it in :class:`RandomApply`."""

    input_args = ()

    def __init__(self, threshold: float = 128.0) -> None:
        """
        Args:
            threshold: values from here on, of [0, 255], are inverted; 0 inverts all.
        """
        super().__init__()
        self.threshold = threshold

    def get_transform(self) -> Transform:
        return ColorTransform(functools.partial(_solarize, threshold=self.threshold))


def _solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    return np.where(image >= threshold, 255 - image, image)


class RandomErasing(Augmentation):
    """Paint over a random window of the image (arXiv:1708.04896). Objects in it keep their boxes and masks."""

    def __init__(
        self,
        prob: float = 0.5,
        scale: Sequence[float] = (0.02, 1 / 3),
        ratio: Sequence[float] = (0.3, 10 / 3),
        value: float | Sequence[float] | str = 0.0,
    ) -> None:
        """
        Args:
            scale: (min, max) area of the window relative to the image; ratio: of its width over its height.
            value: of all pixels, or one number for each channel, or "random" for noise.
        """
        super().__init__()
        check_range("RandomErasing", "scale", scale)
        check_range("RandomErasing", "ratio", ratio)
        if isinstance(value, str) and value != "random":
            raise ValueError(f"RandomErasing: value must be a number, one for each channel, or 'random', got {value!r}")
        self.prob, self.scale, self.ratio, self.value = prob, tuple(scale), tuple(ratio), value

    def get_transform(self, image: np.ndarray) -> Transform:
        window = draw_window(*image.shape[:2], self.scale, self.ratio) if self._rand_range() < self.prob else None
        if window is None:
            return NoOpTransform()
        x0, y0, width, height = window
        is_noise = isinstance(self.value, str)
        value = np.random.uniform(0, 256, (height, width, *image.shape[2:])) if is_noise else self.value
        return ColorTransform(functools.partial(_paint, window=np.s_[y0 : y0 + height, x0 : x0 + width], value=value))


def _paint(image: np.ndarray, window: tuple[slice, slice], value: float | Sequence[float] | np.ndarray) -> np.ndarray:
    image = image.copy()
    image[window] = value
    return image


def _check_format(owner: str, image_format: str) -> str:
    if image_format not in ("RGB", "BGR"):
        raise ValueError(
            f"{owner} works on colors: image_format (INPUT.FORMAT) must be RGB or BGR, got {image_format!r}"
        )
    return image_format


def _check_colors(owner: str, image: np.ndarray) -> None:
    if image.shape[2:] != (3,) or image.dtype != np.uint8:
        raise ValueError(f"{owner} needs a uint8 image (H, W, 3), got {image.dtype} of the shape {image.shape}")


def _to_picture(image: np.ndarray, image_format: str) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image if image_format == "RGB" else image[:, :, ::-1]))


def _from_picture(picture: Image.Image, image_format: str) -> np.ndarray:
    rgb = np.asarray(picture)
    return rgb if image_format == "RGB" else rgb[:, :, ::-1]
