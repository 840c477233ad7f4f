"""The weights of one part of a model, in a checkpoint of anything that has such a part."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor
from torch.nn.parameter import is_lazy

from detlib.checkpoint.torchvision_names import from_torchvision_names, torchvision_family

__all__ = [
    "FOLLOWERS",
    "backbone_prefix",
    "find_part",
    "from_torchvision_names_anywhere",
    "names_of_backbone",
    "prefixes_of_backbones",
]

# Below a neck, a backbone has the prefix "bottom_up.", or "net." in a SimpleFeaturePyramid; that of a classifier has
# none.
INNER_PREFIXES = ("", "bottom_up.", "net.")
BACKBONE = "backbone."
# The stage that C4 detectors compute for each region, which is the last one of their backbone elsewhere.
LAST_STAGE, HEAD_STAGE = "res5.", "roi_heads.res5."

# Parts of self-supervised models that follow the trained backbone as its average, or are a copy of it.
FOLLOWERS = ("encoder_k", "target_net", "momentum_encoder", "teacher", "target_encoder", "model_ema")


def names_of_backbone(
    model: Mapping[str, Tensor], checkpoint: Collection[str], *, has_prefix: bool = True
) -> dict[str, str]:
    """Map names of a backbone to those that it has in the model, be it in a classifier, below a neck or in a C4 head.

    Args:
        model: the ``state_dict`` of the whole model.
        checkpoint: its names; those that the model has are left alone.
        has_prefix: whether names of the backbone begin with "backbone." there, or with nothing.
    """
    names = {}
    known = set(checkpoint)
    for name in checkpoint:
        if name in model:
            continue
        places = [place for place in _places(name, has_prefix) if place in model and place not in known]
        if places:
            names[name] = places[0]
    return names


def backbone_prefix(names: Iterable[str]) -> str:
    """What the names of the backbone itself begin with in a model, below a neck if there is one."""
    prefixes = [BACKBONE + inner for inner in reversed(INNER_PREFIXES)]
    names = list(names)
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)), BACKBONE)


def prefixes_of_backbones(backbone: Iterable[str], checkpoint: Iterable[str]) -> list[str]:
    """Prefixes under which a checkpoint has half of a backbone's names or more, or those of torchvision.

    Those of averages of a backbone are left out.

    Args:
        backbone: names, without prefix.
    """
    expected = set(backbone)
    return [
        prefix
        for prefix, names in _names_below(checkpoint).items()
        if prefix
        and not _is_follower(prefix)
        and (2 * len(names & expected) >= len(expected) > 0 or torchvision_family(names) is not None)
    ]


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
        key=lambda pair: (pair[0] != own_prefix, _is_follower(pair[0]), pair[0].count(".")),
    )
    prefix, inner = best[0]
    found = {inner + n.removeprefix(prefix): weight for n, weight in checkpoint.items() if n.startswith(prefix)}
    return [prefix for prefix, _ in best], found


def from_torchvision_names_anywhere(checkpoint: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
    """Rename what has the names of a classifier of torchvision, also where it is a part of another model.

    Returns:
        the weights, and the family of the classifier; None if there is none.
    """
    names_below = _names_below(checkpoint)
    families = {prefix: torchvision_family(names) for prefix, names in names_below.items()}
    renamed = dict(checkpoint)
    for prefix, names in names_below.items():
        if families[prefix] is not None:
            weights = {name: renamed.pop(prefix + name) for name in names}
            renamed.update({prefix + new: weights[old] for old, new in from_torchvision_names(names).items()})
    return renamed, next((family for family in families.values() if family is not None), None)


def _places(name: str, has_prefix: bool) -> list[str]:
    """Where the weight of this name in one model may be in another, in the order of preference."""
    prefix = BACKBONE if has_prefix else ""
    if name.startswith(HEAD_STAGE):
        rests = [name.removeprefix("roi_heads.")]
    elif name.startswith(prefix):
        name = name.removeprefix(prefix)
        rests = [name.removeprefix(inner) for inner in INNER_PREFIXES if name.startswith(inner)]
    else:
        return []
    places = [BACKBONE + inner + rest for rest in rests for inner in INNER_PREFIXES]
    return places + [f"roi_heads.{rest}" for rest in rests if rest.startswith(LAST_STAGE)]


def _names_below(names: Iterable[str]) -> dict[str, set[str]]:
    """The rests of names after each prefix that there is."""
    below: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        for prefix, rest in _splits(name):
            below[prefix].add(rest)
    return below


def _is_follower(prefix: str) -> bool:
    return not set(FOLLOWERS).isdisjoint(prefix.split("."))


def _splits(name: str) -> list[tuple[str, str]]:
    """All pairs of a prefix, which is empty or ends with a dot, and the rest."""
    starts = [0, *(index + 1 for index, letter in enumerate(name) if letter == ".")]
    return [(name[:start], name[start:]) for start in starts]


def _has_shape(expected: Tensor, weight: Tensor) -> bool:
    return is_lazy(expected) or expected.shape == weight.shape
