"""What the algorithms that classify have in common, tested on their tiny configs."""

from pathlib import Path

import pytest
import torch

from detlib.config import get_cfg
from detlib.engine import SimpleTrainer
from detlib.modeling import META_ARCH_REGISTRY, build_model
from detlib.solver import build_optimizer
from detlib.utils.events import EventStorage

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

pytestmark = pytest.mark.parametrize("name", CHANGED_BUFFERS)


def read(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
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


def test_checkpoint_resumes_the_next_loss(name, batch):
    model, resumed = build(name), build(name, seed=1)
    for _ in range(2):
        model(batch)
    resumed.load_state_dict(model.state_dict())
    losses = []
    for each in (model, resumed):
        torch.manual_seed(2)  # for the dropout
        losses.append(each(batch))
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


def test_plain_trainer_trains_it(name, batch):
    model, cfg = build(name), read(f"tiny/{name}")
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    trainer = SimpleTrainer(model, iter([batch] * 3), build_optimizer(cfg, model))
    trainer.train(0, 3)
    assert {key for key, p in model.named_parameters() if torch.equal(p, before[key])} == set()


def test_spread_of_the_embeddings_is_in_the_log(name, batch):
    model = build(name)
    with EventStorage() as storage:
        model(batch)
        assert 0 < storage.latest()["embedding_spread"][0] < 1.1


def test_unknown_mode_is_an_error(name, batch):
    with pytest.raises(RuntimeError, match="mode is 'features'"):
        build(name)(batch, mode="features")
