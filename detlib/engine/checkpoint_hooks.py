"""Checkpoints every so many iterations."""

import glob
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer

from detlib.checkpoint.digest import check_digest
from detlib.checkpoint.resume import iteration_of
from detlib.engine.trainer_base import HookBase
from detlib.utils.errors import CheckpointError

__all__ = ["PeriodicCheckpointer", "save_or_go_on"]

logger = logging.getLogger(__name__)


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's class of this name as a hook: saves every ``period`` iterations, and a "final" one at the end.

    A periodic one that cannot be written, as on a full disk, is logged as an error, and the training goes on; an error
    of the final one is raised.

    With ``max_to_keep``, older ones are deleted, also those of before the training was resumed; but not what has a name
    without an iteration, such as "model_best", and nothing unless the newest is whole.
    """

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Saves if it is time to.

        Args:
            kwargs: more to save.
        """
        iteration = int(iteration)
        state = {"iteration": iteration, **kwargs}
        if self.period > 0 and (iteration + 1) % self.period == 0:
            name = f"{self.file_prefix}_{iteration:07d}"
            if save_or_go_on(self.checkpointer.save, name, **state) and self.max_to_keep is not None:
                self._delete_old(f"{name}.pth")
        if self.max_iter is not None and iteration >= self.max_iter - 1:
            self.checkpointer.save(f"{self.file_prefix}_final", **state)

    def _delete_old(self, newest: str) -> None:
        files = {os.path.basename(file): file for file in self.checkpointer.get_all_checkpoint_files()}
        last = iteration_of(newest)
        numbered = sorted(
            (iteration, name)
            for name in files
            if name.startswith(f"{self.file_prefix}_")
            and (iteration := iteration_of(name)) is not None
            # Later ones are of another training in this folder, which goes on otherwise.
            and iteration <= last
        )
        if newest not in files or len(numbered) <= self.max_to_keep or not _is_whole(files[newest]):
            return
        for _, name in numbered[: -self.max_to_keep]:
            logger.info("Deleting %s: SOLVER.CHECKPOINT_KEEP is %d", files[name], self.max_to_keep)
            self.path_manager.rm(files[name])
            for folder in glob.glob(f"{glob.escape(files[name].removesuffix('.pth'))}.*.shards"):
                shutil.rmtree(folder, ignore_errors=True)


def save_or_go_on(save: Callable[..., None], name: str, **state: Any) -> bool:
    """Call a checkpointer's ``save``; what cannot be written is no reason to lose what days of training have learnt.

    Returns:
        whether it was written.
    """
    try:
        save(name, **state)
    except (CheckpointError, OSError) as error:
        logger.error(
            "THE CHECKPOINT %s WAS NOT WRITTEN: %s. The training goes on; it is saved when a checkpoint is due again. "
            "Make room until then, or a crash costs all since the one before",
            name,
            error,
        )
        return False
    return True


def _is_whole(file: str) -> bool:
    try:
        return not os.path.isfile(file) or check_digest(file)
    except (CheckpointError, OSError) as error:
        logger.error("Older checkpoints are kept, as the new one is no good: %s", error)
        return False
