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

# Beside statistics of batch norm, what a loss changes.
BANKS = ("feature_bank", "label_bank", "centroids", "class_weights", "num_steps")
CHANGED_BUFFERS = {
    "rotation_pred": set(),
    "relative_loc": set(),
    "deepcluster": set(),
    "odc": {
        f"memory_bank.{name}" for name in BANKS}
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
