"""What of a checkpoint went into a model, as a table of grouped names."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from fvcore.common.checkpoint import _IncompatibleKeys
from tabulate import tabulate

__all__ = ["group_names", "loading_report", "without_parts"]

MAX_WIDTH = 88
MAX_ROWS = 40

# Children of one dotted prefix: names whose own children are the same share an entry. A leaf has none.
_Node: TypeAlias = tuple[tuple[tuple[str, ...], "_Node"], ...]


def loading_report(
    loaded: Iterable[str],
    missing: Iterable[str],
    mismatched: Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]],
    unexpected: Iterable[str],
) -> str:
    """A table of the four fates of a weight.

    Args:
        mismatched: name, shape in the checkpoint, shape in the model.
    """
    shapes = [
        ("other shape, not loaded", 1, f"{name}: {list(in_file)} in the file, {list(in_model)} in the model")
        for name, in_file, in_model in mismatched
    ]
    rows = [
        *_rows("loaded", loaded, show_leaves=False),
        *_rows("missing, as initialised", missing),
        *_shorten(shapes),
        *_rows("unexpected, ignored", unexpected),
    ]
    return tabulate(rows, headers=["weights", "number", "names"], tablefmt="pipe", disable_numparse=True)


def without_parts(
    prefixes: tuple[str, ...], incompatible: _IncompatibleKeys, names: Sequence[str]
) -> tuple[_IncompatibleKeys, list[str]]:
    """What is known of weights, and their names, but for those that start with a prefix."""
    return (
        incompatible._replace(
            missing_keys=[name for name in incompatible.missing_keys if not name.startswith(prefixes)],
            incorrect_shapes=[shapes for shapes in incompatible.incorrect_shapes if not shapes[0].startswith(prefixes)],
        ),
        [name for name in names if not name.startswith(prefixes)],
    )


def group_names(names: Iterable[str], *, max_width: int = MAX_WIDTH, show_leaves: bool = True) -> list[tuple[str, int]]:
    """Write dotted names with braces as shells do: ``res2.{0,1}.conv1.weight``.

    Args:
        show_leaves: otherwise ``norm.{weight,bias}`` is ``norm.*``.

    Returns:
        patterns, split until they fit into the width where that is possible, and how many names each stands for.
    """
    tree: dict = {}
    for name in names:
        node = tree
        for part in name.split("."):
            node = node.setdefault(part, {})
    return _patterns(_merge(tree), "", 1, max_width, show_leaves) if tree else []


def _rows(label: str, names: Iterable[str], *, show_leaves: bool = True) -> list[tuple[str, int, str]]:
    return _shorten([(label, count, pattern) for pattern, count in group_names(names, show_leaves=show_leaves)])


def _shorten(rows: list[tuple[str, int, str]]) -> list[tuple[str, int, str]]:
    if len(rows) <= MAX_ROWS:
        return rows
    rest = rows[MAX_ROWS - 1 :]
    return [*rows[: MAX_ROWS - 1], (rest[0][0], sum(row[1] for row in rest), f"... {len(rest)} more rows like these")]


def _merge(tree: dict) -> _Node:
    names_of: dict[_Node, list[str]] = {}
    for name, subtree in tree.items():
        names_of.setdefault(_merge(subtree), []).append(name)
    return tuple((tuple(names), children) for children, names in names_of.items())


def _patterns(node: _Node, prefix: str, factor: int, max_width: int, show_leaves: bool) -> list[tuple[str, int]]:
    whole = prefix + _braces(node, show_leaves)
    if len(whole) <= max_width:
        return [(whole, factor * _count(node))]
    rows = []
    for names, children in node:
        start = prefix + _alternatives(names)
        if children:
            rows += _patterns(children, f"{start}.", factor * len(names), max_width, show_leaves)
        else:
            rows.append((start, factor * len(names)))
    return rows


def _count(node: _Node) -> int:
    return sum(len(names) * (_count(children) or 1) for names, children in node)


def _braces(node: _Node, show_leaves: bool) -> str:
    if not show_leaves and not any(children for _, children in node) and _count(node) > 1:
        return "*"
    parts = [
        _alternatives(names) + (f".{_braces(children, show_leaves)}" if children else "") for names, children in node
    ]
    return parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}"


def _alternatives(names: tuple[str, ...]) -> str:
    """``conv1``, ``conv2``, ``conv3``, ``shortcut`` become ``{conv{1..3},shortcut}``."""
    numbers_of: dict[str, list[str]] = {}
    for name in names:
        stem = name.rstrip("0123456789")
        numbers_of.setdefault(stem, []).append(name[len(stem) :])
    parts = [stem + _numbers(numbers) for stem, numbers in numbers_of.items()]
    return parts[0] if len(parts) == 1 else f"{{{','.join(parts)}}}"


def _numbers(numbers: list[str]) -> str:
    """Digits after the same stem; one may be empty."""
    if len(numbers) == 1:
        return numbers[0]
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 2 and numbers == [str(n) for n in range(int(first or -1), int(last or -1) + 1)]:
        return f"{{{first}..{last}}}"
    return f"{{{','.join(numbers)}}}"
