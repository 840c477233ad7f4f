"""Two processes with half a batch each against one process with the joint batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

from detlib.config import CfgNode, get_cfg
from detlib.engine import create_ddp_model
from detlib.modeling import build_model
from detlib.modeling.self_supervised import NCE, KeyQueue, SimpleMemory
from detlib.modeling.self_supervised.distributed import (
    concat_all_gather,
    gather_with_gradient,
    shuffle,
    sum_with_gradient,
    unshuffle,
)
from detlib.modeling.self_supervised.necks import batch_norm_1d
from detlib.utils import comm

WIDE = {"NAME": "NonLinearNeck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8, "NORM": "SyncBN"}
PREDICTOR = {"NAME": "NonLinearNeck", "HID_CHANNELS": 16, "WITH_LAST_BN": False, "NORM": "SyncBN"}

ALGORITHMS = {
    "SimCLR": {"NECK": WIDE, "HEAD": {"NAME": "ContrastiveHead", "TEMPERATURE": 0.5}},
    "BarlowTwins": {
        "NECK": {**WIDE, "WITH_LAST_BN": False},
        "HEAD": {"NAME": "LatentCrossCorrelationHead", "NORM": "SyncBN"},
    },
    "SwAV": {
        "NECK": {"NAME": "SwAVNeck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8, "NORM": "SyncBN"},
        "HEAD": {"NAME": "SwAVHead", "NUM_PROTOTYPES": 6, "QUEUE_LEN": 8},
    },
    "MoCo": {
        "NECK": {"NAME": "LinearNeck", "OUT_CHANNELS": 8},
        "HEAD": {"NAME": "ContrastiveHead", "TEMPERATURE": 0.5},
        "QUEUE_LEN": 8,
    },
    "BYOL": {
        "NECK": WIDE,
        "HEAD": {"NAME": "LatentPredictHead", "PREDICTOR": PREDICTOR},
        "LOSS": {"NAME": "CosineSimilarityLoss", "SHIFT": 2.0, "SCALE": 2.0},
        "MOMENTUM": 0.9,
    },
    "SimSiam": {"NECK": WIDE, "HEAD": {"NAME": "LatentPredictHead", "PREDICTOR": PREDICTOR}},
    "MoCoV3": {"NECK": WIDE, "HEAD": {"NAME": "MoCoV3Head", "PREDICTOR": PREDICTOR, "TEMPERATURE": 0.5}},
    "DenseCL": {
        "NECK": {"NAME": "DenseCLNeck", "HID_CHANNELS": 16, "OUT_CHANNELS": 8},
        "HEAD": {"NAME": "DenseCLHead", "TEMPERATURE": 0.5, "WARMUP_ITERS": 1},
        "QUEUE_LEN": 8,
    },
    "NPID": {
        "NECK": {"NAME": "LinearNeck", "OUT_CHANNELS": 8},
        "HEAD": {"NAME": "ContrastiveHead", "TEMPERATURE": 0.5},
        "MEMORY": {"NAME": "SimpleMemory", "LENGTH": 6},
    },
}

# All that is remembered, which no process may have for itself.
MEMORIES = {
    "MoCo": ["queue.keys", "queue.pointer"],
    "DenseCL": ["queue.keys", "queue.pointer", "queue2.keys", "queue2.pointer"],
    "NPID": ["memory_bank.features"],
    "SwAV": ["head.queue", "head.num_steps"],
}


def build(name, seed, norm="naiveSyncBN"):
    torch.manual_seed(seed)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.MODEL.DEVICE = "cpu"
    # Few layers, so that rounding errors stay small.
    backbone = {"NAME": "ResNet_CIFAR", "DEPTH": 18, "BASE_CHANNELS": 4, "FREEZE_AT": 0, "NORM": norm}
    backbone["OUT_FEATURES"] = ["res2"]
    cfg.MODEL.merge_from_other_cfg(CfgNode({"BACKBONE": backbone, "SSL": ALGORITHMS[name]}))
    model = build_model(cfg)
    if name == "NPID":
        model.memory_bank.draw_negatives = all_others_of_six  # Random ones would differ between the processes.
    return model


def all_others_of_six(indices):
    return (indices[:, None] + torch.arange(1, 6)) % 6


def batch(seed=0):
    """4 of 6 samples, 2 of which each process gets; the next batch begins 2 samples later.

    The third view is a small crop, for SwAV.
    """
    generator = torch.Generator().manual_seed(seed)
    views = [[torch.rand(3, 16, 16, generator=generator) * 255 for _ in range(2)] for _ in range(4)]
    crops = [torch.rand(3, 8, 8, generator=generator) * 255 for _ in range(4)]
    return [{"views": [*views[i], crops[i]], "sample_idx": (i + 2 * seed) % 6} for i in range(4)]


def train(model, samples_of):
    """The mean loss of three steps, the last of which meets a full queue, and the gradients of that one."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = sum(model(samples_of(step)).values())
        loss.backward()
        losses.append(loss.detach())
        if step < 2:
            optimizer.step()
    return sum(losses) / 3, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def run_process(rank, folder):
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    check_parts(rank)
    torch.save(f"process {rank} is through", f"{folder}/parts{rank}")
    for name in ALGORITHMS:
        # Other seeds in other processes: DDP sends the first one's weights to all, but not its queues.
        model = create_ddp_model(build(name, seed=rank), broadcast_buffers=False)
        loss, gradients = train(model, lambda step: batch(step)[2 * rank : 2 * rank + 2])
        dist.all_reduce(loss)
        torch.save((loss / 2, gradients, model.module.state_dict()), f"{folder}/{name}{rank}")
    for name in ("MoCo", "DenseCL"):
        torch.manual_seed(DEALT_SEED + rank)  # The first process deals.
        torch.save(keys_of(build_with_bn(name), IMAGES[2 * rank : 2 * rank + 2]), f"{folder}/{name}_keys{rank}")
    comm.leave()


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DEALT_SEED = 1


