"""What a model needs to go on training and its ``state_dict`` does not hold."""

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["TrainingState", "unwrap_model"]

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


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel`` or ``DataParallel``."""
    return model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model
