"""What Slurm tells the processes that ``srun`` started, of which each trains on one GPU."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from detlib.utils.errors import ConfigError

__all__ = ["SlurmTask", "first_host", "slurm_task"]

# Where the processes meet, if MASTER_PORT does not say it: another one for each job, below those that systems hand out.
FIRST_PORT, NUM_PORTS = 10_000, 20_000


@dataclass(frozen=True)
class SlurmTask:
    """One of the processes of a job step.

    Attributes:
        rank, world_size: over all machines.
        local_rank, local_size: on this machine.
        url: where they meet.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    url: str


def slurm_task(environment: Mapping[str, str] = os.environ) -> SlurmTask | None:
    """The task that this process is; None where ``srun`` did not start it, or started it alone.

    A batch script has most of the variables, too, but is no step: a program that it starts without ``srun`` would wait
    for others that do not come.

    Raises:
        ConfigError: the tasks are not laid out as one per GPU, machine after machine.
    """
    if not {"SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"} <= environment.keys():
        return None
    world_size = int(environment["SLURM_NTASKS"])
    if world_size == 1:
        return None
    rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
    local_size = _tasks_per_node(environment, world_size)
    if rank % local_size != local_rank:
        raise ConfigError(
            f"Slurm's task {rank} is number {local_rank} on its machine of {local_size} tasks, but training needs them "
            "machine after machine; start it with srun --distribution=block"
        )
    address = environment.get("MASTER_ADDR") or first_host(_first_of(environment, "NODELIST"))
    port = environment.get("MASTER_PORT") or FIRST_PORT + int(environment.get("SLURM_JOB_ID", 0)) % NUM_PORTS
    return SlurmTask(rank, world_size, local_rank, local_size, f"tcp://{address}:{port}")


def first_host(nodes: str) -> str:
    """The first of a list as Slurm writes it: "node[03-05,9],gpu7" is node03, node04, ..., gpu7."""
    first = re.match(r"(?:[^,\[\]]|\[[^\[\]]+\])+", nodes)
    if first is None:
        raise ConfigError(f"Slurm's list of machines is {nodes!r}; set MASTER_ADDR to the name of the first one")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _tasks_per_node(environment: Mapping[str, str], world_size: int) -> int:
    """Slurm writes them as "4", "4(x2)" or "4(x2),3"."""
    counts = _first_of(environment, "TASKS_PER_NODE", default=str(world_size))
    uniform = re.fullmatch(r"(\d+)(\(x\d+\))?", counts)
    if uniform is None:
        raise ConfigError(
            f"Slurm runs {counts} tasks on the machines of this job, but training needs as many on each; give "
            "--ntasks-per-node"
        )
    return int(uniform[1])


def _first_of(environment: Mapping[str, str], name: str, default: str = "") -> str:
    """A variable of the step, which may have a part of the job, or else of the job."""
    names = (f"SLURM_STEP_{name}", f"SLURM_JOB_{name}", f"SLURM_{name}")
    return next((environment[key] for key in names if environment.get(key)), default)
