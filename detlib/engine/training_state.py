"""What a training needs to go on and the ``state_dict`` of its model does not hold."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from detlib.utils import comm
from detlib.utils.env import get_random_states, set_random_states

__all__ = ["ProcessStates", "TrainingState", "unwrap_model"]

logger = logging.getLogger(__name__)


class TrainingState:
    """Saves and loads the buffers that modules name in their class attribute ``training_state_buffers``.

    Where the keys of a ``state_dict`` are fixed by published checkpoints, a module may keep running values, such as
    RetinaNet's loss normaliser, in buffers that are not persistent. The trainer saves them beside the optimizer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrap_model(model)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the buffers, by qualified name."""
        return {name: buffer.detach().clone() for name, buffer in self._buffers()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Fills the buffers that ``state_dict`` names; those that it lacks stay as they are."""
        buffers = dict(self._buffers())
        for name, value in state_dict.items():
            if name in buffers:
                buffers[name].copy_(value)
            else:
                logger.warning("The checkpoint's training state %r has no place in the model and is left out.", name)

    def _buffers(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self._model.named_modules():
            for name in getattr(module, "training_state_buffers", ()):
                yield f"{prefix}.{name}" if prefix else name, getattr(module, name)


class ProcessStates:
    """Saves and loads what each process of a training has for itself.

    That is where its random generators and its data loader are, and the buffers that differ: those of
    :class:`TrainingState` and running statistics of batch norm. One process writes the checkpoint, so with several of
    them, all have to call :meth:`gather` before.

    Attributes:
        model, data_loader: may be replaced.
    """

    def __init__(self, model: nn.Module, data_loader: Iterable) -> None:
        """
        Args:
            data_loader: its place is kept if it has ``state_dict`` and ``load_state_dict``.
        """
        self.model = model
        self.data_loader = data_loader
        self._gathered: list[dict[str, Any]] = []
        self._random_states: dict[str, Any] | None = None

    def gather(self) -> None:
        """Collect the states of all processes; each has to call it."""
        self._gathered = comm.gather(self._own())

    def forget_gathered(self) -> None:
        """To be called when the training goes on, after which what was gathered is out of date."""
        self._gathered = []

    def state_dict(self) -> dict[str, Any]:
        """The states of all processes if they were gathered, or that of this one."""
        return {"processes": self._gathered or [self._own()]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Bring the model's buffers and the data loader where they were; random states follow when data is loaded."""
        states, rank, world_size = state_dict["processes"], comm.get_rank(), comm.get_world_size()
        if len(states) != world_size:
            logger.warning(
                "The checkpoint has the states of %d processes, but there are %d now: the data goes on at about the "
                "place where it was, and random numbers are others",
                len(states),
                world_size,
            )
            self._load_data({**states[0]["data"], **_shared_out(states, world_size)})
            return
        own = states[rank]
        self._random_states = own["random"]
        self._load_data(own["data"])
        buffers = dict(unwrap_model(self.model).named_buffers())
        with torch.no_grad():
            for name, value in own["buffers"].items():
                if name in buffers:
                    buffers[name].copy_(value)

    def restore_random_states(self) -> None:
        """Go on with the random numbers of the checkpoint, if one was loaded; to be called before the first step."""
        if self._random_states is not None:
            set_random_states(self._random_states)
            self._random_states = None

    def _own(self) -> dict[str, Any]:
        data = self.data_loader.state_dict() if hasattr(self.data_loader, "state_dict") else {}
        buffers = self._own_buffers() if comm.get_world_size() > 1 else {}
        # Before the first step, those of a checkpoint are still to come.
        return {"random": self._random_states or get_random_states(), "data": data, "buffers": buffers}

    def _own_buffers(self) -> dict[str, Tensor]:
        model = unwrap_model(self.model)
        wanted = set(TrainingState(model).state_dict())
        for prefix, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                wanted.update(name for name, _ in module.named_buffers(prefix))
        return {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers() if name in wanted}

    def _load_data(self, state: dict[str, Any]) -> None:
        if state and hasattr(self.data_loader, "load_state_dict"):
            self.data_loader.load_state_dict(state)


def _shared_out(states: list[dict[str, Any]], world_size: int) -> dict[str, Any]:
    """The place of each process in the data when another number of them goes on: after as many samples, all in all."""
    positions = [state["data"].get("position", 0) for state in states]
    return {"position": sum(positions) // world_size, "waiting": ()} if any(positions) else {}


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel`` or ``DataParallel``."""
    return model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model
