"""What a checkpoint says of the training that wrote it, and how that differs from what reads it.

It is under the key ``detlib``: "version" and "torch"; "config", the text; "classes", lists of names by what metadata of
datasets calls them; "preprocessing"; "datasets", with a fingerprint of each. Each of them may be missing.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

import detlib
from detlib.config import safe_yaml

__all__ = ["METADATA_KEY", "differences_of_trainings", "differences_of_weights", "warn_of_differences", "with_versions"]

logger = logging.getLogger(__name__)

METADATA_KEY = "detlib"

# Options that a resumed training may have other than before, without learning anything else.
WITHOUT_EFFECT = re.compile(
    r"(OUTPUT_DIR|VERSION|VIS_PERIOD|CUSTOM_IMPORTS|GLOBAL|TEST|TRACKER_HEADS|MODEL\.WEIGHTS|DATASETS\.(TEST|REGISTER)"
    r"|\w+\.\w+_TEST|DATALOADER\.(NUM_WORKERS|TIMEOUT|CHECK|ON_CORRUPT)|SOLVER\.CHECKPOINT_\w+)(\.|$)"
)

MAX_LENGTH = 60  # Of values in messages.


def with_versions(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """With those of the software that is running."""
    return {"version": detlib.__version__, "torch": str(torch.__version__), **metadata}


def warn_of_differences(stored: Any, own: Mapping[str, Any], resumes: bool) -> None:
    """Log what differs, if anything.

    Args:
        stored: what is in the file, which may be anything.
        own: of the same form; what one of the two lacks is not compared.
        resumes: whether the training goes on that wrote the file, or its weights are taken alone.
    """
    try:
        found = (differences_of_trainings if resumes else differences_of_weights)(stored, with_versions(own))
    except Exception as error:  # It may hold anything, as tensors that cannot be compared in this way.
        logger.warning("What the checkpoint says of its training cannot be read: %s", error)
        return
    if found:
        text = "The training that goes on differs from the one that wrote the checkpoint"
        if not resumes:
            text = "The weights were trained for something else"
        logger.warning("%s:\n%s", text, "\n".join(f"  {difference}" for difference in found))


def differences_of_trainings(stored: Any, own: Mapping[str, Any]) -> list[str]:
    """What a training that goes on has other than the one that wrote the checkpoint, in a sentence each."""
    stored = _as_dict(stored)
    found = [
        f"{name} was {stored[key]} and is {own[key]}"
        for key, name in (("version", "the version of detlib"), ("torch", "the version of torch"))
        if key in stored and key in own and stored[key] != own[key]
    ]
    found += _differences_of_datasets(stored.get("datasets"), own.get("datasets"))
    found += _differences_of_classes(stored, own)
    found += _differences_of_configs(stored.get("config"), own.get("config"))
    return found


def differences_of_weights(stored: Any, own: Mapping[str, Any]) -> list[str]:
    """What weights were trained for other than what they are to be used for, in a sentence each."""
    stored = _as_dict(stored)
    before, now = _as_dict(stored.get("preprocessing")), _as_dict(own.get("preprocessing"))
    found = [
        f"{key} was {_shown(before[key])} and is {_shown(now[key])}"
        for key in ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
        if key in before and key in now and before[key] != now[key]
    ]
    return [*_differences_of_classes(stored, own), *found]


def _differences_of_datasets(stored: Any, own: Any) -> Iterator[str]:
    before, now = _as_dict(stored), _as_dict(own)
    if not before or not now:
        return
    if list(before) != list(now):
        yield f"the training datasets were {', '.join(map(str, before))} and are {', '.join(now)}"
    for name in [name for name in now if name in before]:
        old, new = _as_dict(before[name]), _as_dict(now[name])
        if {"fingerprint", "num_samples"} - old.keys() or old["fingerprint"] == new["fingerprint"]:
            continue
        sizes = (old["num_samples"], new["num_samples"])
        changed = (
            "other samples or annotations" if sizes[0] == sizes[1] else f"{sizes[1]} samples instead of {sizes[0]}"
        )
        yield f"the dataset {name!r} has {changed}"


def _differences_of_classes(stored: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    before, now = _as_dict(stored.get("classes")), _as_dict(own.get("classes"))
    for kind in [kind for kind in now if kind in before]:
        old, new = before[kind], now[kind]
        if not isinstance(old, list) or old == new:
            continue
        if len(old) != len(new):
            yield f"{kind} were {len(old)} ({_listed(old)}) and are {len(new)} ({_listed(new)})"
        elif sorted(map(str, old)) == sorted(new):
            yield f"{kind} had another order: {_listed(old)}; now: {_listed(new)}"
        else:
            index = next(i for i, (first, second) in enumerate(zip(old, new, strict=True)) if first != second)
            yield f"{kind} have other names, the first of them {new[index]!r}, which was {old[index]!r}"


def _differences_of_configs(stored: Any, own: str | None) -> Iterator[str]:
    if not stored or not own or stored == own:
        return
    before, now = dict(_values(_parsed(stored))), dict(_values(_parsed(own)))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and not WITHOUT_EFFECT.match(key):
            values = [_shown(config[key]) if key in config else "not there" for config in (before, now)]
            yield f"{key} was {values[0]} and is {values[1]}"


def _parsed(config: Any) -> Any:
    try:
        return safe_yaml.load(config, "config")
    except Exception:  # It is as foreign as the file that it comes from.
        return None


def _values(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a nested dict by their full names."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _values(value, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, node


def _as_dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."


def _listed(names: list[Any]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
