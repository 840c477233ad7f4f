"""Losses and gradients that are not finite: noticed, traced to a module, and kept in a file."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from detlib.config import CfgNode
from detlib.engine.diagnosis.learning_rate import rate_advice
from detlib.engine.diagnosis.step import StepStart, samples_of, trace_step, write_step
from detlib.engine.diagnosis.trace import Trace, non_finite_names, tensors_in
from detlib.engine.training_state import unwrap_model
from detlib.utils import comm
from detlib.utils.errors import CheckpointError, NonFiniteError

__all__ = ["NonFiniteLossError", "check_gradients", "check_losses", "describe_trace", "explain_non_finite"]

logger = logging.getLogger(__name__)

FOLDER = "faults"  # in OUTPUT_DIR
MAX_NAMES = 64  # of files, in a message


class NonFiniteLossError(NonFiniteError):
    """A loss, or a gradient, became NaN or infinite.

    Attributes:
        iteration: in which; None if it is not known.
        ranks: the processes in which, as all processes know; None if the others do not know of the error.
    """

    def __init__(self, message: str, iteration: int | None = None, ranks: Sequence[int] | None = None) -> None:
        super().__init__(message)
        self.iteration = iteration
        self.ranks = ranks


ADVICE = (
    "Most often SOLVER.BASE_LR is too high for SOLVER.IMS_PER_BATCH (scale both alike), the warm-up is too short, or "
    "boxes in the data have no area"
)


def check_losses(losses_of_ranks: Sequence[Mapping[str, float]], means: Mapping[str, float], iteration: int) -> None:
    """To be called in all processes.

    Args:
        losses_of_ranks: of each process.
        means: over all processes.

    Raises:
        NonFiniteLossError: the sum is not finite in one of them.
    """
    if math.isfinite(sum(means.values())):
        return
    ranks = [rank for rank, losses in enumerate(losses_of_ranks) if not math.isfinite(sum(losses.values()))]
    raise NonFiniteLossError(
        f"the loss is not finite in iteration {iteration}: {_terms(means)}. {ADVICE}", iteration, ranks
    )


def check_gradients(model: nn.Module, iteration: int) -> None:
    """Looks at the gradients before the optimizer makes weights of them; to be called in all processes.

    Raises:
        NonFiniteLossError: one is not finite.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None and not p.grad.is_sparse and p.grad.numel()]
    is_sharded = any(isinstance(gradient, DTensor) for gradient in gradients)
    gradients = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    is_finite = _all_finite([gradient for gradient in gradients if gradient.numel()])
    if is_sharded:  # Otherwise all processes have the same gradients.
        is_finite = all(comm.all_gather(is_finite))
    if not is_finite:
        raise NonFiniteLossError(
            f"a gradient is not finite in iteration {iteration}, though the loss is. {ADVICE}; roots and norms have no "
            "finite gradient at 0",
            iteration,
            (),
        )


def explain_non_finite(trainer: Any, cfg: CfgNode | None, error: NonFiniteError) -> NonFiniteError:
    """The error with all that can be found out about it; a file in ``OUTPUT_DIR/faults`` holds the step.

    Args:
        trainer: a SimpleTrainer.
        error: if all processes raised it, all have to call this.
    """
    start: StepStart = trainer.step_start
    iteration, ranks = getattr(error, "iteration", None), getattr(error, "ranks", None)
    if iteration is None:
        iteration = trainer.iter
    summary = str(error).split(f". {ADVICE}")[0]
    if start.iteration == iteration and not start.weights_moved:
        found = _look_into_step(trainer, cfg, ranks, summary)
    elif iteration in (start.iteration, start.previous[0]):
        samples = start.samples if iteration == start.iteration else start.previous[1]
        found = [
            f"Batch: {_listed(samples)}",
            "The weights have changed since, so that the step cannot be made again; train without async_write_metrics "
            "to learn more",
        ]
    else:  # The trainer has a run_step of its own.
        return error
    lines = [summary if ranks is not None else f"iteration {iteration}: {summary}", *found]
    lines.append(rate_advice(cfg, trainer.optimizer) if cfg is not None else ADVICE)
    return NonFiniteLossError(".\n".join(lines), iteration, ranks)


def describe_trace(model: nn.Module, found: Trace) -> list[str]:
    """What a trace found, in sentences."""
    if found.forward_fault:
        return [f"First module whose output is not finite: {found.forward_fault}"]
    if found.error:
        return [f"Made again, the step fails: {found.error}"]
    lines = []
    if found.backward_fault:
        lines.append(
            "All outputs are finite. On the way back, the first gradient that is not finite is that with respect to "
            f"{found.backward_fault}"
        )
    if found.gradients:
        num_trained = sum(p.requires_grad for p in model.parameters())
        lines.append(f"Gradients not finite: {_counted(found.gradients, num_trained)}")
    return lines


