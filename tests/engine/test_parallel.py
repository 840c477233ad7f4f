"""Two processes with half a batch each against one with the joint batch, and FSDP against DistributedDataParallel.

Pre-training has such tests of its own: tests/modeling/self_supervised/test_distributed.py.
"""

import os
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.engine import AMPTrainer, SimpleTrainer, create_ddp_model
from detlib.engine.fsdp import blocks_of, build_for_processes, shard_model, shard_optimizer_state, whole_weights
from detlib.evaluation import inference_on_dataset
from detlib.modeling import build_model
from detlib.modeling.self_supervised import MomentumEncoder
from detlib.solver import build_optimizer
from detlib.structures import BitMasks
from detlib.utils import comm
from detlib.utils.errors import ConfigError, DamagedCheckpointError
from detlib.utils.events import EventStorage
from tests.conftest import build_tiny_cfg, build_tiny_rcnn_cfg, make_sample

BOXES, CLASSES = [[4, 4, 40, 40], [10, 20, 60, 60]], [0, 2]
SIZE = 64


def joint_batch():
    """Two images, one for each process. Their equal boxes make equally many anchors foreground."""
    batch = [make_sample(SIZE, SIZE, BOXES, CLASSES, seed) for seed in (1, 2)]
    for sample in batch:
        sample["instances"].gt_masks = BitMasks(torch.ones(len(BOXES), SIZE, SIZE, dtype=torch.bool))
    return batch


def build_retinanet(num_processes):
    """As in detectron2, each process divides its losses by an average of its own number of foreground anchors.

    For equal gradients, that has to be, in one process, the sum of those of two: it is if it began as such, and images
    have equally many.
    """
    cfg = build_tiny_cfg()
    cfg.MODEL.RESNETS.NORM = "naiveSyncBN"
    model = build_model(cfg)
    model.loss_normalizer /= num_processes
    return model


def build_mask_rcnn(num_processes):
    """Its losses of proposals are means, so the images need equally many: 2 in the foreground and 6 others each."""
    cfg = build_tiny_rcnn_cfg()
    cfg.MODEL.RESNETS.NORM = "naiveSyncBN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 8, 0.25
    return build_model(cfg)


BUILDERS = {"RetinaNet": build_retinanet, "Mask R-CNN": build_mask_rcnn}


def gradients_of(name, batch, num_processes, seed):
    """The gradients of a batch by the names of parameters, and how many proposals were drawn."""
    torch.manual_seed(seed)
    model = BUILDERS[name](num_processes)
    if num_processes > 1:
        model = create_ddp_model(model, broadcast_buffers=False)
    # Which proposals are drawn is random; here, it is the first ones.
    with mock.patch("detlib.modeling.sampling._draw", lambda index, count: index[:count]), EventStorage() as storage:
        sum(model(batch).values()).backward()
        drawn = [storage.latest().get(f"roi_head/num_{kind}_samples", (0, 0))[0] for kind in ("fg", "bg")]
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}, drawn


TRAININGS = {
    "SGD": ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"],
    "LARS, frozen layers, parts of a step": [
        *("SOLVER.OPTIMIZER", "LARS", "MODEL.BACKBONE.FREEZE_AT", 3),
        *("SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
    ],
    "bfloat16": ["SOLVER.AMP.ENABLED", True],
}


class Batches:
    """Images of another size in each process, and of the second process no objects in its first image."""

    def __init__(self, size=SIZE):
        self.size = size

    def __iter__(self):
        rank, i = comm.get_rank(), 0
        while True:
            boxes = [] if rank == 1 and i == 0 else BOXES
            yield [make_sample(self.size, self.size + 32 * rank, boxes, CLASSES[: len(boxes)], seed=i)]
            i += 1


def build_trainer(name, parallel, folder="", seed=0):
    """Of a model as each process has it, and whatever it starts from."""
    cfg = build_tiny_cfg()
    cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5])
    cfg.merge_from_list(["SOLVER.PARALLEL", parallel, "SOLVER.BASE_LR", 0.01, *TRAININGS[name]])
    torch.manual_seed(seed)
    model = build_for_processes(cfg, build_model)
    optimizer = build_optimizer(cfg, model)
    if parallel == "fsdp":
        shard_optimizer_state(optimizer)
    model = create_ddp_model(model, broadcast_buffers=False)
    options = {"accumulation_steps": cfg.SOLVER.ACCUMULATION_STEPS}
    if cfg.SOLVER.AMP.ENABLED:
        # Of maps of 1 x 1 cells, torch 2.14 computes gradients in bfloat16 that are not finite, on the CPU.
        trainer = AMPTrainer(model, Batches(2 * SIZE), optimizer, precision=torch.bfloat16, **options)
    else:
        trainer = SimpleTrainer(model, Batches(), optimizer, **options)
    return trainer, DetectionCheckpointer(model, folder, trainer=trainer)


