"""Which file of a run to go on from, also if the last one is damaged."""

import os
import re
from collections.abc import Sequence

__all__ = ["files_to_resume", "iteration_of", "remove_leftovers"]

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


def remove_leftovers(folder: str) -> None:
    """Delete what a write that was killed left behind."""
    if os.path.isdir(folder):
        for name in os.listdir(folder):
            if LEFTOVER.fullmatch(name):
                os.remove(os.path.join(folder, name))
