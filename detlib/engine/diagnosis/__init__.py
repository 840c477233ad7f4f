"""What to say, and to keep, when a step of training fails."""

import logging
from typing import Any

from detlib.config import CfgNode
from detlib.engine.diagnosis.memory import TrainingMemoryError, explain_memory, is_out_of_memory
from detlib.engine.diagnosis.non_finite import (
    NonFiniteLossError,
    check_gradients,
    check_losses,
    describe_trace,
    explain_non_finite,
)
from detlib.engine.diagnosis.step import StepStart, load_step, read_step, trace_step
from detlib.engine.diagnosis.unused import UnusedParametersError, check_used, explain_unused, is_about_unused
from detlib.utils.errors import NonFiniteError

__all__ = [
    "NonFiniteLossError",
    "StepStart",
    "TrainingMemoryError",
    "UnusedParametersError",
    "check_gradients",
    "check_losses",
    "check_used",
    "describe_trace",
    "explain",
    "load_step",
    "read_step",
    "trace_step",
]

logger = logging.getLogger(__name__)


def explain(trainer: Any, error: Exception) -> Exception:
    """The error to raise in place of one that ended a training: it says what is known about its cause.

    Args:
        trainer: a SimpleTrainer, or what holds one as ``_trainer``; of others, the error is returned as it is.
    """
    cfg = getattr(trainer, "cfg", None)
    cfg = cfg if isinstance(cfg, CfgNode) else None
    trainer = getattr(trainer, "_trainer", trainer)
    if not isinstance(getattr(trainer, "step_start", None), StepStart):
        return error
    try:
        if isinstance(error, NonFiniteError):
            return explain_non_finite(trainer, cfg, error)
        if is_out_of_memory(error):
            return explain_memory(trainer, cfg, error)
        if is_about_unused(error):
            return explain_unused(trainer.model, trainer.iter, error)
        if hasattr(trainer.data_loader, "explain"):
            return trainer.data_loader.explain(error)
    except Exception:  # What ended the training counts more than this.
        logger.exception("The error could not be explained.")
    return error
