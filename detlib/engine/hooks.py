"""Hooks for timing, learning rate, checkpoints, evaluation and output."""

import contextlib
import datetime
import logging
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from torch.optim import Optimizer

from detlib.engine.checkpoint_hooks import PeriodicCheckpointer
from detlib.engine.clustering_hook import ClusteringHook
from detlib.engine.evaluation_hooks import BestCheckpointer, EarlyStopping, EvalHook
from detlib.engine.feature_hook import VisualizeFeatures
from detlib.engine.model_hooks import (
    AutogradProfiler,
    CollapseWarning,
    PreciseBN,
    TorchMemoryStats,
    TorchProfiler,
    VisualizePredictions,
)
from detlib.engine.preemption_hook import PreemptionHook
from detlib.engine.train_loop import HookBase, is_due, is_last_step
from detlib.solver import LRMultiplier
from detlib.solver import LRScheduler as _TorchLRScheduler
from detlib.utils import comm
from detlib.utils.event_writers import waiting_share
from detlib.utils.events import EventWriter

__all__ = [
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "ClusteringHook",
    "CollapseWarning",
    "DataWaitWarning",
    "EarlyStopping",
    "EvalHook",
    "GatherStates",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "PreemptionHook",
    "ProgressBar",
    "TorchMemoryStats",
    "TorchProfiler",
    "VisualizeFeatures",
    "VisualizePredictions",
]

logger = logging.getLogger(__name__)


