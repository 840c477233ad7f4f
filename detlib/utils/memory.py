"""Going on when the GPU runs out of memory."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["retry_if_cuda_oom"]

_logger = logging.getLogger(__name__)


def retry_if_cuda_oom(func: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that, when it runs out of GPU memory, tries again with the cache freed, and then on the CPU.

    For the CPU only tensors given directly as arguments are moved, so `func` must work with inputs on any device and
    have no state. What it returns may then be on the CPU.
    """

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except torch.OutOfMemoryError:
            pass  # Retry below: while the error is handled, its traceback keeps the tensors of `func` alive.
        torch.cuda.empty_cache()
        try:
            return func(*args, **kwargs)
        except torch.OutOfMemoryError:
            _logger.warning(f"Out of GPU memory: running {getattr(func, '__qualname__', func)} on the CPU")
        return func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in kwargs.items()})

    return wrapped


def _to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
