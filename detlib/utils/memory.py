"""How much memory there is in use, and going on when that of the GPU runs out."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["host_memory", "retry_if_cuda_oom"]

_logger = logging.getLogger(__name__)


def host_memory() -> int:
    """Bytes of memory that this process and those it started have in use, such as the workers of data loaders.

    What processes share counts once, which takes milliseconds for each gigabyte to find out. Where the system does not
    tell, it is the peak of this process alone.
    """
    try:
        return sum(map(_proportional_bytes, _with_descendants(os.getpid())))
    except OSError:  # No Linux, or one that hides it.
        import resource  # Windows has none.

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _with_descendants(pid: int) -> list[int]:
    pids = [pid]
    for parent in pids:  # Grows while it is read.
        try:
            threads = os.listdir(f"/proc/{parent}/task")
            for thread in threads:
                with open(f"/proc/{parent}/task/{thread}/children") as f:
                    pids += map(int, f.read().split())
        except OSError:
            if parent == pid:
                raise
    return pids


def _proportional_bytes(pid: int) -> int:
    """Memory of a process, of which pages that n processes share count for 1/n; 0 if it ended in the meantime."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("Pss:"))
    except (FileNotFoundError, ProcessLookupError):
        if pid == os.getpid():
            raise
        return 0


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
