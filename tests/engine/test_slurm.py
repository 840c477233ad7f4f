import pytest

from detlib.engine.slurm import first_host, slurm_task
from detlib.utils.errors import ConfigError

# What srun sets for the last of 4 tasks on 2 machines.
TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "gpu[007-008,011]",
    "SLURM_STEP_NODELIST": "gpu[008,011]",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("alone", "alone"),
        ("gpu[007-008,011],big1", "gpu007"),
        ("gpu3,gpu[007-008]", "gpu3"),
        ("rack[1-2]node[3,5]-ib", "rack1node3-ib"),
    ],
)
def test_first_host_of_slurms_lists(nodes, first):
    assert first_host(nodes) == first


def test_a_list_that_is_none_asks_for_the_address():
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        first_host("")


def test_a_task_knows_its_place_and_meets_the_others_on_the_first_machine_of_its_step():
    task = slurm_task(TASK)
    assert (task.rank, task.world_size, task.local_rank, task.local_size) == (3, 4, 1, 2)
    assert task.url == "tcp://gpu008:14711"


def test_address_and_port_of_the_environment_come_first():
    assert slurm_task({**TASK, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}).url == "tcp://10.0.0.1:29500"


def test_a_batch_script_is_no_step_and_a_step_of_one_task_trains_alone():
    assert slurm_task({name: value for name, value in TASK.items() if name != "SLURM_STEP_ID"}) is None
    assert slurm_task({**TASK, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None


def test_machines_with_unequal_or_mixed_tasks_are_refused():
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        slurm_task({**TASK, "SLURM_STEP_TASKS_PER_NODE": "3,1"})
    with pytest.raises(ConfigError, match="--distribution=block"):
        slurm_task({**TASK, "SLURM_PROCID": "2"})
