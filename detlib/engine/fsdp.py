"""FSDP2: each process keeps a part of every weight, of its gradient and of the optimizer's state.

A block gathers its weights when its turn comes, and lets go of them after it; so a model trains that one GPU could not
hold (https://arxiv.org/abs/2304.11277). The numbers are those of ``DistributedDataParallel``.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from detlib.config import CfgNode
from detlib.utils import comm
from detlib.utils.env import select_device
from detlib.utils.errors import ConfigError

__all__ = ["blocks_of", "build_for_processes", "is_sharded", "shard_model", "shard_optimizer_state", "whole_weights"]

logger = logging.getLogger(__name__)


def build_for_processes(cfg: CfgNode, build_model: Callable[[CfgNode], nn.Module]) -> nn.Module:
    """What ``build_model(cfg)`` returns; with ``SOLVER.PARALLEL: fsdp`` and several processes, dealt out to them.

    It is then built on the CPU, as a GPU need not have the memory for all of it.
    """
    if cfg.SOLVER.PARALLEL not in ("ddp", "fsdp"):
        raise ConfigError(f"SOLVER.PARALLEL is {cfg.SOLVER.PARALLEL!r}; it must be 'ddp' or 'fsdp'")
    if cfg.SOLVER.PARALLEL == "ddp" or comm.get_world_size() == 1:
        return build_model(cfg)
    on_cpu = cfg.clone()
    on_cpu.defrost()
    on_cpu.MODEL.DEVICE = "cpu"
    return shard_model(build_model(on_cpu), select_device(cfg.MODEL.DEVICE))


def shard_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Deals the weights out, in place; to be called in all processes, and before the optimizer is made.

    Those of the main process count. ``load_state_dict`` then takes whole weights, of which each process keeps its part.
    Every process has all buffers, as its own. A module whose forward pass changes weights must say so by the attribute
    ``changes_weights_in_forward``, as that cannot be seen from outside.

    Args:
        device: for the weights.

    Raises:
        ConfigError: the model cannot be trained this way.
    """
    _refuse_what_cannot_be_sharded(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _send_weights_of_main_process(model, device)
    mesh = init_device_mesh(device.type, (comm.get_world_size(),))
    # Where processes may use different parts of the model in a step, they would wait for each other in different
    # places. Gathered all at once at its beginning, weights are gathered in the same order everywhere.
    blocks = [] if getattr(model, "has_unused_parameters", False) else blocks_of(model)
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh)
    # A head may have nothing to learn from the images of one process; its gradient then counts as 0.
    model.set_reduce_scatter_unused_params(True)
    model.register_load_state_dict_pre_hook(_take_parts_of_weights)
    logger.info("FSDP: weights are dealt out to %d processes, in %d blocks and the rest.", mesh.size(), len(blocks))
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard_model` dealt the weights out."""
    return hasattr(model, "set_reshard_after_forward")  # An FSDPModule, which older torch does not have.


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """What is repeated in a model: items of lists and sequences that have two weight matrices or more.

    Where these hold several such items themselves, the latter are meant. In ResNets, they are the residual blocks; in
    transformers, the layers.
    """
    return list(dict.fromkeys(_blocks_in(model)))


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Have all weights in every process, so that each may run the model as often as it needs, such as to evaluate it.

    All processes must call this together. Nothing happens to a model that is not sharded, or whose weights are whole.
    """
    sharded = [module for module in model.modules() if is_sharded(module)]
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        yield
        return
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
            # In training, those outside of blocks are needed again at once, for the backward pass.
            module.set_reshard_after_forward(module is not sharded[0], recurse=False)


def shard_optimizer_state(optimizer: Optimizer) -> None:
    """Let the optimizer of a sharded model load the state of one that was not: each process keeps its part of it."""
    optimizer.register_load_state_dict_post_hook(_take_parts_of_state)


def _blocks_in(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        inner = list(_blocks_in(child))
        is_item = isinstance(module, (nn.ModuleList, nn.Sequential))
        if len(inner) < 2 and is_item and sum(parameter.ndim > 1 for parameter in child.parameters()) > 1:
            yield child
        else:
            yield from inner


def _refuse_what_cannot_be_sharded(model: nn.Module) -> None:
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        FSDPModule = None
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ConfigError(f"SOLVER.PARALLEL: fsdp needs torch 2.14 or newer, but this is {torch.__version__}; use ddp")
    for name, module in model.named_modules():
        if getattr(module, "changes_weights_in_forward", False):
            raise ConfigError(
                f"SOLVER.PARALLEL: fsdp cannot train {type(model).__name__}: {name} ({type(module).__name__}) changes "
                "weights in the forward pass, and FSDP forgets such changes; use SOLVER.PARALLEL: ddp"
            )
    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise ConfigError(
            f"SOLVER.PARALLEL: fsdp cannot deal out {', '.join(scalars)}, a single number; give it the shape (1,), or "
            "use SOLVER.PARALLEL: ddp"
        )


@torch.no_grad()
def _send_weights_of_main_process(model: nn.Module, device: torch.device) -> None:
    for parameter in model.parameters():
        weight = parameter.detach().to(device)
        dist.broadcast(weight, src=0)
        parameter.copy_(weight)


def _take_parts_of_weights(model: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    for name, parameter in model.state_dict(keep_vars=True).items():
        if prefix + name in state_dict:
            state_dict[prefix + name] = _part_like(parameter, state_dict[prefix + name])


def _take_parts_of_state(optimizer: Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            state[name] = _part_like(parameter, value)


def _part_like(parameter: Tensor, value: Any) -> Any:
    """Of a whole tensor, the part that this process keeps, if it is one that belongs to a parameter dealt out."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    is_whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
    if not (is_whole and isinstance(parameter, DTensor) and value.shape == parameter.shape):
        return value
    mesh = parameter.device_mesh
    return distribute_tensor(value.detach().to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
