"""An image that can be drawn on: a matplotlib figure as large as the image, without a window."""

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["VisImage", "as_uint8_rgb", "readable_scale"]

# Pixels per inch of the figure. Only the ratio of points to pixels depends on it: one point is 100/72 pixel.
DPI = 100
# The limit of the Agg renderer for one side.
MAX_SIDE = 2**16 - 1
# Letters blur at the usual quality of JPEG; PNG's usual compression takes three times as long for a tenth less.
SAVE_OPTIONS = {".jpg": {"quality": 95}, ".jpeg": {"quality": 95}, ".png": {"compress_level": 3}}
# Pixels of the shorter side, from which labels leave most of a picture free.
READABLE_SIDE = 384
VECTOR_SUFFIXES = (".pdf", ".svg", ".eps", ".ps")


class VisImage:
    """An RGB image with an axis to draw on; coordinates are pixels of ``img``, whatever the scale.

    Pixel (0, 0) covers the square from 0 to 1, so that a box XYXY (0, 0, width, height) frames the image.

    Args:
        img: (H, W, 3) RGB image, uint8 or numbers in [0, 255].
        scale: size of the output relative to the image.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.img = as_uint8_rgb(img)
        self.scale = scale
        self.height, self.width = self.img.shape[:2]
        self.dpi = DPI
        out_height, out_width = self.output_size
        if min(out_height, out_width) < 1 or max(out_height, out_width) > MAX_SIDE:
            raise ValueError(
                f"an image of {self.width}x{self.height} at scale {scale} becomes {out_width}x{out_height}, "
                f"expected sides between 1 and {MAX_SIDE}; change scale"
            )
        self._create_figure(out_width, out_height)
        self.reset_image(self.img)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the picture that :meth:`get_image` returns."""
        return round(self.height * self.scale), round(self.width * self.scale)

    def reset_image(self, img: np.ndarray) -> None:
        """Replace the background and keep what is drawn on it.

        Args:
            img: RGB image of the same height and width.
        """
        img = as_uint8_rgb(img)
        if img.shape != self.img.shape:
            raise ValueError(f"the new background is {img.shape}, expected {self.img.shape} as the image before it")
        self.img = img
        self._background.set_data(img)

    def get_image(self) -> np.ndarray:
        """The drawing as an RGB uint8 array (H * scale, W * scale, 3)."""
        renderer = self.canvas.get_renderer()
        pixels = np.asarray(renderer.buffer_rgba())
        pixels[..., :3] = self._scaled_background()
        pixels[..., 3] = 255
        # matplotlib's resampling of a large background would take ten times as long as the drawing.
        self._background.set_visible(False)
        self.fig.draw(renderer)
        self._background.set_visible(True)
        return pixels[..., :3].copy()

    def save(self, filepath: str) -> None:
        """Write the drawing; the suffix gives the format (.jpg, .png, .webp, .bmp, ... or .pdf, .svg, .eps).

        Args:
            filepath: file in a folder that exists.
        """
        if Path(filepath).suffix.lower() in VECTOR_SUFFIXES:
            self.fig.savefig(filepath)
            return
        from PIL import Image

        options = SAVE_OPTIONS.get(Path(filepath).suffix.lower(), {})
        Image.fromarray(self.get_image()).save(filepath, **options)

    def _scaled_background(self) -> np.ndarray:
        out_height, out_width = self.output_size
        if (out_height, out_width) == (self.height, self.width):
            return self.img
        from PIL import Image

        return np.asarray(Image.fromarray(self.img).resize((out_width, out_height), Image.Resampling.BICUBIC))

    def _create_figure(self, out_width: int, out_height: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        # Agg rounds the size down: without a little extra, 0.29 inch at 100 dpi would become 28 pixels.
        size = ((out_width + 1e-3) / DPI, (out_height + 1e-3) / DPI)
        self.fig = Figure(figsize=size, dpi=DPI, frameon=False)
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self._background = self.ax.imshow(self.img, extent=(0, self.width, self.height, 0), aspect="auto")
        self.ax.autoscale(False)


def as_uint8_rgb(img: Any) -> np.ndarray:
    """An image as a uint8 array of shape (H, W, 3), values clipped to [0, 255].

    Args:
        img: (H, W, 3) array-like or CPU tensor.
    """
    array = np.asarray(img)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"got an image of shape {array.shape}, expected (height, width, 3) in RGB; "
            "repeat the channel of a gray image, and permute a (3, height, width) tensor"
        )
    return array if array.dtype == np.uint8 else np.clip(array, 0, 255).astype(np.uint8)


def readable_scale(height: int, width: int) -> int:
    """The scale for an image of this size; thumbnails are enlarged, as labels would hide what they name."""
    return max(1, round(READABLE_SIDE / min(height, width)))
