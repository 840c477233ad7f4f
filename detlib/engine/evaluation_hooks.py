"""Hooks that evaluate, and act on the results."""

import logging
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from fvcore.common.checkpoint import Checkpointer

from detlib.engine.train_loop import HookBase, is_due, is_finished, is_last_step
from detlib.evaluation.testing import flatten_results_dict
from detlib.utils import comm

__all__ = ["BestCheckpointer", "EvalHook"]

logger = logging.getLogger(__name__)


class BestCheckpointer(HookBase):
    """Saves the model when a metric is better than ever before.

    Register it after the :class:`EvalHook` that stores the metric. The best value survives a resumed training.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """
        Args:
            eval_period: of the :class:`EvalHook`.
            val_metric: name in the storage, such as "bbox/AP50".
            mode: "max" if more is better, else "min".
            file_prefix: name of the file, which always holds the best model so far.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r}; use 'max' if more of {val_metric!r} is better, else 'min'")
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._is_better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        if is_due(self, self._period) and not is_last_step(self):
            self._save_if_best()

    def after_train(self) -> None:
        if is_finished(self):
            self._save_if_best()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.best_metric is None else {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]

    def _save_if_best(self) -> None:
        latest = self.trainer.storage.latest()
        if self._val_metric not in latest:
            logger.warning(
                "No metric %r was stored, so no best model is saved. There are: %s.",
                self._val_metric,
                ", ".join(sorted(latest)),
            )
            return
        metric, iteration = latest[self._val_metric]
        if not math.isfinite(metric):
            return
        if self.best_metric is None or self._is_better(metric, self.best_metric):
            logger.info("Best %s so far: %.4f in iteration %d.", self._val_metric, metric, iteration)
            self.best_metric, self.best_iter = float(metric), iteration
            self._checkpointer.save(self._file_prefix, iteration=iteration)


class EvalHook(HookBase):
    """Runs an evaluation every ``eval_period`` iterations and at the end, and stores the numbers it returns."""

    def __init__(
        self, eval_period: int, eval_function: Callable[[], Mapping[str, Any]], eval_after_train: bool = True
    ) -> None:
        """
        Args:
            eval_period: 0 for only at the end.
            eval_function: returns numbers or nested dicts of them, stored as "bbox/AP"; in several processes, it must
                be called in all of them.
        """
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def after_step(self) -> None:
        if is_due(self, self._period) and not is_last_step(self):
            self._do_eval()

    def after_train(self) -> None:
        if self._eval_after_train and is_finished(self):
            self._do_eval()
        self._func = None  # It may hold the trainer, which holds this hook.

    def _do_eval(self) -> None:
        if results := self._func():
            if not isinstance(results, Mapping):
                raise TypeError(f"an evaluation must return a dict of results, but it returned {results!r}")
            self.trainer.storage.put_scalars(**_as_floats(results), smoothing_hint=False)
        # The main process may have been busy alone; others would wait in the next step, and perhaps time out.
        comm.synchronize()


def _as_floats(results: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in flatten_results_dict(results).items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"an evaluation must return numbers, but {name!r} is {value!r}") from None
    return numbers
