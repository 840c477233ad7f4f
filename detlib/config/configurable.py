"""`@configurable`: build from a config or from explicit arguments."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from yacs.config import CfgNode as _CfgNode

__all__ = ["configurable"]


def configurable(
    init_func: Callable[..., None] | None = None, *, from_config: Callable[..., dict[str, Any]] | None = None
) -> Callable[..., Any]:
    """Let a constructor or a function be called with a config in place of its arguments.

    `from_config(cfg, ...)` turns the config into keyword arguments; those given beside the config override them::

        class Head(nn.Module):
            @configurable
            def __init__(self, *, num_classes: int): ...

            @classmethod
            def from_config(cls, cfg):
                return {"num_classes": cfg.MODEL.RETINANET.NUM_CLASSES}

        Head(num_classes=3), Head(cfg), Head(cfg, num_classes=3)

        @configurable(from_config=lambda cfg, model: {"model": model, "lr": cfg.SOLVER.BASE_LR})
        def build(model, lr): ...

        build(model, 0.1), build(cfg, model), build(cfg, model, lr=0.1)

    Args:
        init_func: The constructor, when the decorator is used without arguments; its class has the class method
            `from_config`.
        from_config: Used with a function.

    Raises:
        TypeError: The decorator is misused, or the config gives an argument that the callable does not take.
    """
    if init_func is not None:
        if from_config is not None or not inspect.isfunction(init_func) or init_func.__name__ != "__init__":
            raise TypeError("use @configurable on __init__, or @configurable(from_config=...) on a function")
        return _configurable_init(init_func)
    if not callable(from_config):
        raise TypeError(f"configurable(from_config=...) needs a function, got {from_config!r}")
    return functools.partial(_configurable_function, from_config=from_config)


def _configurable_init(init_func: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init_func)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        from_config = getattr(type(self), "from_config", None)
        if not inspect.ismethod(from_config):
            raise TypeError(f"{owner} is @configurable and needs a class method from_config(cls, cfg, ...)")
        if _is_called_with_cfg(args, kwargs):
            args, kwargs = (), _arguments_from_config(from_config, init_func, owner, args, kwargs)
        init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(function: Callable[..., Any], from_config: Callable[..., dict[str, Any]]) -> Any:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _is_called_with_cfg(args, kwargs):
            args, kwargs = (), _arguments_from_config(from_config, function, function.__qualname__, args, kwargs)
        return function(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _is_called_with_cfg(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return isinstance(args[0] if args else kwargs.get("cfg"), _CfgNode)


def _arguments_from_config(
    from_config: Callable[..., dict[str, Any]],
    target: Callable[..., Any],
    owner: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Call `from_config` with what it takes; what it does not take overrides its result."""
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"the first argument of {owner}.from_config must be named cfg, got {list(parameters)}")
    if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        taken, overrides = kwargs, {}
    else:
        taken = {name: value for name, value in kwargs.items() if name in parameters}
        overrides = {name: value for name, value in kwargs.items() if name not in parameters}
    arguments = {**from_config(*args, **taken), **overrides}
    _check_arguments(arguments, target, owner)
    return arguments


def _check_arguments(arguments: dict[str, Any], target: Callable[..., Any], owner: str) -> None:
    parameters = inspect.signature(target).parameters
    if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = sorted(name for name in arguments if name not in parameters)
    if unknown:
        takes = ", ".join(name for name in parameters if name != "self")
        raise TypeError(f"{owner} got arguments from its config that it does not take: {unknown}; it takes {takes}")
