"""What the values in a file in COCO's format must be like, so that nothing that reads them later breaks on them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from detlib.utils.errors import DatasetError

__all__ = [
    "are_numbers",
    "check_colors",
    "check_entries",
    "check_one_kind_of_ids",
    "is_box",
    "polygon_problem",
    "rle_problem",
    "short",
    "size_problem",
]

Entry = dict[str, Any]

# Far above what images have, and far below where memory ends: drawing a mask takes memory for all of it.
_MAX_COORDINATE = 1e8
_MAX_OUTLINE = 4e6  # pixels
_MAX_PIXELS = 2**28


def short(value: Any) -> str:
    """A value for an error, which a file can make as long as it likes."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_box(value: Any) -> bool:
    """Whether it is four numbers, or five."""
    return isinstance(value, list | tuple) and len(value) in (4, 5) and are_numbers(value)


def are_numbers(values: Any) -> bool:
    """Whether all are finite, and small enough to be coordinates."""
    # As built-ins do the work, millions of coordinates take seconds. NaN, which has no place in an order, is in a sum.
    try:
        return -_MAX_COORDINATE <= min(values) <= max(values) <= _MAX_COORDINATE and math.isfinite(sum(values))
    except (TypeError, ValueError, OverflowError):  # Something is no number, there is none, or one is huge.
        return False


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and 1 <= value <= _MAX_COORDINATE and value == int(value)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("id", "image_id", "category_id"), (_is_id, "a number or a string")),
    **dict.fromkeys(("height", "width"), (_is_size, "a whole number of pixels")),
    "name": (lambda value: isinstance(value, str | int | float), "a string"),
    **dict.fromkeys(("iscrowd", "isthing"), (lambda value: value in (0, 1), "0 or 1")),
}


def check_entries(entries: Any, required: frozenset[str], key: str, json_file: str) -> None:
    """Check the objects of one of the lists of a file.

    Args:
        required: keys that each needs.
        key: of the list, for errors.

    Raises:
        DatasetError: an entry is no object, lacks a key, or has a value of another kind.
    """
    kinds = {name: kind for name, kind in _KINDS.items() if name in (*required, "iscrowd")}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DatasetError(f"{json_file}: {key}[{index}] is {short(entry)}; expected an object")
        if not required <= entry.keys():
            missing = ", ".join(sorted(required - entry.keys()))
            raise DatasetError(
                f"{json_file}: {key}[{index}] (id {short(entry.get('id'))}) lacks {missing}; each needs "
                f"{', '.join(sorted(required))}"
            )
        for name, (fits, expected) in kinds.items():
            if name in entry and not fits(entry[name]):
                raise DatasetError(
                    f"{json_file}: {key}[{index}] (id {short(entry.get('id'))}) has the {name} {short(entry[name])}; "
                    f"expected {expected}"
                )


def check_one_kind_of_ids(entries: list[Entry], kind: str, json_file: str) -> None:
    """Raise a DatasetError if some ids are text and others numbers, as they could not be put in an order."""
    texts = [entry["id"] for entry in entries if isinstance(entry["id"], str)]
    if 0 < len(texts) < len(entries):
        raise DatasetError(
            f"{json_file}: {len(texts)} {kind} ids are text, as {short(texts[0])}, the others numbers; make all of "
            "them numbers"
        )


def check_colors(categories: list[Entry], json_file: str) -> None:
    """Raise a DatasetError if the "color" of a category, where it has one, is not red, green and blue."""
    for category in categories:
        color = category.get("color", [0, 0, 0])
        if not isinstance(color, list) or len(color) != 3 or not are_numbers(color):
            raise DatasetError(
                f"{json_file}: category {short(category['name'])} has the color {short(color)}; expected "
                "[red, green, blue]"
            )


def polygon_problem(polygon: Any) -> str:
    """Why a polygon [x0, y0, x1, y1, ...] cannot be drawn; empty if it can, or has too few corners to be drawn."""
    if not isinstance(polygon, list):
        return f"is {short(polygon)}, not a list [x0, y0, x1, y1, ...]"
    if not polygon:
        return ""
    if not are_numbers(polygon):
        return f"has other values than finite numbers up to {_MAX_COORDINATE:g}: {short(polygon)}"
    # Few polygons are longer than this bound.
    if len(polygon) * (max(polygon) - min(polygon)) > _MAX_OUTLINE and _outline(polygon) > _MAX_OUTLINE:
        return f"has an outline of more than {_MAX_OUTLINE:g} pixels: {short(polygon)}"
    return ""


def _outline(polygon: list[float]) -> float:
    corners = np.array(polygon[: len(polygon) // 2 * 2], dtype=np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def size_problem(size: Any) -> str:
    """Why it cannot be the [height, width] of a mask; empty if it can."""
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side >= 1 for side in size):
        return "which is not [height, width] in pixels"
    return f"more than {_MAX_PIXELS} pixels" if size[0] * size[1] > _MAX_PIXELS else ""


def rle_problem(rle: Entry) -> str:
    """Why a run-length encoded mask cannot be decoded; empty if it can. Decoders rely on the sum of the runs."""
    size, counts = rle["size"], rle["counts"]
    problem = size_problem(size)
    if problem:
        return f"has the 'size' {short(size)}, {problem}"
    height, width = size
    if isinstance(counts, str):
        counts = _runs(counts)
        if counts is None:
            return f"has 'counts' that are no compressed runs: {short(rle['counts'])}"
    elif not isinstance(counts, list) or not all(type(run) is int for run in counts):
        return f"has the 'counts' {short(counts)}; expected a list of whole numbers, or the text that COCO makes of it"
    if any(run < 0 for run in counts) or sum(counts) != height * width:
        return f"has counts that sum to {short(sum(counts))}, not to {height} x {width}, or negative ones"
    return ""


def _runs(text: str) -> list[int] | None:
    """The lengths of runs in COCO's compressed form; None if it is damaged.

    Each character is 48 and more for 5 bits of a number, the lowest first, and a bit that says whether more follow.
    From the fourth on, a number is the difference to the run before the last.
    """
    digits = np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((digits & 32) == 0)
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or len(ends) == 0 or ends[-1] != len(digits) - 1:
        return None
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # 35 bits are more than a run can have.
        return None
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((digits & 31) << (5 * places), starts)
    numbers -= np.where(digits[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)  # The highest bit is the sign.
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers.tolist()
