"""Hooks that evaluate, and act on the results."""

import difflib
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fvcore.common.checkpoint import Checkpointer

from detlib.config import CfgNode
from detlib.engine.checkpoint_hooks import save_or_go_on
from detlib.engine.evaluation_record import EvaluationRecord, is_improvement, less_is_better
from detlib.engine.trainer_base import HookBase, TrainerBase, is_due, is_finished, is_last_step
from detlib.evaluation.testing import flatten_results_dict
from detlib.utils import comm
from detlib.utils.env import preserved_random_states
from detlib.utils.errors import ConfigError

__all__ = ["BestCheckpointer", "EarlyStopping", "EvalHook", "build_selection"]

logger = logging.getLogger(__name__)


class EvalHook(HookBase):
    """Runs an evaluation every ``eval_period`` iterations and at the end, and stores the numbers it returns.

    The training goes on with the random numbers that it would have had without.

    Attributes:
        results: what the last evaluation gave, by flat names such as "bbox/AP".
        iteration: the one that was finished last before it; None before the first.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], Mapping[str, Any]],
        eval_after_train: bool = True,
        *,
        record: EvaluationRecord | None = None,
    ) -> None:
        """
        Args:
            eval_period: 0 for only at the end.
            eval_function: returns numbers or nested dicts of them, stored as "bbox/AP"; in several processes, it must
                be called in all of them.
            record: gets the results. With one, an evaluation that is due when the training goes on from a checkpoint,
                as that is saved before, comes first, unless its results were recorded.
        """
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train
        self.record = record
        self.results: dict[str, float] = {}
        self.iteration: int | None = None

    def before_train(self) -> None:
        if self.record is None:
            return
        # A checkpoint is saved before the evaluation of its iteration, which a kill may have prevented.
        start = self.trainer.start_iter
        self.record.load(start)
        if self._period <= 0 or start == 0 or start % self._period or start >= self.trainer.max_iter:
            return
        if comm.get_world_size() > 1 and hasattr(self.trainer, "gather_states"):
            self.trainer.gather_states()  # A hook that keeps the best model may save.
        recorded = comm.all_gather(self.record.results_of(start - 1))[0]
        if recorded is None:
            logger.info("The training stopped before the evaluation after iteration %d, which is done now.", start - 1)
            self._do_eval(start - 1)
        else:
            self._store(recorded, start - 1)

    def after_step(self) -> None:
        if is_due(self, self._period) and not is_last_step(self):
            self._do_eval(self.trainer.iter)

    def after_train(self) -> None:
        # A hook that ended the training, because of what this one found, leaves nothing to evaluate.
        is_new = self.iteration != self.trainer.iter - 1
        if self._eval_after_train and is_finished(self) and is_new:
            self._do_eval(self.trainer.iter - 1)
        elif self.record is not None:
            self.record.draw()
        self._func = None  # It may hold the trainer, which holds this hook.

    def _do_eval(self, iteration: int) -> None:
        with preserved_random_states():
            results = self._func()
        self.results, self.iteration = {}, iteration  # Only the main process need have results.
        if results:
            if not isinstance(results, Mapping):
                raise TypeError(f"an evaluation must return a dict of results, but it returned {results!r}")
            self._store(_as_floats(results), iteration)
            if self.record is not None:
                self.record.add(iteration, self.results, self.trainer.storage)
        elif self.record is not None:
            self.record.draw()
        # The main process may have been busy alone; others would wait in the next step, and perhaps time out.
        comm.synchronize()

    def _store(self, results: dict[str, float], iteration: int) -> None:
        self.results, self.iteration = results, iteration
        # After the last step, the storage is an iteration further.
        cur_iter = iteration if iteration < self.trainer.start_iter else None
        self.trainer.storage.put_scalars(**results, smoothing_hint=False, cur_iter=cur_iter)


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
        *,
        weights: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """
        Args:
            eval_period: of the :class:`EvalHook`.
            checkpointer: the file does not become its last checkpoint, if it can do without.
            val_metric: name in the storage, such as "bbox/AP50"; "" for the first of the first evaluation.
            mode: "max" if more is better, "min" if less is; "auto" takes "min" for losses and errors.
            file_prefix: name of the file, which always holds the best model so far.
            weights: a context in which the model has the weights that are evaluated.
        """
        _check_mode(mode, val_metric)
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._mode = mode
        self._file_prefix = file_prefix
        self._weights = weights
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def before_train(self) -> None:
        if is_evaluated(self.trainer, self.trainer.start_iter - 1):
            self._save_if_best()

    def after_step(self) -> None:
        if is_due(self, self._period) and not is_last_step(self):
            self._save_if_best()

    def after_train(self) -> None:
        if is_finished(self):
            self._save_if_best()

    def state_dict(self) -> dict[str, Any]:
        if self.best_metric is None:
            return {}
        return {"best_metric": self.best_metric, "best_iter": self.best_iter, "val_metric": self._val_metric}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        name = state_dict.get("val_metric", self._val_metric)
        if self._val_metric in ("", name):
            self._val_metric = name
            self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
        else:
            logger.warning("The best model is now that by %s, no longer by %s.", self._val_metric, name)

    def _save_if_best(self) -> None:
        self._val_metric = self._val_metric or first_metric(self.trainer)
        found = metric_now(self.trainer, self._val_metric, "no best model is saved")
        if found is None or not math.isfinite(found[0]):
            return
        metric, iteration = found
        iteration = min(iteration, self.trainer.max_iter - 1)  # That which was finished last, also after the training.
        if is_improvement(metric, self.best_metric, _is_less_better(self._mode, self._val_metric)):
            logger.info("Best %s so far: %.4f in iteration %d.", self._val_metric, metric, iteration)
            before = self.best_metric, self.best_iter
            self.best_metric, self.best_iter = float(metric), iteration
            if not self._save(iteration):
                self.best_metric, self.best_iter = before

    def _save(self, iteration: int) -> bool:
        # A training that goes on does not go on from there, but from weights that are no averages.
        save = getattr(self._checkpointer, "save_aside", self._checkpointer.save)
        with self._weights():
            return save_or_go_on(save, self._file_prefix, iteration=iteration)


class EarlyStopping(HookBase):
    """Ends the training when a metric has not become better in ``patience`` evaluations in a row.

    Register it in all processes, after the :class:`EvalHook` that stores the metric. They all stop after the same
    iteration, as if it had been the last one.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer | None,
        val_metric: str,
        mode: str = "auto",
        *,
        patience: int,
        min_delta: float = 0.0,
    ) -> None:
        """
        Args:
            eval_period: of the :class:`EvalHook`.
            checkpointer: saves "model_final".
            val_metric, mode: see :class:`BestCheckpointer`.
            min_delta: by how much it has to be better than the best.
        """
        _check_mode(mode, val_metric)
        if patience < 1 or min_delta < 0:
            raise ConfigError(
                f"TEST.EARLY_STOPPING has PATIENCE {patience} and MIN_DELTA {min_delta}; a patience is a number of "
                "evaluations, at least 1, and MIN_DELTA is at least 0"
            )
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._mode = mode
        self._patience = patience
        self._min_delta = min_delta
        self._state: dict[str, Any] = {"best": None, "best_iter": None, "num_without": 0, "last_iter": -1}

    def before_train(self) -> None:
        trainer = self.trainer
        if is_evaluated(trainer, trainer.start_iter - 1):
            self._count(trainer.start_iter - 1)
        if self._is_to_stop():
            logger.info("The training was stopped early; a larger TEST.EARLY_STOPPING.PATIENCE lets it go on.")
            trainer.max_iter = trainer.start_iter

    def after_step(self) -> None:
        if not is_due(self, self._period) or is_last_step(self):
            return
        self._count(self.trainer.iter)
        if not self._is_to_stop():
            return
        self.trainer.max_iter = self.trainer.iter + 1  # Hooks after this one see the last step.
        if self._checkpointer is not None:
            self._checkpointer.save("model_final", iteration=self.trainer.iter)

    def state_dict(self) -> dict[str, Any]:
        return {**self._state, "val_metric": self._val_metric}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        name = state.pop("val_metric")
        if self._val_metric in ("", name):
            self._val_metric, self._state = name, state

    def _count(self, iteration: int) -> None:
        """Compare the result of an evaluation with the best; only the main process has results."""
        if not comm.is_main_process() or iteration <= self._state["last_iter"]:
            return
        self._val_metric = self._val_metric or first_metric(self.trainer)
        found = metric_now(self.trainer, self._val_metric, "it cannot stop the training")
        if found is None:
            return
        metric, state = found[0], self._state
        state["last_iter"] = iteration
        if is_improvement(metric, state["best"], _is_less_better(self._mode, self._val_metric), self._min_delta):
            state.update(best=metric, best_iter=iteration, num_without=0)
        else:
            state["num_without"] += 1
            left = self._patience - state["num_without"]
            logger.info(
                "%s is %.4g, not better than %s; %s.",
                self._val_metric,
                metric,
                "anything" if state["best"] is None else f"the {state['best']:.4g} of iteration {state['best_iter']}",
                f"after {left} more such evaluations the training stops" if left > 0 else "the training stops early",
            )

    def _is_to_stop(self) -> bool:
        """The same in all processes, as they wait for each other in the next step."""
        return comm.all_gather(self._state["num_without"] >= self._patience)[0]


