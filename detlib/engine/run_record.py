"""What each iteration of a training saw and made, in a file, so that two runs can be compared."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detlib.engine.diagnosis.step import samples_of
from detlib.engine.train_loop import HookBase
from detlib.engine.training_state import unwrap_model
from detlib.utils import comm
from detlib.utils.env import get_random_states

__all__ = ["RunRecorder", "digest", "read_records"]


class RunRecorder(HookBase):
    """Appends a line of JSON for each iteration: its samples, losses, and digests of batch, weights and random states.

    Each process has a file of its own. Register it first, so that no checkpoint holds an iteration without a line.
    """

    def __init__(self, folder: str | Path) -> None:
        """
        Args:
            folder: a run that goes on in it adds to the files that are there, see :func:`read_records`.
        """
        os.makedirs(folder, exist_ok=True)
        self._path = _path(folder, comm.get_rank())
        self._began = time.perf_counter()

    def before_step(self) -> None:
        self._began = time.perf_counter()

    def after_step(self) -> None:
        trainer = self.trainer
        latest = trainer.storage.latest().items()
        line = {
            "iteration": trainer.iter,
            "samples": [name for batch in trainer.step_batches for name in samples_of(batch)],
            "batch": digest(trainer.step_batches),
            "losses": {name: value for name, (value, at) in latest if at == trainer.iter and "loss" in name},
            "weights": digest(unwrap_model(trainer.model).state_dict()),
            "random": digest(get_random_states()),
            "seconds": time.perf_counter() - self._began,
        }
        # One write, which a kill cannot split.
        with open(self._path, "ab", buffering=0) as f:
            f.write(json.dumps(line).encode() + b"\n")


def read_records(folder: str | Path) -> list[dict[int, dict[str, Any]]]:
    """The lines of each process, by iteration.

    After a kill, iterations since the last checkpoint are made again: the later line counts.
    """
    records: list[dict[int, dict[str, Any]]] = []
    while (path := _path(folder, len(records))).exists():
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        records.append({line["iteration"]: line for line in lines})
    return records


def digest(value: Any) -> str:
    """The same for the same numbers, to the last bit, in whatever they are nested."""
    hasher = hashlib.blake2b(digest_size=8)
    _update(hasher, value)
    return hasher.hexdigest()


def _update(hasher: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        # Of a tensor that is dealt out to processes, the part of this one.
        value = value.to_local() if hasattr(value, "to_local") else value
        value = value.detach().cpu().contiguous()
        hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
        hasher.update(value.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            hasher.update(repr(key).encode())
            _update(hasher, value[key])
    elif isinstance(value, (list, tuple)):
        hasher.update(f"[{len(value)}".encode())
        for item in value:
            _update(hasher, item)
    elif hasattr(value, "__dict__"):  # Instances, Boxes, masks
        hasher.update(type(value).__name__.encode())
        _update(hasher, vars(value))
    else:
        hasher.update(repr(value).encode())


def _path(folder: str | Path, rank: int) -> Path:
    return Path(folder) / f"rank{rank}.jsonl"
