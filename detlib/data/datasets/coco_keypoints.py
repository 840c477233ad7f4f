"""Keypoints as the categories of a COCO file describe them."""

from typing import Any

from detlib.data.datasets.coco_values import short
from detlib.utils.errors import DatasetError

__all__ = ["keypoint_metadata_of"]

_LEFT, _RIGHT, _MIDDLE = (51, 153, 255), (255, 128, 0), (102, 204, 0)


def keypoint_metadata_of(categories: list[dict[str, Any]], json_file: str) -> dict[str, Any]:
    """Metadata of the first category with ``keypoints``; none if there is no such category.

    Returns:
        ``keypoint_names``; ``keypoint_flip_map``, pairs of names that differ in "left" and "right" alone; and
        ``keypoint_connection_rules``, the ``skeleton``, whose numbers start at 1, as two names and an RGB color.

    Raises:
        DatasetError: the skeleton has a line between keypoints that do not exist.
    """
    category = next((category for category in categories if category.get("keypoints")), None)
    if category is None:
        return {}
    if not isinstance(category["keypoints"], list):
        raise DatasetError(
            f"{json_file}: the 'keypoints' of category {short(category['name'])} are {short(category['keypoints'])}; "
            "expected a list of names"
        )
    names = [str(name) for name in category["keypoints"]]
    pairs = [(name, name.replace("left", "right")) for name in names if "left" in name]
    skeleton = category.get("skeleton", [])
    if not isinstance(skeleton, list) or not all(_is_line(line, len(names)) for line in skeleton):
        raise DatasetError(
            f"{json_file}: the 'skeleton' of category {short(category['name'])} is {short(skeleton)}; each line "
            f"needs two numbers from 1 to {len(names)}, as many as it has 'keypoints'"
        )
    limbs = [(names[a - 1], names[b - 1]) for a, b in skeleton]
    return {
        "keypoint_names": names,
        "keypoint_flip_map": [pair for pair in pairs if pair[1] in names],
        "keypoint_connection_rules": [(a, b, _color(a, b)) for a, b in limbs],
    }


def _is_line(line: Any, num_points: int) -> bool:
    return (
        isinstance(line, list) and len(line) == 2 and all(type(end) is int and 1 <= end <= num_points for end in line)
    )


def _color(a: str, b: str) -> tuple[int, int, int]:
    """Blue on the left of the object, orange on its right."""
    sides = {side for side in ("left", "right") if side in a or side in b}
    if len(sides) != 1:
        return _MIDDLE
    return _LEFT if sides == {"left"} else _RIGHT
