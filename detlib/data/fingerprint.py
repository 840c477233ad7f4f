"""A short name for the content of a dataset, by which a training that goes on notices that its data has changed."""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

__all__ = ["fingerprint_of", "fingerprints_of", "remember_fingerprint"]

# So many samples, evenly spread, count with all of their annotations' content: polygons would take seconds otherwise.
NUM_WHOLE_SAMPLES = 2000

# Where images are is no part of what is in them.
PATHS = ("file_name", "sem_seg_file_name", "pan_seg_file_name", "edge_file_name")

_FINGERPRINTS: dict[str, dict[str, Any]] = {}


def remember_fingerprint(name: str, dataset: Any) -> None:
    """Compute the fingerprint of a dataset that was loaded, for :func:`fingerprints_of`; streams have none."""
    if hasattr(dataset, "__len__"):
        _FINGERPRINTS[name] = {"num_samples": len(dataset), "fingerprint": fingerprint_of(dataset)}


def fingerprints_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of those datasets that were loaded: "num_samples" and "fingerprint"."""
    return {name: dict(_FINGERPRINTS[name]) for name in names if name in _FINGERPRINTS}


def fingerprint_of(dataset: Sequence[dict[str, Any]] | Dataset) -> str:
    """16 hexadecimal digits that differ if the samples do.

    Of all samples count the file names below the folder that they share, sizes and the classes of objects; of
    ``NUM_WHOLE_SAMPLES`` everything. Of torch datasets, only the number of samples does.
    """
    digest = hashlib.sha256(str(len(dataset)).encode())
    if isinstance(dataset, list) and dataset and isinstance(dataset[0], dict):
        num_characters = len(_shared_folder([str(sample.get("file_name", "")) for sample in dataset]))
        lines = (_line_of(sample, num_characters) for sample in dataset)
        digest.update("\n".join(lines).encode(errors="surrogateescape"))
        step = max(len(dataset) // NUM_WHOLE_SAMPLES, 1)
        for sample in itertools.islice(dataset, 0, None, step):
            rest = {key: value for key, value in sample.items() if key not in PATHS}
            digest.update(json.dumps(rest, sort_keys=True, default=_plain, skipkeys=True).encode())
    return digest.hexdigest()[:16]


def _line_of(sample: dict[str, Any], num_characters: int) -> str:
    classes = [annotation.get("category_id") for annotation in sample.get("annotations", ())]
    file_name = str(sample.get("file_name", ""))[num_characters:]
    return f"{file_name} {sample.get('height')} {sample.get('width')} {classes}"


def _shared_folder(paths: list[str]) -> str:
    """The folder that all paths begin with; it need not be the same on another machine."""
    first, last = min(paths), max(paths)
    if os.path.isabs(first) != os.path.isabs(last):
        return ""
    return os.path.dirname(first) if first == last else os.path.commonpath([first, last])


def _plain(value: Any) -> Any:
    """What takes the place of values that JSON does not have."""
    if isinstance(value, np.ndarray):
        return f"{value.shape} {hashlib.sha256(np.ascontiguousarray(value)).hexdigest()}"
    if isinstance(value, np.generic):
        return value.item()
    return value.decode("latin1") if isinstance(value, bytes) else type(value).__name__
