"""What a model needs to go on training and its ``state_dict`` does not hold.

Where the keys of a ``state_dict`` are fixed by published checkpoints, a module may keep running values, such as
RetinaNet's loss normaliser, in buffers that are not persistent. It names them in the class attribute
``training_state_buffers``, and the trainer saves them beside the optimizer.
"""

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["load_training_state", "training_state", "unwrap_model"]

logger = logging.getLogger(__name__)


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel`` or ``DataParallel``."""
    return model.module if isinstance(model, (DistributedDataParallel, DataParallel)) else model


def training_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers, by qualified name."""
    return {name: buffer.detach().clone() for name, buffer in _buffers(model)}


@torch.no_grad()
def load_training_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fills the buffers that ``state`` names. Checkpoints of other origin have none."""
    buffers = dict(_buffers(model))
    for name, value in state.items():
        if name in buffers:
            buffers[name].copy_(value)
        else:
            logger.warning("The checkpoint's training state %r has no place in the model and is left out.", name)


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in unwrap_model(model).named_modules():
        for name in getattr(module, "training_state_buffers", ()):
            yield f"{prefix}.{name}" if prefix else name, getattr(module, name)
