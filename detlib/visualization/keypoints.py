"""Which keypoints of a person are joined by lines, and in which colour."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from detlib.visualization.colors import RGB

__all__ = ["limbs"]

SPINE_COLOR: RGB = (0.9, 0.1, 0.2)


def limbs(points: dict[str, np.ndarray], rules: Iterable[tuple[str, str, Any]]) -> list[tuple[np.ndarray, RGB]]:
    """Lines between the keypoints that are seen.

    Besides those of the rules there is a spine, from the nose to the middles of the shoulders and of the hips.

    Args:
        points: name -> x and y, of visible keypoints only.
        rules: two names and an RGB colour in [0, 255], as ``metadata.keypoint_connection_rules`` has them.

    Returns:
        both ends (2, 2) and the colour of each line.
    """
    lines = [
        (np.stack([points[first], points[second]]), (color[0] / 255, color[1] / 255, color[2] / 255))
        for first, second, color in rules
        if first in points and second in points
    ]
    spine = [points.get("nose"), _middle(points, "shoulder"), _middle(points, "hip")]
    for upper, lower in pairwise(spine):
        if upper is not None and lower is not None:
            lines.append((np.stack([upper, lower]), SPINE_COLOR))
    return lines


def _middle(points: dict[str, np.ndarray], part: str) -> np.ndarray | None:
    left, right = points.get(f"left_{part}"), points.get(f"right_{part}")
    return None if left is None or right is None else (left + right) / 2
