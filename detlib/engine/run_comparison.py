"""Where two trainings differ that should be the same to the last bit."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detlib.engine.run_record import digest, read_records

__all__ = ["Comparison", "compare_runs", "last_checkpoint"]

# What is in a line of a record, in the order in which it comes about.
RECORDED = {
    "samples": "samples",
    "batch": "batch",
    "losses": "losses",
    "weights": "weights",
    "random": "random states",
}
# What is under a key of a checkpoint, at any depth.
PARTS = {
    "model": "weights",
    "optimizer": "optimizer",
    "LRScheduler": "schedule",
    "ModelEMA": "averaged weights",
    "training_state": "loss normaliser and the like",
    "random": "random states",
    "data": "place in the data",
    "buffers": "buffers of each process",
}
WRAPPERS = ("trainer", "_trainer", "hooks")
# What a checkpoint tells of the run that wrote it, and how the folder is called, and indexed, that FSDP adds to it.
NOT_COMPARED = (("detlib",), ("shards", "folder"), ("shards", "digests", ".metadata"))


class Comparison(NamedTuple):
    """Of one thing in two trainings."""

    what: str
    num_compared: int
    differences: list[str]
    """Where they differ; the first ones first."""


def compare_runs(reference: Path, other: Path) -> list[Comparison]:
    """Compares the records of two trainings and what is in their last checkpoints.

    Args:
        reference: folder of an uninterrupted training that a RunRecorder has recorded.
        other: of one that was resumed.
    """
    return [*_compare_records(reference, other), *_compare_checkpoints(reference, other)]


def last_checkpoint(folder: Path) -> str:
    """The name of its file; empty if there is none."""
    path = folder / "last_checkpoint"
    return path.read_text().strip() if path.exists() else ""


def _compare_records(reference: Path, other: Path) -> Iterator[Comparison]:
    pairs = list(zip(read_records(reference), read_records(other), strict=True))
    for what, name in RECORDED.items():
        differences = []
        for rank, (expected, found) in enumerate(pairs):
            for i in sorted(expected.keys() | found.keys()):
                values = [json.dumps(record.get(i, {}).get(what)) for record in (expected, found)]
                if values[0] != values[1]:
                    process = f", process {rank}" if len(pairs) > 1 else ""
                    differences.append(f"iteration {i}{process}: {values[0]} uninterrupted, {values[1]} resumed")
        yield Comparison(f"{name} of each iteration", sum(len(record) for record, _ in pairs), differences)


def _compare_checkpoints(reference: Path, other: Path) -> Iterator[Comparison]:
    states = []
    for folder in (reference, other):
        state = torch.load(folder / last_checkpoint(folder), map_location="cpu", weights_only=True)
        states.append({key: value for key, value in _flatten(state) if not _is_left_out(key)})
    expected, found = states
    keys = sorted(expected.keys() | found.keys())
    differences: dict[str, list[str]] = {}
    for key in keys:
        if digest(expected.get(key, "missing")) != digest(found.get(key, "missing")):
            differences.setdefault(_part_of(key), []).append(f"last checkpoint: {' > '.join(key)}")
    for part, number in sorted(Counter(map(_part_of, keys)).items()):
        yield Comparison(f"final {part}", number, differences.get(part, []))


def _is_left_out(key: tuple[str, ...]) -> bool:
    return any(key[: len(names)] == names for names in NOT_COMPARED)


def _flatten(value: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Values that are neither dicts nor lists, by the keys that lead to them."""
    if isinstance(value, (dict, list, tuple)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flatten(item, (*key, str(name)))
    else:
        yield key, value


def _part_of(key: tuple[str, ...]) -> str:
    named = (PARTS[name] for name in key if name in PARTS)
    return next(named, next((name for name in key if name not in WRAPPERS), "rest"))