def _look_into_step(trainer: Any, cfg: CfgNode | None, ranks: Sequence[int] | None, summary: str) -> list[str]:
    """What is found in this process and, if they take part, in the others."""
    try:
        is_faulty, lines = _examine(trainer, cfg, ranks, summary)
    except Exception as failure:  # The error that is explained must not get lost.
        logger.exception("The step could not be looked into.")
        is_faulty, lines = True, [f"More could not be found out: {type(failure).__name__}: {failure}"]
    if ranks is None or comm.get_world_size() == 1:
        return lines
    reports = enumerate(comm.all_gather(lines if is_faulty else []))
    found = [f"Process {rank}: {line}" for rank, lines in reports for line in lines]
    return found or ["Made again, the step is finite in all processes"]


def _examine(trainer: Any, cfg: CfgNode | None, ranks: Sequence[int] | None, summary: str) -> tuple[bool, list[str]]:
    """Whether this process has the fault, and what is found about it."""
    start, model = trainer.step_start, unwrap_model(trainer.model)
    moved = start.restore()
    lines = _look_at_start(start, model)
    found = Trace()
    # If the others do not take part, layers that wait for them would wait for ever.
    is_traced = ranks is not None or comm.get_world_size() == 1
    if is_traced:
        is_backward = ranks is not None and not ranks  # Of losses that are not finite, gradients tell no more.
        found = trace_step(model, start.parts, trainer.accumulation_steps, _precision(trainer), backward=is_backward)
        if is_backward and found.losses:
            lines.append(f"Losses: {_terms(found.losses)}")
        lines += describe_trace(model, found)
        if not found.is_faulty:
            terms = _terms(found.losses)
            lines.append(f"Made again, the step is finite ({terms}): it depends on more than its start")
    is_faulty = found.is_faulty or not is_traced or comm.get_rank() in ranks
    lines.append(f"Batch: {_listed(start.samples)}")
    if is_faulty:
        start.restore()
        lines.append(_write(trainer, cfg, summary, moved))
    return is_faulty, lines


def _look_at_start(start: StepStart, model: nn.Module) -> list[str]:
    lines = []
    parameters = dict(model.named_parameters())
    if bad := non_finite_names(parameters):
        lines.append(
            f"Weights not finite already before this step: {_counted(bad, len(parameters))}. The fault is in an "
            "earlier step, or in MODEL.WEIGHTS"
        )
    for batch, _ in start.parts:
        names = samples_of(batch)
        for i, sample in enumerate(batch if names else ()):
            if bad := non_finite_names(dict(tensors_in(sample))):
                lines.append(f"Not finite in the data: {', '.join(bad)} of {names[i]}")
    return lines


def _write(trainer: Any, cfg: CfgNode | None, summary: str, moved: list[str]) -> str:
    """Writes the step and says where it is, or why it is nowhere."""
    start, model = trainer.step_start, unwrap_model(trainer.model)
    if cfg is None or not cfg.OUTPUT_DIR:
        return "There is no OUTPUT_DIR to write the step to"
    if any(isinstance(p, DTensor) for p in model.parameters()):
        return "The step is not written, as no process has the whole model"
    rank = f"_rank{comm.get_rank()}" if comm.get_world_size() > 1 else ""
    path = os.path.join(cfg.OUTPUT_DIR, FOLDER, f"iteration_{start.iteration:07d}{rank}.pth")
    more = {
        "error": summary,
        "iteration": start.iteration,
        "num_parts": trainer.accumulation_steps,
        "precision": _precision(trainer),
        "not_restored": moved,
    }
    try:
        write_step(path, start.parts, model, cfg, more)
    except CheckpointError as error:
        return f"The step is not written: {error}"
    caution = f" (from the changed values of {_counted(moved)})" if moved else ""
    return f"To make this step again{caution}: python tools/replay_step.py {path}"


def _precision(trainer: Any) -> str:
    precision = getattr(trainer, "precision", None)  # of AMPTrainer
    return "" if precision is None else str(precision).removeprefix("torch.")


@torch.no_grad()
def _all_finite(tensors: list[Tensor]) -> bool:
    """Whether all are, with one wait for the device."""
    if not tensors:
        return True
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(tensors)])
    # Squares of large numbers may be infinite where these are not; to look at each number takes ten times as long.
    return bool(norms.isfinite().all()) or all(bool(tensor.isfinite().all()) for tensor in tensors)


def _terms(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in losses.items())


def _counted(names: Sequence[str], total: int | None = None) -> str:
    of_all = f"{len(names)} of {total}, " if total else ""
    return f"{of_all}{', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _listed(samples: Sequence[str]) -> str:
    more = f" and {len(samples) - MAX_NAMES} more" if len(samples) > MAX_NAMES else ""
    return (", ".join(samples[:MAX_NAMES]) + more) or "samples without names"
