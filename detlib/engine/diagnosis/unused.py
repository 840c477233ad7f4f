"""Parameters that a step did not use, which ``DistributedDataParallel`` waits for."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detlib.utils import comm
from detlib.utils.errors import ConfigRuntimeError

__all__ = ["UnusedParametersError", "check_used", "explain_unused", "is_about_unused"]

MAX_NAMES = 10


class UnusedParametersError(ConfigRuntimeError):
    """Parameters got no gradient in one of several processes."""


def check_used(model: nn.Module, iteration: int) -> None:
    """Looks for trained parameters without a gradient, after a backward pass whose gradients began as None.

    Without it the other processes would wait for these gradients: for ever, or until the next step fails.

    Raises:
        UnusedParametersError: there are some, and the model is wrapped without ``find_unused_parameters``.
    """
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters or model.static_graph:
        return
    ignored = model.parameters_to_ignore
    unused = [
        name
        for name, parameter in model.module.named_parameters()
        if parameter.grad is None and parameter.requires_grad and name not in ignored
    ]
    if unused:
        raise _error(model.module, unused, iteration)


def is_about_unused(error: BaseException) -> bool:
    """Whether it is what ``DistributedDataParallel`` raises in the step after."""
    return isinstance(error, RuntimeError) and "Expected to have finished reduction in the prior" in str(error)


def explain_unused(model: nn.Module, iteration: int, error: BaseException) -> BaseException:
    """The error with names in place of the numbers that torch gives.

    Args:
        model: wrapped in ``DistributedDataParallel``.
        iteration: in which the error came.
    """
    numbers = re.search(r"did not receive grad for rank \d+:((?: \d+)+)", str(error))
    if numbers is None or not isinstance(model, DistributedDataParallel):
        return error
    ignored = model.parameters_to_ignore
    names = [name for name, p in model.module.named_parameters() if p.requires_grad and name not in ignored]
    return _error(model.module, [names[int(number)] for number in numbers[1].split()], iteration - 1)


def _error(model: Any, unused: Sequence[str], iteration: int) -> UnusedParametersError:
    num_more = len(unused) - MAX_NAMES
    listed = ", ".join(unused[:MAX_NAMES]) + (f" and {num_more} more" if num_more > 0 else "")
    return UnusedParametersError(
        f"{len(unused)} parameters of {type(model).__name__} had no part in the loss of process {comm.get_rank()} in "
        f"iteration {iteration}, and the other processes wait for their gradients: {listed}. If the model is to leave "
        "them out in some batches, give its class the attribute has_unused_parameters = True, or wrap it with "
        "create_ddp_model(model, find_unused_parameters=True). If never, freeze or remove them. If they lack only "
        "where a batch has no objects, add 0 times their output to the loss"
    )