class CallbackHook(HookBase):
    """Calls a function with the trainer at each event for which one is given."""

    def __init__(
        self,
        *,
        before_train: Callable[[Any], None] | None = None,
        after_train: Callable[[Any], None] | None = None,
        before_step: Callable[[Any], None] | None = None,
        after_step: Callable[[Any], None] | None = None,
    ) -> None:
        self._before_train = before_train
        self._after_train = after_train
        self._before_step = before_step
        self._after_step = after_step

    def before_train(self) -> None:
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self) -> None:
        if self._after_train:
            self._after_train(self.trainer)
        # Functions may hold the trainer, which holds this hook.
        self._before_train = self._after_train = self._before_step = self._after_step = None

    def before_step(self) -> None:
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self) -> None:
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Stores the seconds of each iteration as "time" and the images of all processes as "images_per_second".

    At the end, it logs a summary.

    Register it first, so that the other hooks count as hooks and not as part of the iteration.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        """
        Args:
            warmup_iter: iterations at the beginning that do not count.
        """
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._total_timer = Timer()
        self._start_time = time.perf_counter()

    def before_train(self) -> None:
        self._restart()

    def after_train(self) -> None:
        num_iter = self.trainer.storage.iter - self.trainer.start_iter - self._warmup_iter + 1
        if num_iter <= 0:
            return
        in_steps = self._total_timer.seconds()
        in_hooks = time.perf_counter() - self._start_time - in_steps
        logger.info(
            "Speed: %d iterations in %s (%.4f s each), and %s for hooks; the first %d iterations do not count.",
            num_iter,
            _duration(in_steps),
            in_steps / num_iter,
            _duration(in_hooks),
            max(self._warmup_iter - 1, 0),
        )

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        num_done = self.trainer.iter - self.trainer.start_iter + 1
        if num_done >= self._warmup_iter:
            seconds = self._step_timer.seconds()
            self.trainer.storage.put_scalars(time=seconds)
            if (num_images := _num_images(self.trainer)) and seconds > 0:
                self.trainer.storage.put_scalars(images_per_second=num_images / seconds)
            self._total_timer.pause()
        else:
            self._restart()

    def _restart(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()


class DataWaitWarning(HookBase):
    """Says, once, when the model has waited for data for a large part of the time.

    Register it after the :class:`IterationTimer`, in the main process.
    """

    def __init__(self, num_workers: int, period: int = 100, max_share: float = 0.3) -> None:
        """
        Args:
            num_workers: DATALOADER.NUM_WORKERS.
            period: how many iterations are looked at together.
            max_share: of the time, from which on it is said.
        """
        self._num_workers = num_workers
        self._period = period
        self._max_share = max_share
        self._has_warned = False

    def after_step(self) -> None:
        if self._has_warned or not is_due(self, self._period):
            return
        share = waiting_share(self.trainer.storage, self._period)
        if share is None or share <= self._max_share:
            return
        self._has_warned = True
        cores, processes = _num_cores(), comm.get_local_size()
        if self._num_workers * processes < cores:
            advice = f"Raise DATALOADER.NUM_WORKERS from {self._num_workers}"
        else:
            advice = f"DATALOADER.NUM_WORKERS is {self._num_workers}, as many as there are cores, so more hardly help"
        logger.warning(
            "%.0f %% of the time of the last iterations was waiting for data. %s (this machine has %d cores for %d "
            "processes that train, each with its own workers); store images no larger than INPUT.MIN_SIZE_TRAIN asks "
            "for, on a local disk; or use cheaper augmentations.",
            100 * share,
            advice,
            cores,
            processes,
        )


class PeriodicWriter(HookBase):
    """Lets writers write every ``period`` iterations and at the end.

    What cannot be written, as on a full disk, is logged as an error, and the training goes on.

    Register it last, so that what other hooks stored is written too.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"a writer must derive from EventWriter, but a {type(writer).__name__} came")
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        if is_due(self, self._period) or is_last_step(self):
            for writer in self._writers:
                self._try(writer.write)

    def after_train(self) -> None:
        for writer in self._writers:
            self._try(writer.write)  # what other hooks stored after the last step
            self._try(writer.close)

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except OSError as error:
            logger.error("METRICS ARE NOT WRITTEN by %s: %s. The training goes on", type(do.__self__).__name__, error)


class GatherStates(HookBase):
    """Collects what each process has for itself, before another hook saves in the same iteration.

    Register it in all processes. See :class:`~detlib.engine.training_state.ProcessStates`.
    """

    def __init__(self, *periods: int) -> None:
        """
        Args:
            periods: in iterations, after which a hook saves.
        """
        self._periods = periods

    def after_step(self) -> None:
        if comm.get_world_size() > 1 and (is_last_step(self) or any(is_due(self, period) for period in self._periods)):
            self.trainer.gather_states()


class LRScheduler(HookBase):
    """Steps the learning-rate schedule once per iteration, and stores the rate as "lr"."""

    def __init__(
        self, optimizer: Optimizer | None = None, scheduler: _TorchLRScheduler | ParamScheduler | None = None
    ) -> None:
        """
        Args:
            optimizer: None for the trainer's.
            scheduler: a fvcore schedule becomes a multiplier of the optimizer's rates; None for the trainer's.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> _TorchLRScheduler | ParamScheduler:
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    def after_step(self) -> None:
        lr = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict() if isinstance(self.scheduler, _TorchLRScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if isinstance(self.scheduler, _TorchLRScheduler):
            logger.info("Going on with the learning-rate schedule of the checkpoint.")
            self.scheduler.load_state_dict(state_dict)

    @staticmethod
    def get_best_param_group_id(optimizer: Optimizer) -> int:
        """Index of the group whose rate stands for all: the largest, or the first one with the most common rate."""
        groups = optimizer.param_groups
        # Groups that are not to learn, as of a node with lr_factor: 0, say nothing about the others.
        sizes = [len(group["params"]) if group.get("initial_lr", group["lr"]) > 0 else 0 for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in groups]
        return rates.index(Counter(rates).most_common(1)[0][0])


class ProgressBar(HookBase):
    """A bar with the remaining time and the total loss, if stderr is a terminal; log lines appear above it."""

    def __init__(self, loss_period: int = 10) -> None:
        """
        Args:
            loss_period: iterations from one shown loss to the next, as reading it may wait for the device.
        """
        self._loss_period = loss_period
        self._bar = None
        self._redirection = contextlib.ExitStack()

    def before_train(self) -> None:
        if not sys.stderr.isatty():
            return
        from tqdm.auto import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        loggers = [logging.root, logging.getLogger("detlib"), logging.getLogger("fvcore")]
        self._redirection.enter_context(logging_redirect_tqdm([logger for logger in loggers if logger.handlers]))
        columns, rows = shutil.get_terminal_size()  # tqdm shows nothing where a terminal says that its size is 0.
        self._bar = tqdm(
            initial=self.trainer.start_iter, total=self.trainer.max_iter, unit="it", ncols=columns - 1, nrows=rows
        )

    def after_step(self) -> None:
        if self._bar is None:
            return
        if is_due(self, self._loss_period):
            loss, _ = self.trainer.storage.latest().get("total_loss", (math.nan, 0))
            self._bar.set_postfix_str(f"total_loss {loss:.4g}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._redirection.close()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_images(trainer: Any) -> int:
    """Of all processes in this iteration; 0 for a trainer that does not tell."""
    batch = getattr(trainer, "last_batch", None)
    if not isinstance(batch, (list, tuple)):
        return 0
    return len(batch) * getattr(trainer, "accumulation_steps", 1) * comm.get_world_size()


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))
