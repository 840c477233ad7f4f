"""Parts by name: a node `{NAME: X, ...}` of the config names an object in a registry, its other keys are arguments."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from detlib.config.values import plain
from detlib.utils.errors import ConfigError, ConfigTypeError, UnknownNameError
from detlib.utils.registry import Registry

__all__ = ["build_component", "fit_arguments", "takes"]


def build_component(registry: Registry, node: Any, **defaults: Any) -> Any:
    """Build the part that a node names, or all parts of a list of nodes.

    ``{NAME: SmoothL1Loss, BETA: 0.5, LOSS_WEIGHT: 2}`` calls ``SmoothL1Loss(beta=0.5, loss_weight=2.0)``: keys are
    arguments in upper case, and a whole number may stand for a float.

    Args:
        registry: where the name is looked up.
        node: a section or a dict; or a list of them, which builds a list. What is neither was built already and comes
            back as it is.
        defaults: what the caller knows, such as ``in_channels``: given to what takes it, unless the node has it too.

    Raises:
        UnknownNameError: the registry has no such name.
        ConfigTypeError: what it names takes no such argument, or not such a value, or needs one that neither the node
            nor the caller gives.
        ConfigError: the node has no NAME, or is a name alone.
    """
    if isinstance(node, list | tuple):
        return [build_component(registry, part, **defaults) for part in node]
    where = getattr(node, "__dict__", {}).get("_section") or f"a part of the registry {registry._name}"
    if isinstance(node, str | int | float | None):
        name = node if isinstance(node, str) else "X"
        raise ConfigError(f"{where} must be a node, as {{NAME: {name}}}; got {node!r}")
    if not isinstance(node, Mapping):
        return node
    if not node.get("NAME"):
        raise ConfigError(f"{where} needs a NAME; it has {', '.join(map(str, node)) or 'nothing'}")
    try:
        target = registry.get(node["NAME"])
    except UnknownNameError as error:
        raise UnknownNameError(f"{where}: {error}") from None
    arguments = {str(key).lower(): plain(value) for key, value in node.items() if key != "NAME"}
    if len(arguments) < len(node) - 1:
        raise ConfigError(f"{where} has a key twice, in capitals and in small letters: {', '.join(map(str, node))}")
    try:
        arguments = fit_arguments(target, arguments, defaults)
    except ConfigTypeError as error:
        advice = " If a base config has set the key for another NAME, add _DELETE_: true to the node."
        raise ConfigTypeError(f"{where}: {node['NAME']} {error}{advice if 'takes no' in str(error) else ''}") from None
    return target(**arguments)


def fit_arguments(
    target: Callable[..., Any],
    arguments: Mapping[str, Any],
    offers: Mapping[str, Any],
    spell: Callable[[str], str] = str.upper,
) -> dict[str, Any]:
    """The arguments of a call: those given, those of the offers that it takes, and a float where a whole number stands.

    Args:
        spell: from the name of an argument to how it is written in the config, for errors.

    Raises:
        ConfigTypeError: what is called takes no such argument, or not such a value, or needs one that is missing. The
            message goes on from the name of what is called.
    """
    parameters, takes_any = _parameters(target)
    offered = {name: value for name, value in offers.items() if name in parameters and name not in arguments}
    problem = (
        _unknown(arguments, parameters, takes_any, spell)
        or _missing({**offered, **arguments}, inspect.signature(target).parameters, spell)
        or _unfit(arguments, parameters, spell)
    )
    if problem:
        raise ConfigTypeError(problem)
    return {**offered, **{name: _as_float(value, parameters.get(name)) for name, value in arguments.items()}}


def takes(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a call by name."""
    return _parameters(target)[0]


def _parameters(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters by name, and whether any further name is taken.

    A constructor with `**kwargs` hands them to the next class in line, so the parameters of that one count as well.
    """
    found: dict[str, inspect.Parameter] = {}
    for function in _constructors(target) if inspect.isclass(target) else [target]:
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and parameter.name != "self":
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            return found, False
    return found, True


def _constructors(cls: type) -> list[Callable[..., Any]]:
    return [base.__init__ for base in cls.__mro__ if "__init__" in vars(base) and base is not object]


def _unknown(
    arguments: Mapping[str, Any], parameters: Mapping[str, Any], takes_any: bool, spell: Callable[[str], str]
) -> str:
    unknown = [name for name in arguments if name not in parameters]
    if not unknown or takes_any:
        return ""
    close = difflib.get_close_matches(unknown[0], parameters, n=1)
    hint = f"did you mean {spell(close[0])}? It" if close else "it"
    known = ", ".join(map(spell, parameters)) or "nothing"
    return f"takes no {', '.join(map(spell, unknown))}; {hint} takes {known}."


def _missing(
    arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], spell: Callable[[str], str]
) -> str:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [name for name, p in parameters.items() if p.default is p.empty and p.kind not in variable]
    missing = [spell(name) for name in needed if name not in arguments]
    return f"needs {', '.join(missing)}, and the node does not give it" if missing else ""


def _unfit(
    arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], spell: Callable[[str], str]
) -> str:
    """Plain types are compared, as `LOSS_WEIGHT: two` would fail far from here, or never."""
    for name, value in arguments.items():
        parameter = parameters.get(name)
        expected = _plain_type(parameter)
        if expected is None and isinstance(value, str) and type(getattr(parameter, "default", None)) is float:
            expected = float if parameter.annotation is parameter.empty else None
        fits = type(value) in (expected, int if expected is float else expected)
        if expected is not None and not fits:
            return f"takes {spell(name)} as {expected.__name__}; got {value!r}"
    return ""


def _plain_type(parameter: inspect.Parameter | None) -> type | None:
    """The type that an argument is declared with, where it is a single one that YAML has."""
    declared = getattr(parameter, "annotation", None)
    types = (str, int, float, bool)
    return next((cls for cls in types if declared in (cls, cls.__name__)), None)


def _as_float(value: Any, parameter: inspect.Parameter | None) -> Any:
    is_float = parameter is not None and (type(parameter.default) is float or _plain_type(parameter) is float)
    return float(value) if is_float and type(value) is int else value
