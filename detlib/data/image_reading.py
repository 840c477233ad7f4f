"""Reading images as arrays: orientation, channel order, and what is wrong with a file."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from detlib.utils.errors import ConfigError, DatasetError, DetlibError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = [
    "SizeMismatchError",
    "check_image_size",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "image_of",
    "open_image",
    "read_image",
]

_YUV_OF_RGB = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])  # BT.601
_RGB_OF_YUV = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])

_RUN_PROGRAMS = ("EPS", "WMF")  # Pillow starts Ghostscript for EPS.

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF 2.3, sec. 4.6.4: what brings the stored image into its upright position.
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SizeMismatchError(DatasetError):
    """An image has not the size that its dataset states."""


def read_image(file_name: str | os.PathLike[str], format: str | None = None) -> np.ndarray:
    """Read an image, turned upright as its EXIF orientation asks.

    Args:
        format: "RGB", "BGR", "L", "YUV-BT.601" or another mode of PIL; None leaves the channels as they are stored.

    Returns:
        (H, W, C), or (H, W) for a gray or palette image read without format; "L" gives (H, W, 1). uint8 in [0, 255];
        "YUV-BT.601" gives floats, with Y in [0, 1].

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged or no image.
    """
    with open_image(file_name) as image:
        image.load()
        upright = _upright(image)
    try:
        return convert_PIL_to_numpy(upright, format)
    except DatasetError as error:
        raise DatasetError(f"{os.fspath(file_name)}: {error}") from None


@contextlib.contextmanager
def open_image(file_name: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image; what goes wrong with it within the context is raised as an error that names the file.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged, no image, or one that is not safe to read.
    """
    name = os.fspath(file_name)
    try:
        with PathManager.open(name, "rb") as file:
            image = Image.open(file)
            if image.format in _RUN_PROGRAMS:
                raise DatasetError(f"{name} is {image.format}, which another program would draw; convert it to PNG")
            yield image
    except DetlibError:
        raise
    except FileNotFoundError:
        raise MissingFileError(
            f"image {name} does not exist; check the image folder that the dataset was registered with"
        ) from None
    except UnidentifiedImageError:
        raise DatasetError(f"{name} is not an image in a format that Pillow reads") from None
    except (Image.DecompressionBombError, MemoryError) as error:
        raise DatasetError(
            f"image {name} is too large to be read safely ({error or 'out of memory'}); cut it into tiles, or, where "
            "it is trusted, set PIL.Image.MAX_IMAGE_PIXELS to more in your code"
        ) from None
    except Exception as error:  # A damaged file can raise anything.
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise DatasetError(f"image {name} is damaged ({reason}); replace it or take it out of the dataset") from error


def image_of(dataset_dict: dict[str, Any], format: str | None = None) -> np.ndarray:
    """Return the image of a sample: what it holds as "image", uint8 RGB (H, W, 3) or gray (H, W), or else its file.

    Args:
        format: see :func:`read_image`.

    Raises:
        MissingFileError: there is no such file.
        DatasetError: the file is damaged, or the sample has neither.
    """
    if "image" not in dataset_dict:
        if "file_name" not in dataset_dict:
            raise DatasetError(f"a sample needs a 'file_name' or an 'image', it has {', '.join(dataset_dict)}")
        return read_image(dataset_dict["file_name"], format)
    image = dataset_dict["image"]
    is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8
    if not is_array or (image.ndim != 2 and image.shape[2:] != (3,)):
        got = f"{image.dtype} of the shape {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
        raise DatasetError(
            f"the 'image' of a sample must be a numpy array of uint8, (H, W, 3) in RGB or (H, W), it is {got}"
        )
    if image.ndim == 3 and format == "RGB":
        return image.copy()  # The same as below, but without a detour.
    return convert_PIL_to_numpy(Image.fromarray(image), format)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Broken metadata must not cost the image.
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Convert to an array in the given format, see :func:`read_image`."""
    if format is None:
        return np.asarray(image)
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit values at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        _check_range(image)
    array = np.asarray(_convert(image, "RGB" if format in ("BGR", "YUV-BT.601") else format))
    if format == "L":
        return array[:, :, None]
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "YUV-BT.601":
        return array / 255.0 @ _YUV_OF_RGB.T
    return array


def _convert(image: Image.Image, mode: str) -> Image.Image:
    try:
        return image.convert(mode)
    except (ValueError, TypeError) as error:
        if image.mode == "RGB":
            known = "RGB, BGR, L, YUV-BT.601 or another mode of Pillow"
            raise ConfigError(f"INPUT.FORMAT is {mode!r}, which no image can have; expected {known}") from error
        raise DatasetError(f"an image of the mode {image.mode} cannot become {mode}; save it as RGB") from error


def _check_range(image: Image.Image) -> None:
    """Refuse 32-bit values that Pillow would clip, or cut to 0, without a word."""
    lowest, highest = image.getextrema()
    if lowest < 0 or highest > 255 or (image.mode == "F" and 0 < highest <= 1):
        raise DatasetError(
            f"the image has 32-bit values from {lowest:g} to {highest:g}, whose range nothing says; save it with 8 or "
            f"16 bits, so that 0 is black and 255 or 65535 white"
        )


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Convert (H, W, C) in a format of :func:`read_image` to RGB uint8 (H, W, 3), e.g. for drawing."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return np.ascontiguousarray(image[:, :, ::-1]).astype(np.uint8)
    if format == "YUV-BT.601":
        return np.clip(np.rint(image @ _RGB_OF_YUV.T * 255.0), 0, 255).astype(np.uint8)
    if format == "L":
        return np.repeat(np.atleast_3d(image), 3, axis=2).astype(np.uint8)
    return np.asarray(Image.fromarray(image.astype(np.uint8), mode=None if format == "RGB" else format).convert("RGB"))


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare the image with "height" and "width" of its sample; set them if they are missing.

    Raises:
        SizeMismatchError: they differ, hence the annotations would be misplaced.
    """
    height, width = image.shape[:2]
    expected = (dataset_dict.get("height", height), dataset_dict.get("width", width))
    if expected != (height, width):
        turned = " It looks turned by 90 degrees: were EXIF orientations ignored when it was annotated?"
        name = dataset_dict.get("file_name", dataset_dict.get("image_id", ""))
        raise SizeMismatchError(
            f"image {name} is {height} x {width} (height x width), but its dataset says "
            f"{expected[0]} x {expected[1]}; correct the sizes, or the file, so that annotations fit."
            + (turned if expected == (width, height) else "")
        )
    dataset_dict["height"], dataset_dict["width"] = expected
