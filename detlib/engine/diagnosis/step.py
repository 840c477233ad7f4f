"""A step of training that can be made again: what it started from, kept in memory and written to a file."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detlib.checkpoint.files import read_checkpoint, write_atomically
from detlib.config import CfgNode
from detlib.engine.diagnosis.plain import from_plain, to_plain
from detlib.engine.diagnosis.trace import Trace, trace
from detlib.engine.training_state import TrainingState
from detlib.utils.accumulation import part_of_step
from detlib.utils.env import get_random_states, set_random_states
from detlib.utils.errors import CheckpointError
from detlib.utils.file_io import PathManager

__all__ = ["Part", "StepStart", "load_step", "read_step", "samples_of", "trace_step", "write_step"]

# Larger tensors that the forward pass changes, such as queues of features, are not copied before each step.
MAX_COPIED = 2**20

# The batch of a part of a step (SOLVER.ACCUMULATION_STEPS), and the random states before its forward pass.
Part = tuple[Any, dict[str, Any]]


class StepStart:
    """What the step that runs now started from. Keeping it neither waits for the device nor takes time to speak of.

    Weights change at the end of a step only. Of what changes in the forward pass, buffers and weights that are not
    trained, those are copied that the step before changed too, up to a million numbers each. Statistics of batch norm
    are not, as they count for nothing in training.

    Attributes:
        iteration: that of the step, or -1 before the first.
        parts: as far as the step has come.
        previous: iteration and samples of the step before.
    """

    def __init__(self) -> None:
        self.iteration = -1
        self.parts: list[Part] = []
        self.previous: tuple[int, list[str]] = (-1, [])
        self._model: nn.Module | None = None
        self._places: list[tuple[str, dict[str, Any], str]] = []
        self._versions: dict[str, tuple[int, int]] = {}
        self._copies: dict[str, Tensor] = {}
        self._weights: list[tuple[Tensor, int]] = []

    def take(self, model: nn.Module, iteration: int, batch: Any, is_first: bool = True) -> None:
        """To be called before each forward pass.

        Args:
            model: not wrapped for several processes.
            is_first: whether the batch is the first part of a step.
        """
        if is_first or self.iteration != iteration:
            self.previous = (self.iteration, self.samples)
            self._take_model(model)
            self.iteration, self.parts = iteration, []
        self.parts.append((batch, get_random_states()))

    @property
    def samples(self) -> list[str]:
        return [name for batch, _ in self.parts for name in samples_of(batch)]

    @property
    def weights_moved(self) -> bool:
        """Whether the optimizer has changed the weights since."""
        return any(weight._version != version for weight, version in self._weights)

    @torch.no_grad()
    def restore(self) -> list[str]:
        """Puts back what was copied, and returns the names of tensors that have changed and were not."""
        moved = [name for name, version in self._current_versions().items() if version != self._versions.get(name)]
        for name, values, key in self._places:
            if name in self._copies:
                values[key].copy_(self._copies[name])
        return [name for name in moved if name not in self._copies]

    def _take_model(self, model: nn.Module) -> None:
        if self._model is not model:
            self._model, self._places, self._versions = model, list(_places_of_state(model)), {}
        before, self._versions = self._versions, self._current_versions()
        self._copies = {
            name: values[key].detach().clone()
            for name, values, key in self._places
            if name in self._versions and before.get(name) != self._versions[name] and values[key].numel() <= MAX_COPIED
        }
        self._weights = [(weight, weight._version) for weight in model.parameters() if weight.requires_grad]

    def _current_versions(self) -> dict[str, tuple[int, int]]:
        # A tensor counts its changes in place; one that was replaced is another object.
        return {
            name: (id(values[key]), values[key]._version)
            for name, values, key in self._places
            if isinstance(values.get(key), Tensor)
        }


def _places_of_state(model: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """What a forward pass may change: name, the module's dict that holds it, and the key in that."""
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        if not isinstance(module, _BatchNorm):
            yield from ((start + key, module._buffers, key) for key in module._buffers)
        for key, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad:
                yield start + key, module._parameters, key


def trace_step(model: nn.Module, parts: list[Part], num_parts: int, precision: str, *, backward: bool = False) -> Trace:
    """Makes a step again, without the optimizer, up to the first part that is not finite.

    Args:
        model: in the state of the start.
        num_parts: of the whole step; it may have failed before the last one.
        precision: of autocast, such as "float16"; "" for none.
        backward: look at gradients, too.
    """
    device = next(model.parameters()).device
    dtype = getattr(torch, precision) if precision else None
    mixed = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    total = Trace()
    for index, (batch, random_states) in enumerate(parts):
        set_random_states(random_states)

        def compute_losses(batch: Any = batch) -> Mapping[str, Tensor]:
            with mixed:
                losses = model(batch)
            losses = {"total_loss": losses} if isinstance(losses, Tensor) else losses
            return {name: loss / num_parts for name, loss in losses.items()}

        with part_of_step(index, num_parts):
            found = trace(model, compute_losses, backward=backward)
        for name, loss in total.losses.items():
            found.losses[name] = found.losses.get(name, 0.0) + loss
        total = found
        if total.is_faulty:
            break
    return total


def write_step(path: str, parts: list[Part], model: nn.Module, cfg: CfgNode, more: Mapping[str, Any]) -> None:
    """Writes what :func:`load_step` needs, for a model that is in the state of the step's start.

    The optimizer's state is not in it: the step fails before it comes to the optimizer.

    Args:
        more: further plain values.
    """
    weights = model.state_dict()
    content = {
        "model": weights,
        "buffers": {name: buffer for name, buffer in model.named_buffers() if name not in weights},
        "training_state": TrainingState(model).state_dict(),
        "parts": [(to_plain(batch), random_states) for batch, random_states in parts],
        "config": cfg.dump(),
        **more,
    }
    write_atomically(PathManager, path, lambda file: torch.save(content, file))


def read_step(path: str) -> dict[str, Any]:
    """Reads a file of :func:`write_step`; no code in it is run.

    Raises:
        CheckpointError: it is another kind of file, or damaged.
    """
    step = read_checkpoint(path)
    missing = [key for key in ("model", "buffers", "training_state", "parts", "config") if key not in step]
    if missing:
        raise CheckpointError(f"{path} holds no step of training: it lacks {', '.join(missing)}")
    return step


@torch.no_grad()
def load_step(model: nn.Module, step: Mapping[str, Any]) -> list[Part]:
    """Brings a model to the start of the step, and returns what the step was made with.

    Args:
        step: of :func:`read_step`.

    Raises:
        CheckpointError: batches had objects that no file holds.
    """
    model.load_state_dict(step["model"])
    buffers = dict(model.named_buffers())
    for name, value in step["buffers"].items():
        if name in buffers and buffers[name].shape == value.shape:
            buffers[name].copy_(value)
    TrainingState(model).load_state_dict(step["training_state"])
    return [(from_plain(batch), random_states) for batch, random_states in step["parts"]]


def samples_of(batch: Any) -> list[str]:
    """What names each sample of a batch: its file, or else its id or place; nothing if it is no list of dicts."""
    samples = [sample for sample in batch if isinstance(sample, Mapping)] if isinstance(batch, (list, tuple)) else []
    return [_name_of(sample) for sample in samples]


def _name_of(sample: Mapping[str, Any]) -> str:
    if sample.get("file_name"):
        return str(sample["file_name"])
    key = next((key for key in ("image_id", "sample_idx") if key in sample), None)
    return f"{key} {sample[key]}" if key else "?"
