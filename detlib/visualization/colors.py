"""Colours of classes and objects, as RGB tuples in [0, 1]."""

import colorsys
from collections.abc import Sequence
from typing import Any

from detlib.utils.colormap import colormap

__all__ = ["RGB", "brightness", "class_color", "jitter", "lighten", "text_color_on", "to_rgb"]

RGB = tuple[float, float, float]

# Multiples of the golden ratio, modulo one, are spread evenly however many are taken.
GOLDEN_RATIO = 0.6180339887498949
# Thin lines of darker colours, such as pure blue, do not show on dark images.
DARKEST = 0.38


def to_rgb(color: Any) -> RGB:
    """A colour in any of matplotlib's notations ("g", "#ff8800", (1, 0.5, 0)) as RGB."""
    from matplotlib.colors import to_rgb as parse

    return parse(color)


def class_color(class_id: int, colors: Sequence[Sequence[int]] | None = None, offset: int = 0) -> RGB:
    """The colour of a class: always the same, and unlike that of its neighbours.

    Args:
        class_id: contiguous id of the class.
        colors: RGB in [0, 255] of each class, as in ``metadata.thing_colors``; chosen by id when None or too short.
        offset: added to the id when the colour is chosen.
    """
    if colors is not None and class_id < len(colors):
        red, green, blue = (value / 255 for value in colors[class_id])
        return red, green, blue
    palette = colormap(rgb=True, maximum=1)
    color = to_rgb(palette[(class_id + offset) % len(palette)])
    missing = max(DARKEST - brightness(color), 0.0)
    return lighten(color, missing / (1 - brightness(color)))


def jitter(color: RGB, index: int) -> RGB:
    """A variant of a colour that tells objects of one class apart and still shows the class.

    Args:
        color: colour of the class.
        index: number of the object among those of its class; 0 keeps the colour.
    """
    offset = (index * GOLDEN_RATIO + 0.5) % 1 - 0.5
    hue, lightness, saturation = colorsys.rgb_to_hls(*color)
    lightness = min(max(lightness + 0.35 * offset, 0.25), 0.85)
    return colorsys.hls_to_rgb((hue + 0.08 * offset) % 1, lightness, saturation)


def lighten(color: Any, amount: float) -> RGB:
    """The colour moved towards white, or towards black.

    Args:
        color: any of matplotlib's notations.
        amount: 1 gives white, -1 black, 0 the colour itself.
    """
    target = 1.0 if amount > 0 else 0.0
    red, green, blue = (value + (target - value) * abs(amount) for value in to_rgb(color))
    return red, green, blue


def text_color_on(background: Any) -> str:
    """Black or white, whichever is easier to read on the background."""
    return "black" if brightness(background) > 0.55 else "white"


def brightness(color: Any) -> float:
    """How bright a colour looks, from 0 to 1 (ITU-R BT.601)."""
    red, green, blue = to_rgb(color)
    return 0.299 * red + 0.587 * green + 0.114 * blue
