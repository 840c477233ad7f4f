"""Saving before the program ends, when a signal asks it to."""

import logging
import os
import shlex
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer

from detlib.engine.trainer_base import HookBase
from detlib.utils import comm

__all__ = ["SIGNALS", "PreemptionHook", "TrainingPreempted"]

logger = logging.getLogger(__name__)

# SIGUSR1 is what Slurm is often told to send some time before the end: --signal=USR1@120.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

# A signal to a whole group of processes may come twice: from its sender, and passed on by the parent process.
SAME_SIGNAL_SECONDS = 1.0


class TrainingPreempted(SystemExit):
    """A signal ended the training, which is saved; raised in all processes."""


class PreemptionHook(HookBase):
    """On SIGTERM, SIGINT (Ctrl-C) or SIGUSR1, saves a checkpoint after the step at hand and ends the program.

    All processes end, also if one of them alone got the signal, with the exit status that shells give to a program
    that a signal has ended: 143, 130 or 138, which is 128 and the number of the signal. There is no evaluation. A
    second signal ends the process at once.

    Register it in all processes: after the hooks that change what is saved, and before those that evaluate. Handlers
    that a program has set before the training are left to it.
    """

    def __init__(self, checkpointer: Checkpointer, file_prefix: str = "model") -> None:
        """
        Args:
            file_prefix: of the file, which is named as a periodic one is.
        """
        self._checkpointer = checkpointer
        self._file_prefix = file_prefix
        self._handlers: dict[int, Any] = {}
        self._signal = 0
        self._time = 0.0
        self._group: dist.ProcessGroup | None = None

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():  # Python admits handlers nowhere else.
            replaced = {number: signal.getsignal(number) for number in SIGNALS}
            self._handlers = {n: h for n, h in replaced.items() if h in (signal.SIG_DFL, signal.default_int_handler)}
            for number in self._handlers:
                signal.signal(number, self._on_signal)
        if comm.get_world_size() > 1:
            # Of its own, as metrics may be collected by another thread meanwhile; on the CPU, so that no GPU waits.
            self._group = dist.new_group(backend="gloo")

    def after_step(self) -> None:
        number = self._signal_of_any_process()
        if number:
            self._save(signal.Signals(number).name)
            raise TrainingPreempted(128 + number)

    def after_train(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now, name = time.monotonic(), signal.Signals(number).name
        if not self._signal:
            self._signal, self._time = number, now
            _tell(f"{name}: saving a checkpoint after this iteration, then ending. Once more ends it at once.")
        elif now - self._time > SAME_SIGNAL_SECONDS:
            _tell(f"{name} again: ending at once; what was learnt since the last checkpoint is lost.")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _signal_of_any_process(self) -> int:
        if self._group is None:
            return self._signal
        number = torch.tensor(self._signal)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group)
        return int(number)

    def _save(self, reason: str) -> None:
        trainer = self.trainer
        if comm.get_world_size() > 1 and hasattr(trainer, "gather_states"):
            trainer.gather_states()
        if comm.is_main_process():
            name = f"{self._file_prefix}_{trainer.iter:07d}"
            if os.path.basename(self._checkpointer.get_checkpoint_file()) != f"{name}.pth":
                self._checkpointer.save(name, iteration=trainer.iter)
            logger.warning(
                "%s: the training ends after iteration %d, which is saved. To go on, add --resume: %s",
                reason,
                trainer.iter,
                shlex.join([os.path.basename(sys.executable), *sys.argv]),
            )
        comm.synchronize()  # The first process that ends can make what has started them end the others.


def _tell(text: str) -> None:
    """Write to stderr, without the locks of logging and of files, which the interrupted code may hold."""
    os.write(2, f"\n{text}\n".encode())
