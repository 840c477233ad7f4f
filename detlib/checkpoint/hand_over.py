"""Pre-trained backbones in other models: taking them out of a checkpoint, and giving weights the form needed there."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present
from torch.nn.parameter import is_lazy

from detlib.checkpoint.parts import FOLLOWERS, INNER_PREFIXES
from detlib.checkpoint.torchvision_names import from_torchvision_names, torchvision_family
from detlib.utils.errors import CheckpointError

__all__ = [
    "extract_backbone",
    "first_parts",
    "fold_branches",
    "prefix_of_backbone",
    "remove_wrappers",
    "resize_positions",
]

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile put these before every name.

# Of classifiers of torchvision; what self-supervised software puts there is a projector.
CLASSIFIER = "linear."

Weights = dict[str, Tensor]


def remove_wrappers(weights: Weights) -> None:
    """Remove prefixes that all names have, in place."""
    for prefix in WRAPPER_PREFIXES:
        consume_prefix_in_state_dict_if_present(weights, prefix)


def extract_backbone(weights: Mapping[str, Tensor], prefix: str = "backbone.") -> Weights:
    """The weights of a backbone, by names without prefix; those of torchvision become detlib's.

    Args:
        weights: of the whole model, without prefixes of wrappers.
        prefix: as for :func:`prefix_of_backbone`, which says what is raised.
    """
    prefix = prefix_of_backbone(weights, prefix)
    backbone = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    if torchvision_family(backbone) is None:
        return backbone
    names = from_torchvision_names(name for name in backbone if not name.endswith(".num_batches_tracked"))
    return {new: backbone[old] for old, new in names.items() if not new.startswith(CLASSIFIER)}


def prefix_of_backbone(weights: Collection[str], prefix: str) -> str:
    """What the names of a backbone start with, below a neck if there is one.

    Args:
        weights: names of the whole model, without prefixes of wrappers.
        prefix: of the backbone with its neck; may have those of wrappers, and needs no dot at its end.

    Raises:
        CheckpointError: no name starts with it, or it is an average of the backbone that was trained.
    """
    prefix = f"{prefix.rstrip('.')}."
    if followers := [name for name in FOLLOWERS if name in prefix.split(".")]:
        raise CheckpointError(
            f"the prefix is {prefix!r}, but {followers[0]} only follows the backbone that was trained"
        )
    for wrapper in WRAPPER_PREFIXES:
        if not _has_prefix(weights, prefix):
            prefix = prefix.removeprefix(wrapper)
    if not _has_prefix(weights, prefix):
        raise CheckpointError(
            f"no weight of the checkpoint starts with {prefix!r}; they start with {first_parts(weights)}. Give the "
            "prefix of its backbone"
        )
    return next(prefix + inner for inner in INNER_PREFIXES[::-1] if _has_prefix(weights, prefix + inner))


def first_parts(names: Iterable[str]) -> str:
    """How names start, and how many of them."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def fold_branches(weights: Weights, model: Iterable[str]) -> None:
    """Give transformers like that of CAE the form that others have, in place; what their blocks give stays the same.

    Factors of branches are multiplied into the layer before them; biases of queries and values become one with zeros
    for keys.

    Args:
        model: its names; a model that has factors or such biases itself gets them as they are.
    """
    ends = {name.rsplit(".", 1)[-1] for name in model}
    for name in [name for name in weights if name.endswith((".gamma_1", ".gamma_2"))]:
        block, gamma = name.rsplit(".", 1)
        layer = f"{block}.attn.proj" if gamma == "gamma_1" else f"{block}.mlp.fc2"
        if gamma not in ends and f"{layer}.weight" in weights:
            factor = weights.pop(name)
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] * factor[:, None]
            weights[f"{layer}.bias"] = weights[f"{layer}.bias"] * factor
    for name in [name for name in weights if name.endswith(".q_bias")]:
        attention = name.removesuffix(".q_bias")
        if "q_bias" not in ends and f"{attention}.v_bias" in weights:
            q_bias, v_bias = weights.pop(name), weights.pop(f"{attention}.v_bias")
            weights[f"{attention}.qkv.bias"] = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])


def resize_positions(weights: Weights, model: Mapping[str, Tensor]) -> list[str]:
    """Interpolate positions and distances for another grid of patches or another size of windows, in place.

    Args:
        weights: by the names of the model.
        model: its ``state_dict``.

    Returns:
        names of those resized; what no interpolation can make fit is left as it is.
    """
    resized = {}
    for name in weights.keys() & model.keys():
        resize = _RESIZE.get(name.rsplit(".", 1)[-1])
        weight, expected = weights[name], model[name].detach()
        if resize is None or is_lazy(model[name]) or weight.shape == expected.shape:
            continue
        result = resize(weight, expected)
        if result is not None and result.shape == expected.shape:
            resized[name] = result
    weights.update(resized)
    return sorted(resized)


def _resize_grid(weight: Tensor, expected: Tensor) -> Tensor | None:
    """Positions (1, patches, C) of a square of patches, behind that of a class token if there is one."""
    if weight.dim() != 3 or expected.dim() != 3:
        return None
    has_class, size = _grid_of(weight.shape[1])
    wants_class, new_size = _grid_of(expected.shape[1])
    if not size or not new_size:
        return None
    maps = weight[:, int(has_class) :].float().unflatten(1, (size, size)).permute(0, 3, 1, 2)
    patches = _bicubic(maps, new_size).flatten(2).transpose(1, 2)
    if not wants_class:
        return patches
    # Without one in the file, that of the model stays.
    class_token = weight[:, :1].float() if has_class else expected[:, :1].to(patches)
    return torch.cat([class_token, patches], dim=1)


def _resize_table(weight: Tensor, expected: Tensor) -> Tensor | None:
    """Biases ((2s - 1)^2, heads) of the distances in windows of side s."""
    if weight.dim() != 2 or expected.dim() != 2:
        return None
    size, new_size = math.isqrt(weight.shape[0]), math.isqrt(expected.shape[0])
    if size**2 != weight.shape[0] or new_size**2 != expected.shape[0]:
        return None
    maps = weight.float().unflatten(0, (size, size)).permute(2, 0, 1)[None]
    return _bicubic(maps, new_size)[0].flatten(1).T


def _resize_distances(weight: Tensor, expected: Tensor) -> Tensor | None:
    """Embeddings (2s - 1, C) of the distances along one side s of a map."""
    if weight.dim() != 2 or expected.dim() != 2:
        return None
    return F.interpolate(weight.float().T[None], size=expected.shape[0], mode="linear")[0].T


_RESIZE = {
    "pos_embed": _resize_grid,
    "relative_position_bias_table": _resize_table,
    "rel_pos_h": _resize_distances,
    "rel_pos_w": _resize_distances,
}


def _bicubic(maps: Tensor, size: int) -> Tensor:
    if maps.shape[-1] == size:
        return maps
    return F.interpolate(maps, size=(size, size), mode="bicubic", align_corners=False)


def _grid_of(num_positions: int) -> tuple[bool, int]:
    """Whether there is a class token, and the side of the square that the others are; 0 if they are none."""
    for has_class in (False, True):
        size = math.isqrt(max(num_positions - has_class, 0))
        if size**2 == num_positions - has_class:
            return has_class, size
    return False, 0


def _has_prefix(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)
