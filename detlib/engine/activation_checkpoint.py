"""Modules that compute their activations again in the backward pass, in place of keeping them."""

import contextlib
import difflib
import functools
import logging
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detlib.utils.errors import ConfigError

__all__ = ["checkpoint_activations"]

logger = logging.getLogger(__name__)

KEY = "MODEL.ACTIVATION_CHECKPOINT"


def checkpoint_activations(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Lets modules keep only their input (Chen et al., arXiv:1604.06174), which saves memory and costs time.

    Names of parameters and buffers stay. Random numbers are those of the forward pass, and running statistics are not
    updated a second time.

    Args:
        patterns: of names of modules, in which ``*`` stands for a part between dots or in it, as
            ``backbone.bottom_up.res*.*``. Of a module and another inside it, the outer one is taken.

    Returns:
        the names of the modules.

    Raises:
        ConfigError: a pattern matches no module that computes something.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    names = [name for pattern in patterns for name in _matching(pattern, modules)]
    names = [name for name in modules if name in names and not any(name.startswith(f"{outer}.") for outer in names)]
    for name in names:
        # Unlike a closure, copies of the model take it with them.
        modules[name].forward = functools.partial(_forward, modules[name])
    if names:
        logger.info("%d modules compute their activations again in the backward pass: %s", len(names), ", ".join(names))
    return names


def _matching(pattern: str, modules: dict[str, nn.Module]) -> list[str]:
    if not isinstance(pattern, str):
        raise ConfigError(f"{KEY} has {pattern!r}; it must be a list of names of modules, as 'backbone.*'")
    parts = pattern.split(".")
    names = [
        name for name in modules if name.count(".") == len(parts) - 1 and all(map(fnmatchcase, name.split("."), parts))
    ]
    if not names:
        close = difflib.get_close_matches(pattern.replace("*", ""), modules, n=3, cutoff=0.4)
        hint = f"close names are {', '.join(close)}" if close else "its parts are " + ", ".join(_first_parts(modules))
        raise ConfigError(f"{KEY}: no module of the model matches {pattern!r}; {hint}. A * does not go over dots")
    for name in names:
        if type(modules[name]).forward is nn.Module.forward:
            raise ConfigError(
                f"{KEY}: {name!r}, which {pattern!r} matches, is a {type(modules[name]).__name__}: it only holds other "
                f"modules; write {name + '.*'!r}"
            )
    return names


def _first_parts(modules: dict[str, nn.Module]) -> list[str]:
    return [name for name in modules if "." not in name]


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """In place of the forward of a module."""
    forward = functools.partial(type(module).forward, module)
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    buffers = _buffers_as_now(module)
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _with_buffers(buffers)),
        # To the end, so that what counts its calls, as a CycleBatchNormList, ends where it was.
        early_stop=False,
        **kwargs,
    )


def _buffers_as_now(module: nn.Module) -> list[tuple[nn.Module, dict[str, Tensor | None]]]:
    return [
        (part, {name: None if buffer is None else buffer.detach().clone() for name, buffer in part._buffers.items()})
        for part in module.modules()
        if part._buffers
    ]


@contextlib.contextmanager
def _with_buffers(buffers: list[tuple[nn.Module, dict[str, Tensor | None]]]) -> Iterator[None]:
    """Computes again with the buffers that were there the first time; those of now come back untouched."""
    now = [dict(part._buffers) for part, _ in buffers]
    for part, before in buffers:
        part._buffers.update(before)
    try:
        yield
    finally:
        for (part, _), own in zip(buffers, now, strict=True):
            part._buffers.update(own)
