import torch
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.utils import comm


def load_and_save(rank, folder):
    """Each process is given a folder of its own, as machines without shared disks have."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1, bias=False))
    checkpointer = DetectionCheckpointer(model, f"{folder}/machine{rank}")
    checkpointer.load(f"{folder}/machine{rank}/first.pth")
    torch.save(model.module.weight.item(), f"{folder}/weight{rank}")
    checkpointer.save("second")
    comm.leave()


def test_main_process_alone_writes_and_sends_what_others_lack(tmp_path):
    first = nn.Linear(1, 1, bias=False)
    nn.init.constant_(first.weight, 5)
    DetectionCheckpointer(first, str(tmp_path / "machine0")).save("first")
    mp.spawn(load_and_save, args=(str(tmp_path),), nprocs=2)
    assert [torch.load(tmp_path / f"weight{rank}") for rank in (0, 1)] == [5, 5]
    assert (tmp_path / "machine0" / "second.pth").exists()
    assert not (tmp_path / "machine1").exists()
