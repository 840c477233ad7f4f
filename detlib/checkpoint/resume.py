"""Which file of a run to go on from, also if the last one is damaged."""

import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from detlib.utils.errors import CheckpointError, DamagedCheckpointError

__all__ = ["files_to_resume", "iteration_of", "load_first_whole", "remove_leftovers"]

logger = logging.getLogger(__name__)

NUMBERED = re.compile(r".+_(\d{7,})\.pth")
UNNUMBERED = ("model_final.pth", "model_best.pth")
LEFTOVER = re.compile(r"\..+\.pth\.tmp")


def iteration_of(file: str) -> int | None:
    """The iteration in the name of a periodic checkpoint."""
    match = NUMBERED.fullmatch(os.path.basename(file))
    return int(match[1]) if match else None


def files_to_resume(last: str, files: Sequence[str]) -> list[str]:
    """Files to go on from, best first: the last checkpoint, then those of earlier iterations.

    Args:
        last: what ``last_checkpoint`` names; it need not be there, or be empty.
        files: all checkpoints in the folder.
    """
    iteration = iteration_of(last)
    # Those of later iterations are of an earlier training in this folder.
    numbered = {
        file: n for file in files if (n := iteration_of(file)) is not None and (iteration is None or n < iteration)
    }
    others = [file for name in UNNUMBERED for file in files if os.path.basename(file) == name]
    ordered = [*(file for file in files if file == last), *sorted(numbered, key=numbered.get, reverse=True), *others]
    return list(dict.fromkeys(ordered))


def load_first_whole(
    files: Sequence[str], load: Callable[[str], dict[str, Any]], problems: Sequence[str] = ()
) -> dict[str, Any]:
    """Load the first of the files that is not damaged; an error is logged for each that is.

    Args:
        problems: what is known to be wrong already.

    Raises:
        CheckpointError: all of them are.
    """
    problems = list(problems)
    for file in files:
        if problems:
            logger.error("%s. RESUMING FROM %s INSTEAD", problems[-1], file)
        try:
            return load(file)
        except DamagedCheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(
        f"There is no checkpoint to resume from: {'; '.join(problems)}. Restore one from a copy, or start anew without "
        "--resume"
    )


def remove_leftovers(folder: str) -> None:
    """Delete what a write that was killed left behind."""
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            if LEFTOVER.fullmatch(name):
                os.remove(os.path.join(folder, name))
