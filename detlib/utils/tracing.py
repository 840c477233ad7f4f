"""Is ``torch.fx`` tracing? And checks that it can trace."""

import torch
from torch.fx import _symbolic_trace

__all__ = [
    "assert_fx_safe",
    "is_fx_tracing",
    "is_fx_tracing_legacy",
    "tracing_current_exists",
    "tracing_legacy_exists",
]

tracing_current_exists = hasattr(_symbolic_trace, "is_fx_tracing")
"""Whether this version of torch says itself that it is tracing."""

tracing_legacy_exists = hasattr(_symbolic_trace, "_orig_module_call")
"""Whether it can be told from the way in which modules are called."""


def is_fx_tracing_legacy() -> bool:
    """Whether calls of modules are intercepted, as they are by ``torch.fx`` only while it traces."""
    return tracing_legacy_exists and torch.nn.Module.__call__ is not _symbolic_trace._orig_module_call


def is_fx_tracing() -> bool:
    """Whether ``torch.fx`` is tracing now."""
    return bool(_symbolic_trace.is_fx_tracing()) if tracing_current_exists else is_fx_tracing_legacy()


def assert_fx_safe(condition: bool, message: str) -> torch.Tensor:
    """``assert condition, message``, where the condition may be of values that are being traced.

    Those are not known yet; the check becomes a part of the graph and is made whenever that runs.

    Returns:
        a tensor, of no meaning, as traced functions must return one.
    """
    torch._assert(condition, message)
    return torch.ones(1)