def build_selection(
    cfg: CfgNode, checkpointer: Checkpointer, weights: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> list[HookBase | None]:
    """The hooks of TEST.BEST and TEST.EARLY_STOPPING.

    Args:
        weights: see :class:`BestCheckpointer`.
    """
    period, best, stopping = cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST, cfg.TEST.EARLY_STOPPING
    saved = checkpointer if comm.is_main_process() else None
    selection: list[HookBase | None] = []
    # With a single evaluation, at the end, the best model is the final one.
    if best.METRIC != "none" and period > 0 and saved is not None:
        selection.append(BestCheckpointer(period, saved, best.METRIC, best.MODE, weights=weights))
    if stopping.PATIENCE:
        if period <= 0:
            raise ConfigError(
                f"TEST.EARLY_STOPPING.PATIENCE is {stopping.PATIENCE} evaluations, but the only one is at the end: set "
                "TEST.EVAL_PERIOD or TEST.EVAL_EPOCHS"
            )
        metric = "" if best.METRIC == "none" else best.METRIC
        options = {"patience": stopping.PATIENCE, "min_delta": stopping.MIN_DELTA}
        selection.append(EarlyStopping(period, saved, metric, best.MODE, **options))
    return selection


def is_evaluated(trainer: TrainerBase, iteration: int) -> bool:
    """Whether an :class:`EvalHook` of the trainer has results of the model after an iteration."""
    return any(isinstance(hook, EvalHook) and hook.iteration == iteration for hook in trainer._hooks)


def first_metric(trainer: TrainerBase) -> str:
    """The name of the first number of an evaluation; "" if there was none."""
    names = (name for hook in trainer._hooks if isinstance(hook, EvalHook) for name in hook.results)
    return next(names, "")


def metric_now(trainer: TrainerBase, name: str, else_what: str) -> tuple[float, int] | None:
    """The last value of a metric and its iteration; None, with a warning, if there is none.

    Args:
        else_what: what that means, for the warning.
    """
    latest = trainer.storage.latest()
    if name in latest:
        return latest[name]
    results = [name for hook in trainer._hooks if isinstance(hook, EvalHook) for name in hook.results]
    known = sorted(results or latest)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    logger.warning(
        "No metric %r was stored, so %s.%s There are: %s. See TEST.BEST.METRIC.",
        name,
        else_what,
        hint,
        ", ".join(known) or "none",
    )
    return None


def _check_mode(mode: str, metric: str) -> None:
    if mode not in ("max", "min", "auto"):
        raise ConfigError(
            f"mode is {mode!r} (TEST.BEST.MODE); use 'max' if more of {metric!r} is better, 'min' if less is, or 'auto'"
        )


def _is_less_better(mode: str, metric: str) -> bool:
    return less_is_better(metric) if mode == "auto" else mode == "min"


def _as_floats(results: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, value in flatten_results_dict(results).items():
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"an evaluation must return numbers, but {name!r} is {value!r}") from None
    return numbers
