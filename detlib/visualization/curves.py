"""How a training goes, as a picture: losses, learning rate, results of evaluations and speed over the iterations."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detlib.utils.file_io import PathManager

__all__ = ["draw_curves", "read_metrics"]

MAX_POINTS = 1000  # of a curve; more cannot be seen
MAX_CURVES = 8  # beside each other


def read_metrics(path: str) -> list[dict[str, float]]:
    """The lines of ``metrics.json``, by iteration; none if there is no such file.

    A training that was killed and resumed repeats iterations: the later lines count.
    """
    if not PathManager.exists(path):
        return []
    lines: list[dict[str, float]] = []
    with PathManager.open(path, "r") as f:
        for text in f:
            try:
                line = json.loads(text)
                iteration = line["iteration"]
            except (KeyError, TypeError, ValueError):  # A kill cut it off.
                continue
            while lines and lines[-1]["iteration"] >= iteration:
                lines.pop()
            lines.append(line)
    return lines


def draw_curves(lines: Sequence[Mapping[str, float]], results: Mapping[int, Mapping[str, float]]) -> bytes | None:
    """A PNG; None if there is no curve yet, but a point.

    Args:
        lines: of ``metrics.json``: "iteration" and scalars by name.
        results: of evaluations, by iteration.
    """
    # Neither pyplot nor a display: this must not disturb what the program itself draws.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    evaluated = [{"iteration": iteration, **results[iteration]} for iteration in sorted(results)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    result_names = list(dict.fromkeys(name for line in evaluated for name in line if name != "iteration"))
    losses = [name for name in names if "loss" in name and name not in result_names]
    losses.sort(key=lambda name: name != "total_loss")
    validation = [name for name in result_names if name.endswith("validation_loss")]
    metrics = [name for name in result_names if _is_overall(name)]
    panels = [
        ("losses", [(lines, losses), (evaluated, validation)]),
        ("learning rate", [(lines, [name for name in names if name == "lr"])]),
        ("results", [(evaluated, metrics)]),
        ("images per second", [(lines, [name for name in names if name == "images_per_second"])]),
    ]
    panels = [(title, groups) for title, groups in panels if any(curves for _, curves in groups)]
    if not panels or max(len(lines), len(evaluated)) < 2:
        return None
    num_rows = (len(panels) + 1) // 2
    last = max(line["iteration"] for line in (*lines, *evaluated))
    figure = Figure(figsize=(12, 4 * num_rows))
    # By hand, as a layout engine draws all of it twice.
    figure.subplots_adjust(
        left=0.06, right=0.98, bottom=0.15 / num_rows, top=1 - 0.08 / num_rows, wspace=0.15, hspace=0.3
    )
    FigureCanvasAgg(figure)
    for place, (title, groups) in enumerate(panels):
        axes = figure.add_subplot(num_rows, 2 if len(panels) > 1 else 1, place + 1)
        for source, curves in groups:
            for name in curves[:MAX_CURVES]:
                _draw(axes, source, name, is_result=source is evaluated)
        _finish(axes, title, last)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=80)
    return picture.getvalue()


def _is_overall(name: str) -> bool:
    """Whether a result is neither a loss nor, by a ``-`` in its name, of a single class."""
    return "loss" not in name and "validation/" not in name and "-" not in name.rsplit("/", 1)[-1]


def _draw(axes: Any, lines: Sequence[Mapping[str, float]], name: str, is_result: bool) -> None:
    points = [(line["iteration"], line[name]) for line in lines if name in line]
    points = points[:: max(len(points) // MAX_POINTS, 1)]
    thick = name in ("total_loss", "validation_loss")
    iterations, values = np.array(points).T
    axes.plot(
        iterations,
        values,
        label=name,
        marker="o" if is_result or len(points) == 1 else None,
        markersize=3,
        linewidth=2 if thick else 1,
    )


def _finish(axes: Any, title: str, last: int) -> None:
    axes.set_title(title)
    axes.set_xlim(0, max(last, 1) * 1.03)  # The same for all, also for results of the end alone.
    axes.set_xlabel("iteration")
    axes.grid(alpha=0.3)
    if title != "losses":
        axes.set_ylim(bottom=0)
    elif all((line.get_ydata() > 0).any() for line in axes.lines):
        axes.set_yscale("log")
    if title in ("losses", "results"):
        axes.legend(fontsize="small", loc="upper right" if title == "losses" else "lower left")
