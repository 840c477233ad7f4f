"""What is written on a picture of the classes of the whole image: a line each, on the colour of the class.

Shapes: C classes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from detlib.data.catalog import Metadata
from detlib.visualization.arrays import to_array
from detlib.visualization.colors import RGB, class_color
from detlib.visualization.labels import _create_text_labels

__all__ = ["best_classes", "labelled_class_lines", "predicted_class_lines"]

# Behind classes that are not predicted, or do not count.
FADED: RGB = (0.25, 0.25, 0.25)
MAX_CLASSES = 5


def best_classes(scores: Any, count: int = MAX_CLASSES) -> list[int]:
    """The classes with the highest of the scores (C,), the best first; of equal scores, the lower index."""
    return np.argsort(-to_array(scores).astype(float), kind="stable")[:count].tolist()


def predicted_class_lines(
    scores: Any, pred_label: int | Sequence[int] | None, max_classes: int, metadata: Metadata
) -> tuple[list[str], list[RGB]]:
    """Lines such as "cat 97%" and their colours.

    Args:
        scores: (C,) in [0, 1].
        pred_label: what is predicted, shown in any case; other classes are faded. None fades none.
        max_classes: how many classes are shown besides.
        metadata: for names and colours of classes.
    """
    scores = to_array(scores)
    predicted = None if pred_label is None else set(np.atleast_1d(to_array(pred_label)).astype(int).tolist())
    classes = best_classes(scores, max(max_classes, len(predicted or ())))
    faded = [predicted is not None and i not in predicted for i in classes]
    return _lines(classes, scores[classes].tolist(), faded, metadata)


def labelled_class_lines(dataset_dict: dict[str, Any], metadata: Metadata) -> tuple[list[str], list[RGB]]:
    """The "label" or "labels" of a sample, its "ignored_labels", or the classes of its soft labels "score" (C,)."""
    if dataset_dict.get("score") is not None:
        scores = to_array(dataset_dict["score"])
        classes = best_classes(scores, min(MAX_CLASSES, np.count_nonzero(scores)))
        return _lines(classes, scores[classes].tolist(), [False] * len(classes), metadata)
    label, labels = dataset_dict.get("label"), dataset_dict.get("labels", ())
    ignored = [int(i) for i in dataset_dict.get("ignored_labels", ())]
    classes = [int(i) for i in (labels if label is None else [label]) if int(i) not in ignored]
    lines, colors = _lines(classes, None, [False] * len(classes), metadata)
    ignored_lines, ignored_colors = _lines(ignored, None, [True] * len(ignored), metadata)
    return lines + [f"{line}|ignored" for line in ignored_lines], colors + ignored_colors


def _lines(
    classes: Sequence[int], scores: Sequence[float] | None, faded: Iterable[bool], metadata: Metadata
) -> tuple[list[str], list[RGB]]:
    lines = _create_text_labels(classes, scores, metadata.get("classes")) or []
    colors = metadata.get("class_colors")
    return lines, [FADED if fade else class_color(i, colors) for i, fade in zip(classes, faded, strict=True)]
