"""What evaluations during a training gave: compared with the best so far, in a table, a file and a picture."""

import csv
import io
import logging
import math
import os
from collections.abc import Mapping

from tabulate import tabulate

from detlib.checkpoint.files import write_atomically
from detlib.utils import comm
from detlib.utils.errors import CheckpointError
from detlib.utils.events import EventStorage
from detlib.utils.file_io import PathManager
from detlib.visualization.curves import draw_curves, read_metrics

__all__ = ["EvaluationRecord", "is_improvement", "less_is_better"]

logger = logging.getLogger(__name__)

OF_TRAINING = "train/"  # prefix of columns that hold no result of an evaluation
MAX_CLASSES = 40  # in a table; the file has all


def less_is_better(name: str) -> bool:
    """Whether a metric of this name is a loss or an error."""
    return "loss" in name.lower() or "error" in name.lower()


def is_improvement(value: float, best: float | None, less: bool, min_delta: float = 0.0) -> bool:
    """Whether a value is better than the best by more than ``min_delta``; NaN never is."""
    if math.isnan(value):
        return False
    return best is None or (best - value if less else value - best) > min_delta


class EvaluationRecord:
    """Keeps ``results.csv``, a row for each evaluation, and ``curves.png``, and logs how results changed.

    The number of a row is the iteration that was finished last, as in the names of checkpoints. A training that is
    resumed goes on with the rows of the iterations it does not repeat. Only the main process does anything.
    """

    def __init__(self, output_dir: str, iters_per_epoch: float | None = None) -> None:
        """
        Args:
            output_dir: where ``metrics.json`` is, too.
            iters_per_epoch: in a pass over the training data, if it has a length.
        """
        self._output_dir = output_dir
        self._iters_per_epoch = iters_per_epoch
        self._rows: dict[int, dict[str, float]] = {}

    def load(self, start_iter: int) -> None:
        """Take over the rows of a training that goes on in ``start_iter``."""
        path = os.path.join(self._output_dir, "results.csv")
        self._rows = {}
        if not comm.is_main_process() or start_iter == 0 or not PathManager.exists(path):
            return
        try:
            with PathManager.open(path, "r") as f:
                rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(f)]
            self._rows = {int(row.pop("iteration")): row for row in rows if row["iteration"] < start_iter}
        except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
            logger.warning("Earlier results are not shown, as %s is not what was written: %r", path, error)

    def results_of(self, iteration: int) -> dict[str, float] | None:
        """What was found after an iteration, if there was an evaluation."""
        row = self._rows.get(iteration)
        return None if row is None else _results(row)

    def add(self, iteration: int, results: Mapping[str, float], storage: EventStorage) -> None:
        """Log the results and write the files.

        Args:
            iteration: which was finished last; further results of the same one share its row.
            results: numbers by flat names.
            storage: has losses and learning rate of the training.
        """
        if not comm.is_main_process():
            return
        self._log_changes(iteration, results)
        row = self._rows.setdefault(iteration, self._row_of_training(iteration, storage))
        row.update(results)
        try:
            self._write()
        except (CheckpointError, OSError) as error:
            logger.warning("No results were written: %s", error)
        self.draw()

    def draw(self) -> None:
        """Draw ``curves.png``; what goes wrong with that is no reason to end a training."""
        if not comm.is_main_process():
            return
        try:
            lines = read_metrics(os.path.join(self._output_dir, "metrics.json"))
            results = {iteration: _results(row) for iteration, row in self._rows.items()}
            if picture := draw_curves(lines, results):
                with PathManager.open(os.path.join(self._output_dir, "curves.png"), "wb") as f:
                    f.write(picture)
        except Exception:
            logger.warning("No curves were drawn", exc_info=True)

    def _row_of_training(self, iteration: int, storage: EventStorage) -> dict[str, float]:
        row = {} if not self._iters_per_epoch else {"epoch": (iteration + 1) / self._iters_per_epoch}
        for name, (value, at) in storage.latest_with_smoothing_hint().items():
            is_loss = "loss" in name and storage.smoothing_hints()[name]
            if (is_loss or name == "lr") and at <= iteration:
                row[OF_TRAINING + name] = value
        return row

    def _write(self) -> None:
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, ["iteration", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"iteration": iteration, **row} for iteration, row in sorted(self._rows.items()))
        path = os.path.join(self._output_dir, "results.csv")
        write_atomically(PathManager, path, lambda f: f.write(text.getvalue().encode()))

    def _best_before(self, name: str, iteration: int) -> tuple[float, int] | None:
        best = None
        for at, row in sorted(self._rows.items()):
            value = row.get(name, math.nan)
            if at < iteration and is_improvement(value, best and best[0], less_is_better(name)):
                best = value, at
        return best

    def _log_changes(self, iteration: int, results: Mapping[str, float]) -> None:
        """Tables of all metrics, and of those of single classes, which have a ``-`` in the name."""
        of_classes = [name for name in results if "-" in name.rsplit("/", 1)[-1]]
        overall = [name for name in results if name not in of_classes]
        bests = {name: self._best_before(name, iteration) for name in results}

        def table(names: list[str]) -> str:
            rows = [_changes(name, results[name], bests[name]) for name in names]
            align = ("left", "right", "right", "right", "right")
            headers = ["metric", "now", "best before", "in iteration", "change"]
            return tabulate(rows, headers, tablefmt="pipe", colalign=align, disable_numparse=True)

        if overall:
            logger.info("Results after iteration %d, and the best before it:\n%s", iteration, table(overall))
        if of_classes:
            shown = of_classes
            if len(of_classes) > MAX_CLASSES:
                size = {name: abs(results[name] - bests[name][0]) if bests[name] else 0.0 for name in of_classes}
                shown = sorted(of_classes, key=lambda name: -size[name] if size[name] == size[name] else 0.0)
                shown = shown[:MAX_CLASSES]
            left_out = len(of_classes) - len(shown)
            note = f" (the {len(shown)} that changed most; results.csv has {left_out} more)" if left_out else ""
            logger.info("Of each class%s:\n%s", note, table(shown))


def _changes(name: str, value: float, best: tuple[float, int] | None) -> list[str]:
    if best is None:
        return [name, f"{value:.4g}", "-", "-", "-"]
    return [name, f"{value:.4g}", f"{best[0]:.4g}", str(best[1]), f"{value - best[0]:+.3g}"]


def _results(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "epoch" and not name.startswith(OF_TRAINING)}
