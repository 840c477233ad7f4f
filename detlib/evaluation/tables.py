"""Metrics as tables for the log."""

from collections.abc import Mapping, Sequence

from tabulate import tabulate

__all__ = ["class_table", "metric_table", "rows_table"]

STYLE = {"tablefmt": "pipe", "floatfmt": ".3f", "numalign": "left"}


def metric_table(metrics: Mapping[str, float]) -> str:
    """One row of values under their names."""
    return tabulate([list(metrics.values())], headers=list(metrics), **STYLE)


def class_table(per_class: Mapping[str, float], metric: str = "AP") -> str:
    """Three pairs of (class, value) per row."""
    cells = [cell for pair in per_class.items() for cell in pair]
    width = min(6, len(cells))
    rows = [cells[i : i + width] for i in range(0, len(cells), width)]
    return tabulate(rows, headers=["class", metric] * (width // 2), **STYLE)


def rows_table(rows: Mapping[str, Sequence[float]], headers: Sequence[str]) -> str:
    """A named row of values for each entry; ``headers`` name the values."""
    return tabulate([[name, *values] for name, values in rows.items()], headers=["", *headers], **STYLE)
