"""The weights of one part of a model, in a checkpoint of anything that has such a part."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from torch import Tensor
from torch.nn.parameter import is_lazy

from detlib.checkpoint.torchvision_names import from_torchvision_names, torchvision_family

__all__ = ["find_part", "from_torchvision_names_anywhere", "names_of_backbone"]

# Below a neck, a backbone has the prefix "bottom_up."; that of a classifier has not.
INNER_PREFIXES = ("", "bottom_up.")
BACKBONE, BOTTOM_UP = (f"backbone.{inner}" for inner in INNER_PREFIXES)


def names_of_backbone(model: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor]) -> dict[str, str]:
    """Map names of the backbone of a classifier to those in a detector that has a neck on top of it, or the reverse.

    Args:
        model: the ``state_dict`` of the whole model.
    """
    names = {}
    for name in checkpoint:
        own, other = (BOTTOM_UP, BACKBONE) if name.startswith(BOTTOM_UP) else (BACKBONE, BOTTOM_UP)
        renamed = other + name.removeprefix(own)
        if name.startswith(own) and name not in model and renamed in model and renamed not in checkpoint:
            names[name] = renamed
    return names


def find_part(
    part: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor], own_prefix: str
) -> tuple[list[str], dict[str, Tensor]]:
    """Find the prefix under which a checkpoint has most of a part's names; those of equal shape count twice.

    Args:
        part: its ``state_dict``.
        own_prefix: what the part has in its own model; taken where several would do.

    Returns:
        The prefixes that would do, the taken one first; and what the checkpoint has under it, by the names of the part.
        Both empty if it has none of the names.
    """
    scores: Counter[tuple[str, str]] = Counter()
    for inner in INNER_PREFIXES:
        names = {name.removeprefix(inner) for name in part if name.startswith(inner)}
        for name, weight in checkpoint.items():
            for prefix, rest in _splits(name):
                if rest in names:
                    scores[prefix, inner] += 1 + _has_shape(part[inner + rest], weight)
    if not scores:
        return [], {}
    most = max(scores.values())
    # Of equal ones, own_prefix, then the shortest: that of a model before that of its moving average.
    best = sorted(
        (pair for pair, score in scores.items() if score == most),
        key=lambda pair: (pair[0] != own_prefix, pair[0].count(".")),
    )
    prefix, inner = best[0]
    found = {inner + n.removeprefix(prefix): weight for n, weight in checkpoint.items() if n.startswith(prefix)}
    return [prefix for prefix, _ in best], found


def from_torchvision_names_anywhere(checkpoint: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """Rename what has the names of a classifier of torchvision, also where it is a part of another model.

    Returns:
        the weights, and the family of the classifier; None if there is none.
    """
    names_below: defaultdict[str, set[str]] = defaultdict(set)
    for name in checkpoint:
        for prefix, rest in _splits(name):
            names_below[prefix].add(rest)
    families = {prefix: torchvision_family(names) for prefix, names in names_below.items()}
    renamed = dict(checkpoint)
    for prefix, names in names_below.items():
        if families[prefix] is not None:
            weights = {name: renamed.pop(prefix + name) for name in names}
            renamed.update({prefix + new: weights[old] for old, new in from_torchvision_names(names).items()})
    return renamed, next((family for family in families.values() if family is not None), None)


def _splits(name: str) -> list[tuple[str, str]]:
    """All pairs of a prefix, which is empty or ends with a dot, and the rest."""
    starts = [0, *(index + 1 for index, letter in enumerate(name) if letter == ".")]
    return [(name[:start], name[start:]) for start in starts]


def _has_shape(expected: Tensor, weight: Tensor) -> bool:
    return is_lazy(expected) or expected.shape == weight.shape