def build_with_bn(name):
    random_state = torch.get_rng_state()
    model = build(name, seed=0, norm="BN")
    torch.set_rng_state(random_state)
    return model


def keys_of(model, images):
    keys = model.encode_keys(images)
    return [keys] if isinstance(keys, torch.Tensor) else list(keys)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_process, (str(folder),), nprocs=2)
    return lambda name: [torch.load(folder / f"{name}{rank}") for rank in (0, 1)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_processes_have_loss_and_gradient_of_the_joint_batch(name, two_processes):
    model = build(name, seed=0)
    loss, gradients = train(model, batch)
    (loss_of_two, first, _), (_, second, _) = two_processes(name)
    torch.testing.assert_close(loss_of_two, loss, rtol=1e-4, atol=1e-5)
    named = {f"module.{key}": value for key, value in gradients.items()}
    assert first.keys() == second.keys() == named.keys()
    norm = torch.cat([g.flatten() for g in named.values()]).norm()
    for key, gradient in named.items():
        torch.testing.assert_close(first[key], gradient, rtol=0.01, atol=0.003 * norm.item())
        assert torch.equal(second[key], first[key])  # averaged


@pytest.mark.parametrize(("name", "buffers"), MEMORIES.items())
def test_memories_are_the_same_in_both_processes_and_in_one(name, buffers, two_processes):
    model = build(name, seed=0)
    train(model, batch)
    (_, _, first), (_, _, second) = two_processes(name)
    for buffer in buffers:
        assert torch.equal(first[buffer], second[buffer])
        torch.testing.assert_close(first[buffer], model.state_dict()[buffer], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["MoCo", "DenseCL"])
def test_keys_are_made_of_dealt_batches_and_come_back_to_their_images(name, two_processes):
    model = build_with_bn(name)
    torch.manual_seed(DEALT_SEED)
    order = torch.randperm(4)
    assert {*order[:2].tolist()} not in ({0, 1}, {2, 3})  # Otherwise dealing would change nothing.
    # Batch norm sees one dealt half at a time; of a half, the order does not matter.
    halves = [keys_of(model, IMAGES[half]) for half in order.chunk(2)]
    for parts, first, second in zip(zip(*halves), *two_processes(f"{name}_keys")):
        torch.testing.assert_close(torch.cat([first, second]), torch.cat(parts)[order.argsort()])


def check_parts(rank):
    joint = torch.arange(8.0).view(4, 2)
    own = joint[2 * rank : 2 * rank + 2].clone().requires_grad_()

    assert torch.equal(concat_all_gather(own), joint)
    assert not concat_all_gather(own).requires_grad
    assert torch.equal(concat_all_gather(own.detach().T.contiguous().T), joint)  # not contiguous

    # A loss that differs between the processes: the sum of squares of all rows, times 1 in the first, 2 in the second.
    gathered = gather_with_gradient(own)
    assert torch.equal(gathered, joint)
    ((rank + 1) * gathered.square().sum()).backward()
    assert torch.equal(own.grad, 3 * 2 * own)

    own.grad = None
    total = sum_with_gradient(own.sum(dim=0))
    assert total.tolist() == [12, 16]  # 0 + 2 + 4 + 6 and 1 + 3 + 5 + 7
    ((rank + 1) * total.sum()).backward()
    assert (own.grad == 3).all()

    torch.manual_seed(rank)
    shuffled, order = shuffle(own)
    orders = [torch.empty_like(order) for _ in range(2)]
    dist.all_gather(orders, order)
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(concat_all_gather(shuffled), joint[order])
    assert torch.equal(unshuffle(10 * shuffled, order), 10 * own)

    x = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    norm, reference = batch_norm_1d("SyncBN", 1), nn.BatchNorm1d(1)
    torch.testing.assert_close(norm(x[2 * rank : 2 * rank + 2]), reference(x)[2 * rank : 2 * rank + 2])
    torch.testing.assert_close(norm.running_var, reference.running_var)

    torch.manual_seed(0)
    queue, bank = KeyQueue(8, 2), SimpleMemory(5, 2, momentum=1.0)
    embeddings = F.normalize(joint + 1, dim=1)
    queue.enqueue(embeddings[2 * rank : 2 * rank + 2])
    assert torch.equal(queue.keys[:, :4], embeddings.T)
    assert queue.pointer == 4
    # Sample 3 comes in both processes: the second one is later.
    bank.update(torch.tensor([3, rank]), embeddings[2 * rank : 2 * rank + 2])
    torch.testing.assert_close(bank.features[[0, 1, 3]], embeddings[[1, 3, 2]])

    nce = NCE(num_samples=10)
    nce(joint[2 * rank : 2 * rank + 2] / 4, torch.tensor([0, 0]))
    torch.testing.assert_close(nce.normalizer, 10 * (joint / 4).exp().mean())  # the same in both


def test_gathers_sums_shuffles_and_memories_work_over_two_processes(two_processes):
    for rank, end in enumerate(two_processes("parts")):
        assert end == f"process {rank} is through"


def test_one_process_gathers_itself():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(x) is x
    assert sum_with_gradient(x) is x
    assert torch.equal(concat_all_gather(x), x)


def test_shuffle_in_one_process_is_a_permutation_that_can_be_undone():
    x = torch.arange(20).view(10, 2)
    torch.manual_seed(0)
    shuffled, order = shuffle(x)
    assert not torch.equal(shuffled, x)
    assert torch.equal(shuffled, x[order])
    assert torch.equal(unshuffle(shuffled, order), x)
