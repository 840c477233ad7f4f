"""Colours that are easy to tell apart, for drawing."""

import colorsys

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_NUM_COLORS = 80
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def _make_colors() -> np.ndarray:
    """(80, 3) RGB in [0, 1]; steps of the golden ratio keep the hues of any first few far apart."""
    shades = ((0.85, 0.95), (0.55, 1.0), (1.0, 0.7), (0.7, 0.8))  # saturation and value
    colors = [colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, *shades[i % len(shades)]) for i in range(_NUM_COLORS)]
    return np.array(colors, dtype=np.float32)


_COLORS = _make_colors()


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """Return a table of (80, 3) float32 colours.

    Args:
        rgb: Channel order; BGR by default, as OpenCV draws.
        maximum: Value of a full channel: 255 or 1.
    """
    colors = _COLORS if rgb else _COLORS[:, ::-1]
    return colors * _check_maximum(maximum)


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """Draw one colour of the table, as 3 float32 numbers."""
    return colormap(rgb, maximum)[np.random.randint(_NUM_COLORS)]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """Draw `N` colours of the table; they differ as long as it has enough."""
    rounds = [np.random.permutation(_NUM_COLORS) for _ in range(0, N, _NUM_COLORS)]
    indices = np.concatenate(rounds)[:N] if rounds else []
    return [colormap(rgb, maximum)[i] for i in indices]


def _check_maximum(maximum: int) -> int:
    if maximum not in (1, 255):
        raise ValueError(f"the maximum of a colour is 1 or 255, got {maximum}")
    return maximum
