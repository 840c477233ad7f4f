"""What the labels say, and where they go so that few of them overlap."""

from collections.abc import Sequence

import numpy as np

__all__ = ["place_labels"]

# The cost of a place is the share of the label that other labels cover, plus these.
COST_OF_HIDING_THE_OBJECT = 0.5
COST_PER_RANK = 0.02


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Sequence[float] | None,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[bool | int] | None = None,
) -> list[str] | None:
    """Labels such as "cat 97%", "97%" or "cat|crowd", of what is given.

    Args:
        classes: class id per object.
        scores: in [0, 1].
        class_names: name per class id; an id beyond it is shown as a number.
        is_crowd: marks regions that stand for a group of objects.

    Returns:
        None when neither classes nor scores are given.
    """
    if classes is None and scores is None:
        return None
    names = [""] * len(scores if classes is None else classes)
    if classes is not None:
        known = len(class_names) if class_names is not None else 0
        names = [class_names[i] if 0 <= i < known else str(int(i)) for i in classes]
    if scores is not None:
        names = [f"{name} {score * 100:.0f}%".strip() for name, score in zip(names, scores, strict=True)]
    if is_crowd is not None:
        names = [name + ("|crowd" if crowd else "") for name, crowd in zip(names, is_crowd, strict=True)]
    return names


def place_labels(sizes_wh: np.ndarray, boxes_xyxy: np.ndarray, image_wh: tuple[float, float]) -> np.ndarray:
    """Find a place near its box for each label, inside the image and on top of as few other labels as possible.

    Greedy from the smallest box on, as large boxes leave more choice.

    Args:
        sizes_wh: (N, 2) width and height of the labels.
        boxes_xyxy: (N, 4) boxes that the labels belong to.
        image_wh: width and height of the image.

    Returns:
        (N, 2) x and y of the labels' top left corners.
    """
    corners = np.zeros((len(sizes_wh), 2))
    placed = np.zeros((0, 4))
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(0).prod(axis=1)
    for i in np.argsort(areas, kind="stable"):
        size, box = sizes_wh[i], boxes_xyxy[i]
        candidates = _candidates(size, box).clip(0, np.maximum(np.asarray(image_wh) - size, 0))
        rectangles = np.concatenate([candidates, candidates + size], axis=1)
        covered = _intersection(rectangles, placed).sum(axis=1) / size.prod()
        hidden = _intersection(rectangles, box[None])[:, 0] / max(areas[i], 1.0)
        cost = covered + COST_OF_HIDING_THE_OBJECT * hidden + COST_PER_RANK * np.arange(len(candidates))
        best = cost.argmin()
        corners[i] = candidates[best]
        placed = np.concatenate([placed, rectangles[best : best + 1]])
    return corners


def _candidates(size: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(10, 2) top left corners around and inside the box, in the order in which readers expect them."""
    (width, height), (x0, y0, x1, y1) = size, box
    if x0 == x1 and y0 == y1:
        x0, y0, x1, y1 = x0 - width / 2, y0 + height / 2, x1 + width / 2, y1 + height / 2
    return np.array(
        [
            (x0, y0 - height),  # above, left
            (x0, y0),  # inside, top left
            (x1 - width, y0 - height),  # above, right
            (x0, y1),  # below, left
            (x1 - width, y0),  # inside, top right
            (x1 - width, y1),  # below, right
            (x0, y1 - height),  # inside, bottom left
            (x1 - width, y1 - height),  # inside, bottom right
            (x1, y0),  # beside, right
            (x0 - width, y0),  # beside, left
        ]
    )


def _intersection(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """(N, M) areas that the boxes share."""
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    return (bottom_right - top_left).clip(0).prod(axis=2)
