import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.utils import comm
from detlib.utils.errors import DamagedCheckpointError


class BadDisk(DetectionCheckpointer):
    """Process 1 cannot read what the other one can."""

    def _load_file(self, f):
        if comm.get_rank() == 1 and f.endswith("19.pth"):
            raise DamagedCheckpointError(f"{f} is damaged here")
        return super()._load_file(f)


def load_and_save(rank, folder):
    """Each process is given a folder of its own, as machines without shared disks have."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1, bias=False))
    checkpointer = DetectionCheckpointer(model, f"{folder}/machine{rank}")
    checkpointer.load(f"{folder}/machine{rank}/first.pth")
    torch.save(model.module.weight.item(), f"{folder}/weight{rank}")
    checkpointer.save("second")
    BadDisk(model, f"{folder}/run").resume_or_load("")
    torch.save(model.module.weight.item(), f"{folder}/resumed{rank}")
    comm.leave()


def write(folder, name, weight):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    DetectionCheckpointer(model, str(folder)).save(name)


def test_all_processes_load_the_same_and_the_main_process_alone_writes(tmp_path):
    write(tmp_path / "machine0", "first", 5)
    write(tmp_path / "run", "model_0000009", 9)
    write(tmp_path / "run", "model_0000019", 19)
    mp.spawn(load_and_save, args=(str(tmp_path),), nprocs=2)
    # What is missing on a machine is sent to it, and what one process cannot read, none takes.
    assert [torch.load(tmp_path / f"weight{rank}") for rank in (0, 1)] == [5, 5]
    assert (tmp_path / "machine0" / "second.pth").exists()
    assert not (tmp_path / "machine1").exists()
    assert [torch.load(tmp_path / f"resumed{rank}") for rank in (0, 1)] == [9, 9]
