"""What all algorithms that compare embeddings have in common, tested on their tiny configs."""

from pathlib import Path

import pytest
import torch

from detlib.config import get_cfg
from detlib.engine import SimpleTrainer
from detlib.modeling import META_ARCH_REGISTRY, build_model
from detlib.solver import build_optimizer

TINY = Path(__file__).parents[3] / "configs" / "SelfSupervised" / "tiny"

# Beside statistics of batch norm, what a loss changes.
CHANGED_BUFFERS = {
    "barlow_twins": set(),
    "byol": {"target_net.num_updates"},
    "densecl": {
        "encoder_k.num_updates",
        "queue.keys",
        "queue.pointer",
        "queue2.keys",
        "queue2.pointer",
        "head.num_steps",
    },
    "moco": {"encoder_k.num_updates", "queue.keys", "queue.pointer"},
    "mocov3": {"momentum_encoder.num_updates"},
    "npid": {"memory_bank.features"},
    "simclr": set(),
    "simsiam": set(),
    "swav": {"head.queue", "head.num_steps"},
}

pytestmark = pytest.mark.parametrize("name", CHANGED_BUFFERS)


def read(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(TINY / f"{name}.yaml"))
    if name == "npid":
        cfg.MODEL.SSL.MEMORY.LENGTH = 1000  # as DefaultTrainer finds it
    return cfg


def build(name, seed=0):
    torch.manual_seed(seed)
    return build_model(read(name))


@pytest.fixture
def batch(name, samples):
    return samples(4, sizes=(32, 32, 16, 16) if name == "swav" else (32, 32))


def test_config_builds_the_algorithm(name):
    cfg = read(name)
    assert type(build(name)) is META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)


def test_losses_are_finite_scalars_that_reach_all_that_learns(name, batch):
    model = build(name)
    losses = model(batch)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    unused = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    frozen = [key for key, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert (unused, frozen) == ([], [])


def test_loss_waits_for_no_value_on_the_device(name, batch):
    cfg = read(name)
    cfg.MODEL.DEVICE = "meta"  # where tensors have no values: a branch on one, or a tensor left on the CPU, is an error
    model = build_model(cfg)
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss.device.type == "meta" for loss in losses.values())


def test_loss_under_autocast_is_near_that_in_float32(name, batch):
    model, half = build(name), build(name)
    torch.manual_seed(2)
    losses = model(batch)
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses_of_half = half(batch)
    torch.testing.assert_close(losses_of_half, losses, rtol=0.1, atol=0.05)
    assert all(loss.dtype == torch.float32 for loss in losses_of_half.values())


def test_features_of_the_first_view_change_nothing(name, batch):
    model = build(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = model(batch)
    torch.testing.assert_close(features, model.backbone(model.preprocess_views(batch)[0]))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_features_in_training_change_nothing_but_statistics(name, batch):
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(batch, mode="tensor")
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert all(key.startswith("backbone.") and ("running_" in key or "num_batches" in key) for key in changed)


def test_loss_changes_the_buffers_that_it_should_and_no_others(name, batch):
    model = build(name)
    before = {key: value.clone() for key, value in model.named_buffers()}
    for _ in range(2):
        model(batch)
    changed = {key for key, value in model.named_buffers() if not torch.equal(value, before[key])}
    statistics = {key for key in changed if "running_" in key or "num_batches_tracked" in key}
    assert changed - statistics == CHANGED_BUFFERS[name]


def test_plain_trainer_trains_it(name, batch):
    cfg = read(name)
    if name == "densecl":
        cfg.MODEL.SSL.HEAD.WARMUP_ITERS = 0  # in which cells learn nothing
    cfg.MODEL.SSL.MOMENTUM = 0.5  # Steps of a slower copy may be rounded to nothing.
    model = build_model(cfg)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    trainer = SimpleTrainer(model, iter([batch] * 3), build_optimizer(cfg, model))
    trainer.train(0, 3)
    unchanged = {key for key, p in model.named_parameters() if torch.equal(p, before[key])}
    assert unchanged == {key for key in before if "patch_embed" in key}  # that of MoCo v3, and its copy
    assert trainer.storage.latest()["embedding_spread"][0] > 0


def test_optimizer_has_what_learns_and_nothing_else(name):
    cfg = read(name)
    model = build_model(cfg)
    optimized = [p for group in build_optimizer(cfg, model).param_groups for p in group["params"]]
    assert len(optimized) == len(set(optimized))
    assert set(optimized) == {p for p in model.parameters() if p.requires_grad}


def test_all_that_does_not_learn_says_that_it_is_meant_to(name):
    model = build(name)
    meant = {
        p for module in model.modules() if getattr(module, "frozen_on_purpose", False) for p in module.parameters()
    }
    assert meant == {p for p in model.parameters() if not p.requires_grad}
