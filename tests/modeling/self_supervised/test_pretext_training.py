"""What the algorithms that classify have in common, tested on their tiny configs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detlib.config import get_cfg
from detlib.data.view_mapper import build_views
from detlib.engine import SimpleTrainer
from detlib.modeling import META_ARCH_REGISTRY, build_model
from detlib.solver import build_optimizer

CONFIGS = Path(__file__).parents[3] / "configs" / "SelfSupervised"

BANKS = ("feature_bank", "label_bank", "centroids", "class_weights", "num_steps")

# Beside statistics of batch norm, what a loss changes.
CHANGED_BUFFERS = {
    "rotation_pred": set(),
    "relative_loc": set(),
    "deepcluster": set(),
    "odc": {f"memory_bank.{name}" for name in BANKS},
}
SIZES = {"rotation_pred": [32] * 4, "relative_loc": [16] * 9, "deepcluster": [32], "odc": [32]}
SHIPPED = {
    "rotation_pred": "rotation_pred_r50_70e",
    "relative_loc": "relative_loc_r50_70e",
    "deepcluster": "deepcluster_sobel_r50_200e",
    "odc": "odc_r50_440e",
}

NUM_IMAGES = 1281167
# Images of a batch, learning rate, weight decay, epochs, the epochs after which the rate falls, those of the warm-up.
RECIPES = {
    "rotation_pred": (128, 0.2, 1e-4, 70, (30, 50), 5),
    "relative_loc": (512, 0.2, 1e-4, 70, (30, 50), 5),
    "deepcluster": (512, 0.1, 1e-5, 200, (), 0),
    "odc": (512, 0.06, 1e-5, 440, (400,), 0),
}
HEADS = {  # Weight decay and momentum of the head, the standard deviation of its first weights; and the sampler.
    "rotation_pred": ((1e-4, 0.9), 0.01, "TrainingSampler"),
    "relative_loc": ((5e-4, 0.9), 0.005, "TrainingSampler"),
    "deepcluster": ((1e-5, 0.0), 0.01, "UniformClusterSampler"),
    "odc": ((1e-5, 0.0), 0.01, "ReplacementSampler"),
}
VIEWS = {"rotation_pred": (4, 224), "relative_loc": (9, 64), "deepcluster": (1, 224), "odc": (1, 224)}

pytestmark = pytest.mark.parametrize("name", CHANGED_BUFFERS)


def read(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    if cfg.MODEL.SSL.MEMORY.get("NAME"):
        cfg.MODEL.SSL.MEMORY.LENGTH = 1000 if name.startswith("tiny") else NUM_IMAGES  # as DefaultTrainer finds it
    return cfg


def build(name, seed=0):
    torch.manual_seed(seed)
    model = build_model(read(f"tiny/{name}"))
    if hasattr(model, "cluster"):
        length, channels = len(model.memory_bank.label_bank), model.head.fc.in_features
        model.cluster(torch.randn(length, channels, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.fixture
def batch(name, samples):
    return samples(4, sizes=SIZES[name])


def test_published_config_builds_the_algorithm(name):
    cfg = read(SHIPPED[name])
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        assert type(build_model(cfg)) is META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)


def test_schedule_is_the_published_one(name):
    batch_size, lr, _, epochs, steps, warmup = RECIPES[name]
    solver = read(SHIPPED[name]).SOLVER
    iters_per_epoch = NUM_IMAGES // batch_size
    assert batch_size == solver.IMS_PER_BATCH
    assert lr == solver.BASE_LR
    assert epochs * iters_per_epoch == solver.MAX_ITER
    assert tuple(step * iters_per_epoch for step in steps) == solver.STEPS
    assert warmup * iters_per_epoch == solver.WARMUP_ITERS
    assert (0.4 if name == "odc" else 0.1) == solver.GAMMA


def test_head_and_sampler_are_the_published_ones(name):
    _, lr, weight_decay, *_ = RECIPES[name]
    cfg = read(SHIPPED[name])
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    options = {
        p: (group["lr"], group["weight_decay"], group["momentum"])
        for group in build_optimizer(cfg, model).param_groups
        for p in group["params"]
    }
    of_head, init_std, sampler = HEADS[name]
    assert {options[p] for p in model.backbone.parameters()} == {(lr, weight_decay, 0.9)}
    assert {options[p] for p in model.head.parameters()} == {(lr, *of_head)}
    assert model.head.init_std == init_std
    assert sampler == cfg.DATALOADER.SAMPLER_TRAIN


def test_published_views_have_their_sizes(name):
    (view,) = build_views(read(SHIPPED[name]))
    images, _ = view.images(np.zeros((300, 400, 3), dtype=np.uint8))
    num_views, size = VIEWS[name]
    assert [image.shape for image in images] == [(size, size, 3)] * num_views


def test_losses_are_finite_scalars_that_reach_all_that_learns(name, batch):
    model = build(name)
    losses = model(batch)
    assert list(losses) == ["loss"]
    assert losses["loss"].shape == () and losses["loss"].isfinite()
    losses["loss"].backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_loss_under_autocast_is_near_that_in_float32(name, batch):
    model, half = build(name).eval(), build(name).eval()  # without dropout
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = half(batch, mode="loss")
    torch.testing.assert_close(losses, model(batch, mode="loss"), rtol=0.1, atol=0.05)
    assert losses["loss"].dtype == torch.float32


def test_features_change_nothing(name, batch):
    model = build(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(batch)
    model(batch, mode="predict")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_loss_changes_the_buffers_that_it_should_and_no_others(name, batch):
    model = build(name)
    before = {key: value.clone() for key, value in model.named_buffers()}
    for _ in range(10):  # so that the centroids of ODC are computed anew
        model(batch)
    changed = {key for key, value in model.named_buffers() if not torch.equal(value, before[key])}
    statistics = {key for key in changed if "running_" in key or "num_batches_tracked" in key}
    assert changed - statistics == CHANGED_BUFFERS[name]


def test_plain_trainer_trains_it(name, batch):
    model, cfg = build(name), read(f"tiny/{name}")
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    trainer = SimpleTrainer(model, iter([batch] * 3), build_optimizer(cfg, model))
    trainer.train(0, 3)
    assert {key for key, p in model.named_parameters() if torch.equal(p, before[key])} == set()


def test_unknown_mode_is_an_error(name, batch):
    with pytest.raises(RuntimeError, match="mode is 'features'"):
        build(name)(batch, mode="features")
