"""What a module graph returns for a batch: the losses when training, else a dict for each image."""

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detlib.modeling.meta_arch.graph.config import suggestion
from detlib.modeling.meta_arch.graph.parts import FEATURES
from detlib.modeling.meta_arch.graph.run import GraphRun
from detlib.modeling.meta_arch.graph.wires import Node
from detlib.utils.errors import ConfigError, ConfigKeyError, ConfigRuntimeError, ConfigTypeError
from detlib.utils.events import log_scalar

__all__ = ["check_output", "losses_of", "results_of"]

_logger = logging.getLogger(__name__)


def losses_of(run: GraphRun, plan: Iterable[Node]) -> dict[str, Tensor]:
    """Entries of nodes that are losses, each times its weight; other scalars go to the event storage.

    Raises:
        ConfigTypeError: a loss is not one number.
        ConfigRuntimeError: there is none.
        ConfigError: a loss that has a weight is missing.
    """
    losses = {}
    for key, node in run.givers.items():
        value = run.data[key]
        if "loss" in key:
            losses[key] = _checked_loss(value, key, node) * _weight(key, node)
        elif isinstance(value, int | float) or (isinstance(value, Tensor) and value.dim() == 0):
            log_scalar(key, value.detach() if isinstance(value, Tensor) else float(value))
    ran, skipped = _split(run, plan)
    if not losses:
        gave = ", ".join(run.givers) or "nothing"
        names = ", ".join(node.name for node in skipped)
        task = f"; for the task {run.data.get('task')!r}, {names} did not run" if skipped else ""
        raise ConfigRuntimeError(
            f"no loss: a training needs a node that gives an entry with 'loss' in its name; nodes gave {gave}{task}"
        )
    for node in ran:
        _check_weights(node, [key for key in losses if run.givers[key] is node])
    return losses


def results_of(run: GraphRun, plan: Iterable[Node], outputs: Sequence[str]) -> list[dict[str, Any]]:
    """A dict for each image, of ``results`` or of what the nodes predict.

    Args:
        outputs: entries that predictions have; empty for all that nodes give but features and losses.

    Raises:
        ConfigKeyError: no node gives one of the outputs.
        ConfigError: an entry has not one item for each image.
    """
    num_images = len(run.data["batched_inputs"])
    if "results" in run.givers:
        return _checked_results(run.data["results"], run.givers["results"], num_images)
    keys = [key for key, node in run.givers.items() if "loss" not in key and _is_result(key, node)]
    if outputs:
        _, skipped = _split(run, plan)  # What these give is missing.
        keys = [key for key in outputs if key in run.data or not skipped]
    for key in keys:
        check_output(key, run)
        _check_length(key, run, num_images)
    return [{key: run.data[key][index] for key in keys} for index in range(num_images)]


def _split(run: GraphRun, plan: Iterable[Node]) -> tuple[list[Node], list[Node]]:
    """The nodes that run for a task, and the others."""
    ran, skipped = [], []
    for node in plan:
        (ran if node.runs(run.data.get("task")) else skipped).append(node)
    return ran, skipped


def _checked_loss(value: Any, key: str, node: Node) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ConfigTypeError(
            f"{node} gives {key!r}, which must be one number, as it is a loss; it is {_description(value)}"
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        _warn_once(f"{node}: nothing can be learned from {key!r}, as it has no gradient")
    return value.reshape(())


def _weight(key: str, node: Node) -> float:
    weights = node.config.loss_weights
    if isinstance(weights, float):
        return weights
    return weights.get(key, weights.get(key.removeprefix(f"{node.name}."), 1.0))


def _check_weights(node: Node, losses: list[str]) -> None:
    weights = node.config.loss_weights
    if not isinstance(weights, dict) or node.config.freeze:
        return
    for name in weights:
        if name not in losses and f"{node.name}.{name}" not in losses:
            hint = suggestion(name, [key.removeprefix(f"{node.name}.") for key in losses])
            raise ConfigError(f"{node} has a loss weight for {name!r}; {hint}Its losses: {', '.join(losses) or 'none'}")


def _checked_results(results: Any, node: Node, num_images: int) -> list[dict[str, Any]]:
    is_list = isinstance(results, list | tuple) and all(isinstance(result, Mapping) for result in results)
    if not is_list or len(results) != num_images:
        raise ConfigTypeError(
            f"{node} gives 'results', which must be a list with a dict for each of the {num_images} images; it is "
            f"{_description(results)}"
        )
    return list(results)


def _is_result(key: str, node: Node) -> bool:
    """Whether a prediction has an entry; not those that a module declares to be for later nodes."""
    return node.wires is None or node.config.inputs is not None or key not in node.wires.outputs


def check_output(key: str, run: GraphRun) -> None:
    """Raise a ConfigKeyError if what shall be predicted is not there."""
    if key not in run.data:
        hint, known = suggestion(key, run.givers), ", ".join(run.givers) or "nothing"
        raise ConfigKeyError(f"MODEL.MODULE_GRAPH.OUTPUTS has {key!r}, which no node gives; {hint}They give {known}")


def _check_length(key: str, run: GraphRun, num_images: int) -> None:
    value = run.data[key]
    sized = isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.dim() > 0)
    if key in FEATURES or not sized or len(value) != num_images:
        giver = f"{run.givers[key]} gives " if key in run.givers else ""
        raise ConfigError(
            f"{giver}{key!r}, which must have an item for each of the {num_images} images to be predicted, but is "
            f"{_description(value)}; list what to predict in MODEL.MODULE_GRAPH.OUTPUTS"
        )


def _description(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list | tuple) else "")


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning(message)
