"""What single parameters get other than the rest: rates by the module they are in, and SOLVER.PARAM_OPTIONS."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from detlib.config.config import CfgNode
from detlib.config.origins import place_of
from detlib.utils.errors import ConfigError

__all__ = ["lr_factor_of", "param_option_groups", "read_param_options"]

KEY = "SOLVER.PARAM_OPTIONS"

_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # What DataParallel and torch.compile put before every name.


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


# Key of an entry: whether a value is what it must be, and that in words.
_SELECTORS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "PARAMS": (lambda value: isinstance(value, str) and value != "", "a regular expression"),
    "MAX_NDIM": (lambda value: type(value) is int and value >= 0, "a number of dimensions"),
}
_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "LR_FACTOR": (_is_number, "a number of at least 0"),
    "WEIGHT_DECAY": (_is_number, "a number of at least 0"),
    "MOMENTUM": (_is_number, "a number of at least 0"),
    "FIXED_LR": (lambda value: isinstance(value, bool), "true or false"),
}


def read_param_options(solver: CfgNode, model: nn.Module) -> dict[str, dict[str, Any]]:
    """What the entries of SOLVER.PARAM_OPTIONS together say about each parameter; of equal keys, the last one counts.

    Raises:
        ConfigError: an entry cannot be read, or is about no parameter at all.
    """
    parameters = dict(model.named_parameters())
    options: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(solver.PARAM_OPTIONS):
        place = f"{place_of(solver, 'PARAM_OPTIONS', index)}: {KEY}[{index}]"
        _check_entry(entry, place, solver.OPTIMIZER)
        pattern = re.compile(entry["PARAMS"])
        matched = [name for name in parameters if pattern.search(_WRAPPERS.sub("", name))]
        if not matched:
            hint = _hint(entry["PARAMS"], [_WRAPPERS.sub("", name) for name in parameters])
            raise ConfigError(f"{place}: no parameter matches PARAMS {entry['PARAMS']!r}; {hint}")
        small = [name for name in matched if parameters[name].ndim <= entry.get("MAX_NDIM", math.inf)]
        if not small:
            raise ConfigError(
                f"{place}: of the {len(matched)} parameters that match PARAMS {entry['PARAMS']!r}, such as "
                f"{matched[0]}, none has MAX_NDIM {entry['MAX_NDIM']} or fewer dimensions"
            )
        for name in small:
            options.setdefault(name, {}).update({key: entry[key] for key in entry if key in _OPTIONS})
    return options


def lr_factor_of(decay: float, model: nn.Module, options: Mapping[str, Mapping[str, Any]]) -> Callable[[str], float]:
    """Full parameter name -> factor of the learning rate: the product of all that is said about it.

    A method ``lr_factor(name, decay)`` of a module tells how deep a parameter lies; an attribute ``lr_factors`` has
    factors by prefix.

    Args:
        decay: SOLVER.LAYER_DECAY.
        options: of single parameters, as :func:`read_param_options` gives them.
    """
    # Also in wrappers, such as DistributedDataParallel, which hide the attributes of the model.
    modules = {f"{prefix}.".lstrip("."): module for prefix, module in model.named_modules()}
    graded = {prefix: m for prefix, m in modules.items() if decay != 1.0 and hasattr(m, "lr_factor")}
    fixed = {prefix + own: f for prefix, m in modules.items() for own, f in getattr(m, "lr_factors", {}).items()}
    if decay != 1.0 and not graded:
        raise ConfigError(
            f"SOLVER.LAYER_DECAY is {decay}, but no part of this model says how deep its layers lie; a ViT backbone "
            "does. Set it to 1.0, or give a module a method lr_factor(name, decay)"
        )

    def factor(name: str) -> float:
        prefix = next((prefix for prefix in graded if name.startswith(prefix)), None)
        depth = 1.0 if prefix is None else graded[prefix].lr_factor(name.removeprefix(prefix), decay)
        own = options.get(name, {}).get("LR_FACTOR", 1.0)
        return depth * own * math.prod(f for prefix, f in fixed.items() if name.startswith(prefix))

    return factor


def param_option_groups(model: nn.Module, options: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The options of single parameters but for factors of the rate, as groups to be merged over all others.

    ``fixed_lr`` of a group keeps :class:`~detlib.solver.LRMultiplier` from changing its rate.
    """
    groups = []
    for name, param in model.named_parameters():
        if param.requires_grad and name in options:
            own = {key.lower(): value for key, value in options[name].items() if key != "LR_FACTOR"}
            groups.append({"params": [param], **own})
    return groups


def _check_entry(entry: Any, place: str, optimizer: str) -> None:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{place} is {entry!r}; it must be a mapping, as {{PARAMS: '^head', LR_FACTOR: 5.0}}")
    known = _SELECTORS | _OPTIONS
    for key, value in entry.items():
        if key not in known:
            raise ConfigError(f"{place} has the unknown key {key!r}; known are {', '.join(known)}")
        is_right, expected = known[key]
        if not is_right(value):
            raise ConfigError(f"{place}: {key} is {value!r}; it must be {expected}")
    if "PARAMS" not in entry or not entry.keys() & _OPTIONS.keys():
        raise ConfigError(
            f"{place} has {', '.join(entry) or 'no keys'}; it needs PARAMS and one or more of {', '.join(_OPTIONS)}"
        )
    if optimizer == "AdamW" and "MOMENTUM" in entry:
        raise ConfigError(f"{place}: AdamW has no MOMENTUM; it is an option of SGD and LARS")
    try:
        re.compile(entry["PARAMS"])
    except re.error as error:
        raise ConfigError(f"{place}: PARAMS {entry['PARAMS']!r} is no regular expression: {error}") from None


def _hint(pattern: str, names: Sequence[str]) -> str:
    """Parameters and modules with names close to a pattern; if there are none, how names start."""
    prefixes = {name.rsplit(".", end)[0] for name in names for end in range(1, name.count(".") + 1)}
    words = re.sub(r"\\.|[^\w.]+", ".", pattern).strip(".")
    close = difflib.get_close_matches(words, sorted({*names, *prefixes}), n=3)
    if close:
        return f"close names are {', '.join(close)}"
    return f"names start with {', '.join(dict.fromkeys(name.split('.')[0] for name in names))}"
