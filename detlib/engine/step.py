"""What the config says about a step of the optimizer: its parts, its precision, and what models make of that."""

import contextlib
import difflib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from detlib.config import CfgNode
from detlib.engine.training_state import unwrap_model
from detlib.utils.errors import ConfigError

__all__ = ["amp_precision", "check_parts", "step_options", "without_gradient_sync"]

logger = logging.getLogger(__name__)

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def step_options(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """The arguments of SimpleTrainer, or AMPTrainer if SOLVER.AMP.ENABLED, that say how a step is done.

    Warns of models that compare the images of a batch, as the parts of a batch are batches to them.
    """
    steps = cfg.SOLVER.ACCUMULATION_STEPS
    if steps < 1:
        raise ConfigError(f"SOLVER.ACCUMULATION_STEPS is {steps}; a step has at least 1 part")
    if steps > 1 and getattr(unwrap_model(model), "compares_samples", False):
        logger.warning(
            "%s compares the images of a batch with each other. With SOLVER.ACCUMULATION_STEPS %d it compares only the "
            "%d of a part, which is another loss than that of all %d: more processes, or MODEL.ACTIVATION_CHECKPOINT, "
            "save memory without that.",
            type(unwrap_model(model)).__name__,
            steps,
            cfg.SOLVER.IMS_PER_BATCH // steps,
            cfg.SOLVER.IMS_PER_BATCH,
        )
    precision = amp_precision(cfg)
    return {"accumulation_steps": steps, **({"precision": precision} if cfg.SOLVER.AMP.ENABLED else {})}


def amp_precision(cfg: CfgNode) -> torch.dtype:
    """The type of numbers that SOLVER.AMP.PRECISION names."""
    name = cfg.SOLVER.AMP.PRECISION
    if name not in PRECISIONS:
        alias = {"half": "float16", "fp16": "float16", "bf16": "bfloat16"}.get(str(name).lower())
        close = [alias] if alias else difflib.get_close_matches(str(name).lower(), PRECISIONS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"SOLVER.AMP.PRECISION is {name!r}; {hint}It must be one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


@contextlib.contextmanager
def without_gradient_sync(model: nn.Module) -> Iterator[None]:
    """Forward and backward passes in this block leave gradients to each process, to be summed up later.

    ``DistributedDataParallel`` and FSDP2 have different words for it; a model of one process has none.
    """
    if hasattr(model, "no_sync"):
        with model.no_sync():
            yield
    elif hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield


def check_parts(trainer: Any, steps: int) -> None:
    """After a step, refuses a ``run_step`` that does not take the parts of a batch: its batches would be too small.

    Args:
        trainer: whose step it was; it may be of a class of the user.
        steps: SOLVER.ACCUMULATION_STEPS.
    """
    if steps > 1 and len(getattr(trainer, "step_batches", ())) != steps:
        raise ConfigError(
            f"SOLVER.ACCUMULATION_STEPS is {steps}, but a step of this training did not take {steps} parts: it has a "
            "run_step of its own, or a trainer that was built without accumulation_steps. Set it to 1, or let that "
            "run_step call the one of SimpleTrainer or AMPTrainer"
        )
