"""Communication between the processes of one training run; every function also works without any."""

import functools
import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_gather",
    "create_local_process_group",
    "gather",
    "get_local_process_group",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "leave",
    "reduce_dict",
    "shared_random_seed",
    "synchronize",
]

_local_group: dist.ProcessGroup | None = None


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes over all machines; 1 when training is not distributed."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Index of this process over all machines."""
    return dist.get_rank() if _is_distributed() else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes files and logs."""
    return get_rank() == 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Group the processes of each machine, so that the `get_local_*` functions know them.

    Every process must call this once, after `torch.distributed.init_process_group`.

    Raises:
        RuntimeError: The groups exist already.
        ValueError: The processes do not divide evenly over machines.
    """
    global _local_group
    if _local_group is not None:
        raise RuntimeError("the local process group exists already; create it once per process")
    if get_world_size() % num_workers_per_machine:
        raise ValueError(f"{get_world_size()} processes cannot be split into machines of {num_workers_per_machine}")
    for machine in range(get_world_size() // num_workers_per_machine):
        first = machine * num_workers_per_machine
        # Every process has to take part in the creation of every group.
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == get_rank() // num_workers_per_machine:
            _local_group = group


def get_local_process_group() -> dist.ProcessGroup:
    """Group of the processes on this machine.

    Raises:
        RuntimeError: `create_local_process_group` was not called.
    """
    if _local_group is None:
        raise RuntimeError("no local process group; start training with detlib.engine.launch or torchrun")
    return _local_group


def get_local_rank() -> int:
    """Index of this process on its machine."""
    if not _is_distributed():
        return 0
    if _local_group is None and "LOCAL_RANK" in os.environ:  # set by torchrun
        return int(os.environ["LOCAL_RANK"])
    return dist.get_rank(group=get_local_process_group())


def get_local_size() -> int:
    """Number of processes on this machine."""
    if not _is_distributed():
        return 1
    if _local_group is None and "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return dist.get_world_size(group=get_local_process_group())


def synchronize() -> None:
    """Wait until every process has come to this line."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        # Without it NCCL guesses the device from the rank, and is wrong on a second machine.
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.lru_cache
def _cpu_group() -> dist.ProcessGroup | None:
    """Group over all processes that moves objects through main memory, where NCCL would need the GPU."""
    return dist.new_group(backend="gloo") if dist.get_backend() == dist.Backend.NCCL else dist.group.WORLD


def leave() -> None:
    """Wait for the other processes, then end the communication with them."""
    global _local_group
    synchronize()
    # A group that something still refers to when Python ends can abort the process.
    _local_group = None
    _cpu_group.cache_clear()
    dist.destroy_process_group()


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Collect one picklable object of every process, in the order of ranks, in every process."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Collect one picklable object of every process in process `dst`; the others get an empty list."""
    if get_world_size() == 1:
        return [data]
    group = group or _cpu_group()
    gathered = [None] * dist.get_world_size(group) if get_rank() == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """Draw a seed that is the same in all processes; every process has to call this."""
    return all_gather(int(np.random.randint(2**31)))[0]


@torch.no_grad()
def reduce_dict(input_dict: dict[str, Tensor], average: bool = True) -> dict[str, Tensor]:
    """Sum or average scalar tensors over processes.

    Args:
        input_dict: The same names in every process.

    Returns:
        The reduced scalars. Only those of rank 0 are meaningful.
    """
    world_size = get_world_size()
    if world_size == 1 or not input_dict:
        return input_dict
    names = sorted(input_dict)
    values = torch.stack([input_dict[name] for name in names])
    dist.reduce(values, dst=0)
    if average and is_main_process():
        values /= world_size
    return dict(zip(names, values, strict=True))
