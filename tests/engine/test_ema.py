import pytest
import torch
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import get_cfg
from detlib.engine import DefaultTrainer
from detlib.engine.ema import ModelEMA, load_averages
from detlib.utils.errors import ConfigError

from .toy import Batches, ToyModel, interrupted_and_resumed, toy_trainer


class ToyTrainer(DefaultTrainer):
    """Its evaluation tells the weight."""

    @classmethod
    def build_model(cls, cfg):
        return ToyModel()

    @classmethod
    def build_train_loader(cls, cfg):
        return Batches(1)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {"weight": model.weight.item()}


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 4, (), 0
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 0.25, 0.0, 0.0
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    cfg.MODEL_EMA.ENABLED, cfg.MODEL_EMA.DECAY = True, 0.5
    return cfg


def average_of(weights, start, decay=0.5):
    """As many updates, each with the decay that is due."""
    average = start
    for t, weight in enumerate(weights):
        kept = min(decay, (1 + t) / (10 + t))
        average = kept * average + (1 - kept) * weight
    return average


def test_average_keeps_more_with_each_update_up_to_the_decay():
    trainer = toy_trainer(1, lr=0.25)
    ema = ModelEMA(trainer.model, decay=0.15)
    trainer.register_hooks([ema])
    trainer.train(0, 2)
    # Weights are 1, 0.75, 0.5; the first update keeps 1/10, the second would keep 2/11 and keeps 0.15.
    expected = 0.15 * (0.1 * 1 + 0.9 * 0.75) + 0.85 * 0.5
    assert ema.averages["weight"].item() == pytest.approx(expected)
    assert trainer.model.weight.item() == 0.5


def test_frozen_weights_and_buffers_are_those_of_the_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    ema = ModelEMA(model)
    model[1].running_mean.fill_(3.0)
    model[0].weight.fill_(5.0)
    assert list(ema.averages) == ["1.weight", "1.bias"]
    with ema.applied():
        assert model[1].running_mean.eq(3).all() and model[0].weight.eq(5).all()


def test_weights_that_are_loaded_before_training_are_where_the_average_begins():
    trainer = toy_trainer(0)
    ema = ModelEMA(trainer.model)
    trainer.register_hooks([ema])
    trainer.model.weight.data.fill_(7.0)
    trainer.train(0, 1)
    assert ema.averages["weight"].item() == pytest.approx(7.0)


@pytest.mark.parametrize("used", [True, False])
def test_evaluation_has_the_averages_and_training_goes_on_without(cfg, used):
    cfg.MODEL_EMA.USE_FOR_EVAL = used
    trainer = ToyTrainer(cfg)
    results = trainer.train()
    expected = average_of([0.75, 0.5, 0.25, 0.0], 1.0) if used else 0.0
    assert results["weight"] == pytest.approx(expected)
    assert trainer.model.weight.item() == 0.0


def test_best_model_has_the_weights_that_were_evaluated(cfg, tmp_path):
    cfg.TEST.EVAL_PERIOD = 2
    ToyTrainer(cfg).train()
    best = torch.load(tmp_path / "model_best.pth", weights_only=False)
    expected = average_of([0.75, 0.5], 1.0)
    assert best["model"]["weight"].item() == pytest.approx(expected)
    assert best["trainer"]["hooks"]["ModelEMA"]["averages"]["weight"].item() == pytest.approx(expected)


def test_final_file_has_the_averages_and_is_not_what_a_training_resumes(cfg, tmp_path):
    ToyTrainer(cfg).train()
    averages = torch.load(tmp_path / "model_ema_final.pth", weights_only=False)
    assert averages["model"]["weight"].item() == pytest.approx(average_of([0.75, 0.5, 0.25, 0.0], 1.0))
    assert "trainer" not in averages
    assert torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]["weight"].item() == 0.0
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_resumed_average_is_that_of_an_uninterrupted_training(cfg, tmp_path):
    second = interrupted_and_resumed(ToyTrainer, cfg)
    assert second.start_iter == 2
    second.train()
    resumed = torch.load(tmp_path / "model_ema_final.pth", weights_only=False)["model"]["weight"]
    cfg.OUTPUT_DIR = str(tmp_path / "other")
    ToyTrainer(cfg).train()
    assert torch.equal(
        resumed, torch.load(tmp_path / "other/model_ema_final.pth", weights_only=False)["model"]["weight"]
    )


def test_evaluation_of_a_checkpoint_has_its_averages(cfg, tmp_path):
    ToyTrainer(cfg).train()
    model = ToyModel()
    checkpoint = DetectionCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    load_averages(cfg, model, checkpoint)
    assert model.weight.item() == pytest.approx(average_of([0.75, 0.5, 0.25, 0.0], 1.0))
    cfg.MODEL_EMA.USE_FOR_EVAL = False
    DetectionCheckpointer(model).load(str(tmp_path / "model_final.pth"))
    load_averages(cfg, model, checkpoint)
    assert model.weight.item() == 0.0


@pytest.mark.parametrize(("key", "value", "message"), [("DECAY", 1.0, r"\[0, 1\)"), ("DECAY", -0.1, "DECAY is -0.1")])
def test_decay_that_averages_nothing_is_refused(cfg, key, value, message):
    cfg.MODEL_EMA[key] = value
    with pytest.raises(ConfigError, match=message):
        ToyTrainer(cfg)


def test_average_of_mixed_precision_is_of_whole_precision(cfg):
    cfg.SOLVER.AMP.ENABLED = True
    trainer = ToyTrainer(cfg)
    trainer.train()
    ema = next(hook for hook in trainer._hooks if isinstance(hook, ModelEMA))
    assert ema.averages["weight"].dtype == torch.float32
    assert ema.averages["weight"].item() == pytest.approx(average_of([0.75, 0.5, 0.25, 0.0], 1.0))
