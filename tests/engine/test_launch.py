import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from detlib.engine import launch
from detlib.utils import comm
from detlib.utils.errors import ConfigError, DatasetError

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="processes share the CPU only where no GPU is")


def write_ranks(folder):
    total = sum(comm.all_gather(comm.get_rank() + 1))
    with open(os.path.join(folder, f"rank{comm.get_rank()}"), "w") as f:
        f.write(f"{total} {comm.get_local_rank()} {comm.get_local_size()} {dist.get_backend()}")


def write_ranks_and_fail_in_second(folder):
    write_ranks(folder)
    comm.synchronize()
    if comm.get_rank() == 1:
        raise DatasetError("no images in rank 1")
    comm.synchronize()


def test_one_process_runs_right_here():
    seen = []
    launch(seen.append, 1, args=(os.getpid(),))
    launch(seen.append, 0, args=("no GPU",))
    assert seen == [os.getpid(), "no GPU"]


@needs_no_gpu
def test_two_processes_know_each_other_and_hand_back_a_mistake_of_the_user(tmp_path):
    with pytest.raises(DatasetError, match="no images in rank 1"):
        launch(write_ranks_and_fail_in_second, 2, args=(str(tmp_path),))
    assert (tmp_path / "rank0").read_text() == "3 0 2 gloo"
    assert (tmp_path / "rank1").read_text() == "3 1 2 gloo"


@needs_no_gpu
def test_under_torchrun_its_processes_are_used(tmp_path):
    script = tmp_path / "tool.py"
    script.write_text(
        "import sys\nfrom detlib.engine import launch\nfrom tests.engine.test_launch import write_ranks\n"
        "if __name__ == '__main__':\n    launch(write_ranks, 1, args=(sys.argv[1],))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run([*command, str(script), str(tmp_path)], check=True, env=environment, capture_output=True)
    assert (tmp_path / "rank1").read_text() == "3 1 2 gloo"


def test_several_machines_need_an_address():
    with pytest.raises(ConfigError, match="--dist-url"):
        launch(print, 1, num_machines=2)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="--num-gpus 1"):
        launch(print, 2)
