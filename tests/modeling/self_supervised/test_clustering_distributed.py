"""DeepCluster and ODC in two processes against one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detlib.config import CfgNode, get_cfg
from detlib.engine.clustering_hook import ClusteringHook
from detlib.modeling import build_model
from detlib.modeling.self_supervised import ODCMemory
from detlib.utils import comm


def deepcluster(seed):
    torch.manual_seed(seed)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "DeepCluster"
    cfg.MODEL.DEVICE = "cpu"
    backbone = {"NAME": "ResNet_CIFAR", "DEPTH": 18, "BASE_CHANNELS": 4, "FREEZE_AT": 0, "OUT_FEATURES": ["res2"]}
    ssl = {
        "NECK": {"NAME": "AvgPool2dNeck"},
        "HEAD": {"NAME": "LinearClsHead", "NUM_CLASSES": 3},
        "MEMORY": {"NAME": "PseudoLabels", "LENGTH": 9, "REWEIGHT": True},
    }
    cfg.MODEL.merge_from_other_cfg(CfgNode({"BACKBONE": backbone, "SSL": ssl}))
    return build_model(cfg)


def batches(first, last):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(9, 3, 16, 16, generator=generator) * 255
    return [[{"image": images[i], "sample_idx": i}] for i in range(first, last)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steps_of_odc(rank, world_size):
    """Six steps of 4 samples, some of which are in both processes."""
    memory = ODCMemory(20, 3, 4, min_cluster=4, centroids_period=3)
    memory.cluster(normal(20, 3) if rank == 0 else None)
    changes = []
    for step in range(6):
        indices, embeddings = torch.arange(step, step + 8) % 5, normal(8, 3, seed=step)
        own = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
        changes.append(memory.update(indices[own], embeddings[own]))
        memory.upkeep()
    return {**memory.state_dict(), "changes": torch.stack(changes)}


def run_process(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = deepcluster(seed=0)
    torch.manual_seed(rank)  # for the head, which is drawn anew
    # The last process has fewer samples, in the order of the dataset.
    hook = ClusteringHook(model, batches(0, 5) if rank == 0 else batches(5, 9), iters_per_epoch=1)
    model.cluster(hook._features())
    torch.save((model.state_dict(), steps_of_odc(rank, 2)), f"{folder}/{rank}")
    comm.leave()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_process, (str(folder),), nprocs=2)
    return [torch.load(folder / str(rank)) for rank in (0, 1)]


def test_labels_and_head_are_the_same_in_both_processes_and_in_one(two_processes):
    model = deepcluster(seed=0)
    torch.manual_seed(0)
    model.cluster(ClusteringHook(model, batches(0, 9), iters_per_epoch=1)._features())
    for state, _ in two_processes:
        torch.testing.assert_close(state, dict(model.state_dict()))


def test_banks_of_odc_are_the_same_in_both_processes_and_in_one(two_processes):
    one = steps_of_odc(0, 1)
    for _, state in two_processes:
        torch.testing.assert_close(state, one)
