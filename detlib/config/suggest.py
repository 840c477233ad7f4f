"""What a config key that does not exist may have been meant for."""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

__all__ = ["all_keys", "closest_keys", "did_you_mean", "misplaced"]


def all_keys(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all sections and options below a section."""
    for key, value in section.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        yield name
        if isinstance(value, Mapping):
            yield from all_keys(value, name)


def closest_keys(key: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Known keys with a last part like that of `key`, those in a similar section first."""
    scores = {}
    for candidate in known:
        name = _similarity(_last(key), _last(candidate))
        if name >= 0.75 and candidate != key:
            scores[candidate] = 0.8 * name + 0.2 * _similarity(key, candidate)
    best = max(scores.values(), default=0)
    ranked = sorted(scores, key=lambda candidate: -scores[candidate])
    return [candidate for candidate in ranked if scores[candidate] > best - 0.1][:n]


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """A question that names the closest keys, or advice when none is close."""
    close = closest_keys(key, known, n=5)  # Several sections have a DEPTH.
    if not close:
        return "nothing is called like it; a project adds its options with code, before files are read"
    return f"did you mean {' or '.join(close)}?"


def misplaced(section: str, name: str, known: Iterable[str]) -> str | None:
    """The existing key for which a new option of an existing section is probably meant.

    Sections beside each other below another one, such as the ROI heads, often have options of the same name, and names
    that differ in a number only, such as RES4_DILATION, belong to a series.
    """
    around = section.rpartition(".")[0]
    for candidate in closest_keys(f"{section}.{name}" if section else name, known):
        home = candidate.rpartition(".")[0]
        if home == section and re.sub(r"\d", "", name) == re.sub(r"\d", "", _last(candidate)):
            continue
        likeness = _similarity(name, _last(candidate))
        beside = around and home.rpartition(".")[0] == around
        if likeness >= (0.85 if home == section else 0.9) and (home == section or not beside):
            return candidate
    return None


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _similarity(a: str, b: str) -> float:
    return SequenceMatcher(None, a.upper(), b.upper(), autojunk=False).ratio()
