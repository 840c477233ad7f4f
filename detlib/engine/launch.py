"""Starting one process per device, or joining those that ``torchrun`` or Slurm started."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detlib.engine.preemption_hook import SIGNALS, TrainingPreempted
from detlib.engine.slurm import SlurmTask, slurm_task
from detlib.utils import comm
from detlib.utils.errors import ConfigError, DetlibError

__all__ = ["DEFAULT_TIMEOUT", "launch"]

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: Sequence[Any] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Calls ``main_func(*args)`` in one process per GPU of this machine, or right here if one process is enough.

    Under ``torchrun``, which says so in the environment, it is called right here, as one of torchrun's processes; so it
    is where ``srun`` of Slurm started several tasks, unless the arguments ask for several processes themselves.

    SIGTERM, SIGINT and SIGUSR1 that come to this process are passed on to those that it started, so that they can save
    and end, see :class:`~detlib.engine.hooks.PreemptionHook`.

    Args:
        main_func: must be importable by name, since new processes import it.
        num_gpus_per_machine: 0 or 1 for no new process. Without CUDA, more start as many processes on the CPU.
        num_machines: run the same program on each of them.
        machine_rank: of this machine, from 0.
        dist_url: address of the first machine, such as "tcp://10.0.0.1:29500"; None or "auto" finds a free port if
            there is one machine.
        timeout: of operations in which all processes take part.

    Raises:
        DetlibError: the first one that a process raised.
        SystemExit: a process ended with this exit status.
    """
    world_size = num_machines * max(num_gpus_per_machine, 1)
    if _under_torchrun():
        _join_torchrun(timeout)
    elif world_size > 1:
        _start_processes(main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, args, timeout)
        return
    elif (task := slurm_task()) is not None:
        _join_slurm(task, dist_url, timeout)
    else:
        main_func(*args)
        return
    _call_and_leave(main_func, args)


def _call_and_leave(main_func: Callable[..., Any], args: Sequence[Any]) -> None:
    try:
        main_func(*args)
    except TrainingPreempted:  # In all processes. Those that end first can make what has started them end the others.
        comm.leave()
        raise
    comm.leave()


def _start_processes(
    main_func: Callable[..., Any],
    num_local: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str | None,
    args: Sequence[Any],
    timeout: timedelta,
) -> None:
    _check_devices(num_local)
    num_local = max(num_local, 1)
    url = _resolve_url(dist_url, num_machines)
    errors = mp.get_context("spawn").SimpleQueue()
    process_args = (main_func, num_machines * num_local, num_local, machine_rank, url, args, timeout, errors)
    processes = mp.start_processes(_worker, process_args, nprocs=num_local, join=False, start_method="spawn")
    try:
        with _passing_on_signals(processes.pids()):
            while not processes.join():
                pass
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as failure:
        if not errors.empty():
            raise errors.get() from failure
        if isinstance(failure, mp.ProcessExitedException) and failure.exit_code > 0:
            raise SystemExit(failure.exit_code) from None
        raise


def _worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    num_local: int,
    machine_rank: int,
    url: str,
    args: Sequence[Any],
    timeout: timedelta,
    errors: "mp.SimpleQueue",
) -> None:
    try:
        _init_process_group(local_rank, num_local, timeout, url, world_size, machine_rank * num_local + local_rank)
        _call_and_leave(main_func, args)
    except DetlibError as error:  # The parent raises it, so that a user's mistake looks the same in 1 or 8 processes.
        errors.put(error)
        raise


@contextmanager
def _passing_on_signals(pids: Sequence[int]) -> Iterator[None]:
    """Send signals that end a program on to the processes, instead of ending before they have saved."""

    def pass_on(number: int, frame: Any) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):  # It has ended already.
                os.kill(pid, number)

    if threading.current_thread() is not threading.main_thread():  # Python admits handlers nowhere else.
        yield
        return
    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _under_torchrun() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def _join_torchrun(timeout: timedelta) -> None:
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    _check_devices(local_size)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    # After a restart it is the same store, and still has the addresses of those that died.
    life = f"life_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}_of_{world_size}"
    store = dist.PrefixStore(life, store)
    _init_process_group(int(os.environ["LOCAL_RANK"]), local_size, timeout, store, world_size, rank)


def _join_slurm(task: SlurmTask, dist_url: str | None, timeout: timedelta) -> None:
    url = task.url if dist_url in (None, "auto") else dist_url
    # With --gpus-per-task, each task sees one GPU, its own.
    num_visible = torch.cuda.device_count()
    if num_visible != 1:
        _check_devices(task.local_size)
    device = 0 if num_visible == 1 else task.local_rank
    _init_process_group(task.local_rank, task.local_size, timeout, url, task.world_size, task.rank, device)


def _init_process_group(
    local_rank: int,
    num_local: int,
    timeout: timedelta,
    place: str | dist.Store,
    world_size: int,
    rank: int,
    device: int | None = None,
) -> None:
    """Joins the others at an address, or in a store."""
    use_cuda = torch.cuda.is_available()
    if use_cuda:
        torch.cuda.set_device(local_rank if device is None else device)
    where = {"init_method": place} if isinstance(place, str) else {"store": place}
    try:
        dist.init_process_group(
            "nccl" if use_cuda else "gloo", **where, world_size=world_size, rank=rank, timeout=timeout
        )
    except Exception:
        logger.error("Process %d could not reach the others at %s.", rank, place)
        raise
    comm.create_local_process_group(num_local)
    comm.synchronize()


def _check_devices(num_local: int) -> None:
    if num_local < 2:
        return
    if not torch.cuda.is_available():
        logger.warning(
            "There is no CUDA device: %d processes share the CPU, which is of use for tests only.", num_local
        )
    elif num_local > torch.cuda.device_count():
        raise ConfigError(
            f"{num_local} processes need as many GPUs, but this machine has {torch.cuda.device_count()}; "
            f"use --num-gpus {torch.cuda.device_count()}"
        )


def _resolve_url(dist_url: str | None, num_machines: int) -> str:
    if dist_url not in (None, "auto"):
        return dist_url
    if num_machines > 1:
        raise ConfigError(
            f"{num_machines} machines need an address to meet at; give all of them the same "
            "--dist-url tcp://ADDRESS_OF_THE_FIRST:PORT"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"