def weights_of(model):
    """All of each, in all processes."""
    return {
        name.removeprefix("module."): (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


def run_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)

    def save(result, name):
        torch.save(result, f"{folder}/{name}{rank}")

    for name in BUILDERS:
        save(gradients_of(name, joint_batch()[rank : rank + 1], num_processes=2, seed=rank), name)
    for name in TRAININGS:
        for parallel in ("ddp", "fsdp"):
            # Other seeds in other processes: weights of the first one are those that count.
            trainer, checkpointer = build_trainer(name, parallel, f"{folder}/{parallel}", seed=rank)
            trainer.train(0, 3)
            save(weights_of(trainer.model), f"{name}_{parallel}")
            if name == "SGD":
                go_on(trainer, checkpointer, lambda result, what, end=parallel: save(result, f"{what}_{end}"))
    resume_what_ddp_saved(folder, save)
    comm.leave()


def go_on(trainer, checkpointer, save):
    """Saves, evaluates, and trains on, for some more steps."""
    trainer.gather_states()
    checkpointer.gather()
    if comm.is_main_process():
        checkpointer.save("model_0000002")
    comm.synchronize()
    with whole_weights(trainer.model):
        # Not equally often in both processes.
        num_batches = 1 + comm.get_rank()
        inference_on_dataset(trainer.model, [batch for batch, _ in zip(Batches(), range(num_batches))], None)
    trainer.train(3, 5)
    save(weights_of(trainer.model), "uninterrupted")
    parallel = os.path.basename(checkpointer.save_dir)
    resumed, checkpointer = build_trainer("SGD", parallel, checkpointer.save_dir, seed=7)
    checkpointer.resume_or_load("", resume=True)
    resumed.data_loader = trainer_batches_from(3)
    resumed.train(3, 5)
    save(weights_of(resumed.model), "resumed")


def trainer_batches_from(start):
    batches = iter(Batches())
    for _ in range(start):
        next(batches)
    return batches


def resume_what_ddp_saved(folder, save):
    trainer, checkpointer = build_trainer("SGD", "fsdp", f"{folder}/ddp", seed=7)
    checkpointer.resume_or_load("", resume=True)
    trainer.data_loader = trainer_batches_from(3)
    trainer.train(3, 5)
    save(weights_of(trainer.model), "fsdp_after_ddp")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_process, (str(folder),), nprocs=2)

    def load(name):
        return [torch.load(folder / f"{name}{rank}") for rank in (0, 1)]

    load.folder = folder
    return load


@pytest.mark.parametrize("name", BUILDERS)
def test_two_processes_have_the_gradients_of_the_joint_batch(name, two_processes):
    joint, drawn = gradients_of(name, joint_batch(), num_processes=1, seed=0)
    (first, drawn_by_first), (second, drawn_by_second) = two_processes(name)
    assert drawn == drawn_by_first == drawn_by_second == ([2, 6] if name == "Mask R-CNN" else [0, 0])
    assert first.keys() == second.keys() == joint.keys()
    norm = torch.cat([gradient.flatten() for gradient in joint.values()]).norm().item()
    for key, gradient in joint.items():
        torch.testing.assert_close(first[key], gradient, rtol=1e-3, atol=1e-4 * norm)
        assert torch.equal(second[key], first[key])  # averaged


