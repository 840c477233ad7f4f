"""What the evaluators of image classification log and write, of each class and of pairs of classes.

Shapes: C classes.
"""

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detlib.evaluation.predictions import write_json
from detlib.evaluation.tables import metric_table, rows_table
from detlib.utils.file_io import PathManager

__all__ = ["ClassReport", "describe_confusion", "write_confusion"]

logger = logging.getLogger(__name__)

# Longer tables are not read; all numbers are in the files.
MAX_TABLE_CLASSES = 100
MAX_CONFUSION_CLASSES = 20
NUM_LISTED = 20


class ClassReport:
    """Metrics of a dataset and of its classes.

    Args:
        metrics: name -> value, over all classes.
        columns: name -> values (C,) of each class; "f1" among them.
        class_names: C different ones.
    """

    def __init__(self, metrics: Mapping[str, float], columns: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
        self.metrics = dict(metrics)
        self.columns = list(columns)
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        self.rows = dict(zip(class_names, values, strict=True))

    def with_classes(self, column: str) -> dict[str, float]:
        """The metrics, and one of each class: ``{"mAP": ..., "AP-cat": ...}``."""
        index = self.columns.index(column)
        return self.metrics | {f"{column}-{name}": row[index] for name, row in self.rows.items()}

    def log(self, title: str) -> None:
        """Log a table of the metrics and one of the classes; of many, those with the lowest F1."""
        logger.info("%s:\n%s", title, metric_table(self.metrics))
        rows, which = self.rows, "per class"
        if len(rows) > MAX_TABLE_CLASSES:
            index = self.columns.index("f1")
            rows = dict(sorted(rows.items(), key=lambda item: item[1][index])[:NUM_LISTED])
            which = f"of the {NUM_LISTED} classes of {len(self.rows)} with the lowest F1"
        logger.info("%s, %s:\n%s", title, which, rows_table(rows, self.columns))

    def write(self, folder: str, name: str) -> None:
        """Write all numbers as JSON: ``{"metrics": {...}, "per_class": {"cat": {"f1": ...}}}``."""
        per_class = {name: dict(zip(self.columns, row, strict=True)) for name, row in self.rows.items()}
        write_json({"metrics": self.metrics, "per_class": per_class}, folder, name)


def describe_confusion(confusion: Tensor, class_names: Sequence[str]) -> str:
    """The matrix (C, C), label x prediction, as a table; of many classes, the pairs that are mistaken most often."""
    if len(class_names) <= MAX_CONFUSION_CLASSES:
        rows = dict(zip(class_names, confusion.tolist(), strict=True))
        return f"Confusion matrix (rows: label, columns: prediction):\n{rows_table(rows, class_names)}"
    mistakes = confusion.clone()
    mistakes.fill_diagonal_(0)
    order = mistakes.flatten().argsort(descending=True, stable=True)[:NUM_LISTED].tolist()
    lines: list[str] = []
    for label, prediction in (divmod(i, len(class_names)) for i in order):
        if count := int(mistakes[label, prediction]):
            lines.append(f"{count} x {class_names[label]} taken for {class_names[prediction]}")
    return "Most frequent mistakes:\n" + ("\n".join(lines) or "none")


def write_confusion(confusion: Tensor, class_names: Sequence[str], folder: str) -> None:
    """Write the matrix (C, C) to ``confusion_matrix.csv``: a row per label, a column per prediction."""
    PathManager.mkdirs(folder)
    lines: list[list[Any]] = [["label \\ prediction", *class_names]]
    lines += [[name, *row] for name, row in zip(class_names, confusion.tolist(), strict=True)]
    with PathManager.open(os.path.join(folder, "confusion_matrix.csv"), "w") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
