import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detlib.utils import comm


def test_one_process_needs_no_set_up():
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather("a") == ["a"]
    assert comm.gather("a") == ["a"]
    values = {"x": torch.tensor(2.0)}
    assert comm.reduce_dict(values) is values
    assert 0 <= comm.shared_random_seed() < 2**31


def check_process(rank, port):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (2, rank, rank, 2)
    assert comm.is_main_process() == (rank == 0)
    comm.synchronize()
    assert comm.all_gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
    assert comm.gather(rank) == ([0, 1] if rank == 0 else [])
    assert comm.gather(rank, dst=1) == ([0, 1] if rank == 1 else [])
    seeds = comm.all_gather(comm.shared_random_seed())
    assert seeds[0] == seeds[1]
    # In another order in each process, as happens with dicts of losses.
    values = {name: torch.tensor(float(ord(name) + rank)) for name in ("ab" if rank == 0 else "ba")}
    mean, total = comm.reduce_dict(values), comm.reduce_dict(values, average=False)
    if rank == 0:
        assert (mean["a"].item(), mean["b"].item()) == (97.5, 98.5)
        assert (total["a"].item(), total["b"].item()) == (195.0, 197.0)
    comm.leave()


def test_two_processes_agree():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(check_process, (port,), nprocs=2)