@pytest.mark.parametrize("name", TRAININGS)
def test_fsdp_makes_the_weights_that_ddp_makes(name, two_processes):
    (ddp, _), (fsdp, of_second) = two_processes(f"{name}_ddp"), two_processes(f"{name}_fsdp")
    assert ddp.keys() == fsdp.keys()
    # Gradients of a weight that is used several times, as in the head, add up in bfloat16 with DDP only: autocast does
    # not know again what FSDP gathered.
    tolerance = 2e-4 if name == "bfloat16" else 1e-6
    for key, weight in ddp.items():
        torch.testing.assert_close(fsdp[key], weight, rtol=0, atol=tolerance)
        assert torch.equal(of_second[key], fsdp[key])


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_resumed_training_is_the_uninterrupted_one(parallel, two_processes):
    (uninterrupted, _), (resumed, _) = two_processes(f"uninterrupted_{parallel}"), two_processes(f"resumed_{parallel}")
    assert all(torch.equal(resumed[name], weight) for name, weight in uninterrupted.items())


def test_fsdp_goes_on_from_a_checkpoint_of_ddp(two_processes):
    for name, weight in two_processes("uninterrupted_ddp")[0].items():
        torch.testing.assert_close(two_processes("fsdp_after_ddp")[0][name], weight, rtol=0, atol=1e-6)


def test_one_process_reads_weights_and_optimizer_of_fsdp(two_processes):
    trainer, checkpointer = build_trainer("SGD", "ddp", str(two_processes.folder / "fsdp"), seed=7)
    checkpointer.resume_or_load("", resume=True)
    other, of_ddp = build_trainer("SGD", "ddp", str(two_processes.folder / "ddp"), seed=7)
    of_ddp.resume_or_load("", resume=True)
    for parameter, expected in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)
        state, expected_state = trainer.optimizer.state[parameter], other.optimizer.state[expected]
        torch.testing.assert_close(state["momentum_buffer"], expected_state["momentum_buffer"], rtol=0, atol=1e-5)


def test_a_damaged_folder_of_shards_is_refused(two_processes):
    folder = two_processes.folder / "fsdp"
    (shard,) = folder.glob("model_0000002.*.shards/__1_0.distcp")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    _, checkpointer = build_trainer("SGD", "ddp", str(folder))
    with pytest.raises(DamagedCheckpointError, match=r"__1_0\.distcp is missing or damaged"):
        checkpointer.load(str(folder / "model_0000002.pth"))
    shard.write_bytes(content)


def test_blocks_are_the_innermost_repeated_parts_with_two_weights():
    def layer():
        return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))

    class Stage(nn.Module):
        def __init__(self, num_blocks):
            super().__init__()
            self.blocks = nn.ModuleList(layer() for _ in range(num_blocks))
            self.norm = nn.LayerNorm(2)

    stages = nn.ModuleList([Stage(2), Stage(1)])
    head = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))  # no list of blocks: its items have one weight
    assert blocks_of(nn.ModuleDict({"stages": stages, "head": head})) == [*stages[0].blocks, stages[1]]


def test_fsdp_refuses_what_it_would_train_wrongly():
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"encoder \(MomentumEncoder\) changes weights in the forward pass"):
        shard_model(nn.ModuleDict({"encoder": MomentumEncoder(nn.Linear(2, 2), None)}), cpu)
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match="scale, a single number"):
        shard_model(model, cpu)


def test_an_unknown_way_is_refused():
    cfg = build_tiny_cfg()
    cfg.SOLVER.PARALLEL = "zero"
    with pytest.raises(ConfigError, match="'ddp' or 'fsdp'"):
        build_for_processes(cfg, build_model)
