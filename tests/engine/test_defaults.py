import json

import numpy as np
import pytest
import torch
from torch import nn

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.engine import DefaultPredictor, DefaultTrainer, HookBase
from detlib.engine.train_loop import AMPTrainer, SimpleTrainer
from detlib.evaluation import DatasetEvaluator
from detlib.modeling import build_model
from detlib.modeling.preprocessing import ImagePreprocessor
from detlib.modeling.self_supervised import SelfSupModel
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import ConfigError
from detlib.utils.events import log_scalar

from .toy import Batches, ToyModel, interrupted_and_resumed


class ToyTrainer(DefaultTrainer):
    """Trains the toy model with what the config says."""

    @classmethod
    def build_model(cls, cfg):
        return ToyModel()

    @classmethod
    def build_train_loader(cls, cfg):
        return Batches(1)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 4, (2,), 0
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 1.0, 0.0, 0.0
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    return cfg


def test_training_follows_the_config_and_writes_its_files(cfg, tmp_path):
    trainer = ToyTrainer(cfg)
    trainer.train()
    # Steps of 1, 1, 0.1, 0.1 with a gradient of 1.
    assert trainer.model.weight.item() == pytest.approx(1 - 2.2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"metrics.json", "model_0000001.pth", "model_0000003.pth", "model_final.pth", "last_checkpoint"}


def test_every_event_reaches_hooks_also_after_backward(cfg):
    class Look(HookBase):
        gradients = ()

        def after_backward(self):
            self.gradients += (self.trainer.model.weight.grad.item(), self.trainer.storage.iter)

    hook = Look()
    trainer = ToyTrainer(cfg)
    trainer.register_hooks([hook])
    trainer.train()
    assert hook.gradients == (1, 0, 1, 1, 1, 2, 1, 3)


def test_resumed_training_ends_where_an_uninterrupted_one_does(cfg, tmp_path):
    second = interrupted_and_resumed(ToyTrainer, cfg)
    assert second.start_iter == 2  # model_0000001.pth is the last checkpoint
    assert second.model.num_calls == 2
    second.train()
    assert second.model.weight.item() == pytest.approx(1 - 2.2)


def test_resume_without_a_checkpoint_starts_at_the_beginning(cfg):
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0


def test_frozen_layers_without_weights_are_warned_of(cfg, log):
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert "frozen" not in log.text
    trainer.model.weight.requires_grad = False
    trainer.resume_or_load(resume=False)
    assert "they stay random" in log.text and "MODEL.BACKBONE.FREEZE_AT=0" in log.text


def test_layers_that_are_frozen_on_purpose_are_not_warned_of(cfg, log):
    trainer = ToyTrainer(cfg)
    trainer.model.weight.requires_grad = False
    trainer.model.frozen_on_purpose = True
    trainer.resume_or_load(resume=False)
    assert "frozen" not in log.text


def test_checkpoint_in_the_layout_of_older_versions_resumes(cfg):
    trainer = ToyTrainer(cfg)
    optimizer = trainer.optimizer.state_dict()
    state = {
        "iteration": 1,
        "hooks": {"LRScheduler": {"base_lrs": [1.0], "last_epoch": 2}},
        "_trainer": {"iteration": 1, "optimizer": optimizer},
    }
    trainer.load_state_dict(state)
    assert trainer.iter == 1
    assert trainer.scheduler.last_epoch == 2
    assert set(trainer.state_dict()) == {"iteration", "hooks", "_trainer"}
    assert "hooks" not in trainer.state_dict()["_trainer"]


def test_amp_is_chosen_by_the_config(cfg):
    assert type(ToyTrainer(cfg)._trainer) is SimpleTrainer
    cfg.SOLVER.AMP.ENABLED = True
    assert type(ToyTrainer(cfg)._trainer) is AMPTrainer


def test_model_data_loader_and_optimizer_are_those_of_the_held_trainer(cfg):
    trainer = ToyTrainer(cfg)
    assert trainer.model is trainer._trainer.model
    trainer.data_loader = Batches(2)
    assert trainer._trainer.data_loader.values == (2,)


def test_config_turns_hooks_on(cfg):
    def names():
        return {type(hook).__name__ for hook in ToyTrainer(cfg).build_hooks() if hook is not None}

    optional = {"PreciseBN", "VisualizePredictions"}
    assert not names() & optional
    cfg.VIS_PERIOD, cfg.TEST.PRECISE_BN.ENABLED = 10, True
    assert names() >= optional


class CountImages(DatasetEvaluator):
    def reset(self):
        self.count = 0

    def process(self, inputs, outputs):
        self.count += len(inputs)

    def evaluate(self):
        return {"images": {"count": self.count}}


class EvaluatingTrainer(ToyTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return CountImages()

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return [[{"x": torch.tensor(1.0)}]] * len(dataset_name)


def test_evaluation_at_the_end_is_returned_and_stored(cfg, tmp_path):
    cfg.DATASETS.TEST = ("ab",)
    assert EvaluatingTrainer(cfg).train() == {"images": {"count": 2}}
    assert '"images/count": 2.0' in (tmp_path / "metrics.json").read_text()


def test_results_of_several_datasets_are_told_apart(cfg):
    cfg.DATASETS.TEST = ("ab", "abc")
    results = EvaluatingTrainer.test(cfg, ToyModel())
    assert results == {"ab": {"images": {"count": 2}}, "abc": {"images": {"count": 3}}}


class ToySelfSupModel(SelfSupModel):
    """Its features are the pixels that it is given, plus a bias; training draws random numbers, as masks do."""

    def __init__(self):
        backbone = nn.Conv2d(3, 3, 1)
        super().__init__(
            preprocessor=ImagePreprocessor([0.0] * 3, [1.0] * 3), backbone=Named(backbone), in_feature="map"
        )

    def loss(self, views, samples):
        loss = (self.feature_map(views[0]) * torch.randn(3, 1, 1)).mean()
        log_scalar("embedding_spread", loss.detach() * 0)
        return {"loss": loss}


class Named(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)

    def forward(self, images):
        return {"map": self.layer(images)}


class SelfSupTrainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        return ToySelfSupModel()


@pytest.fixture
def self_supervised_cfg(cfg):
    """Four training images, black in the first class and white in the second one, and two images to test."""
    samples = [{"image": np.full((4, 4, 3), 255 * (i % 2), dtype=np.uint8), "label": i % 2} for i in range(4)]
    samples[0]["image"][..., 0] = 10  # A direction for the cosine.
    samples[2]["image"][..., 0] = 10
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("black_white",), ("black_white_test",)
    for name, part in (("black_white", samples), ("black_white_test", samples[:2])):
        DatasetCatalog.register(name, lambda part=part: part)
    cfg.INPUT.VIEWS = [{"AUGMENTATIONS": [{"NAME": "RandomCrop", "CROP_TYPE": "absolute", "CROP_SIZE": [4, 4]}]}]
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR = 0, 2, 1e-6
    yield cfg
    for name in ("black_white", "black_white_test"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def test_self_supervised_model_is_evaluated_by_its_neighbours(self_supervised_cfg, tmp_path):
    self_supervised_cfg.TEST.EVAL_PERIOD = 2
    trainer = SelfSupTrainer(self_supervised_cfg)
    assert trainer.train() == {"knn": {"top1": 100.0}}
    assert trainer.model.training
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "knn/top1" in line] == [1, 4]


def test_evaluation_does_not_disturb_the_training(self_supervised_cfg):
    weights = []
    for period in (0, 1):
        self_supervised_cfg.TEST.EVAL_PERIOD = period
        seed_all_rng(0)
        trainer = SelfSupTrainer(self_supervised_cfg)
        trainer.train()
        weights.append(trainer.model.backbone.layer.weight)
    assert torch.equal(*weights)


def test_evaluator_of_the_user_goes_before_neighbours(self_supervised_cfg):
    results = SelfSupTrainer.test(self_supervised_cfg, ToySelfSupModel(), CountImages())
    assert results == {"images": {"count": 2}}


def test_collapse_is_warned_of(self_supervised_cfg, log):
    self_supervised_cfg.SOLVER.MAX_ITER, self_supervised_cfg.DATASETS.TEST = 100, ()
    SelfSupTrainer(self_supervised_cfg).train()
    assert "embedding_spread was about 0 in the last 100 iterations" in log.text


def test_expected_results_are_verified(cfg):
    cfg.DATASETS.TEST = ("ab",)
    cfg.TEST.EXPECTED_RESULTS = [["images", "count", 3, 0.5]]
    with pytest.raises(SystemExit):
        EvaluatingTrainer(cfg).train()


def test_trainer_without_evaluator_trains_and_warns(cfg, log):
    cfg.DATASETS.TEST = ("ab",)
    assert ToyTrainer(cfg).train() == {}
    assert "ToyTrainer must define build_evaluator" in log.text


def test_number_of_evaluators_must_be_that_of_datasets(cfg):
    cfg.DATASETS.TEST = ("ab", "abc")
    with pytest.raises(ConfigError, match=r"1 evaluators.*2 datasets"):
        EvaluatingTrainer.test(cfg, ToyModel(), CountImages())


def test_auto_scale_workers_keeps_the_batch_per_process(cfg):
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 16, 0.1, 5000
    cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD = (4000,), 500, 1000
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 16)
    solver = scaled.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (32, 0.2, 2500)
    assert (solver.STEPS, solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == ((2000,), 250, 500)
    assert solver.REFERENCE_WORLD_SIZE == 16
    assert scaled.is_frozen()
    assert cfg.SOLVER.IMS_PER_BATCH == 16


def test_auto_scale_workers_does_nothing_without_a_reference(cfg):
    assert DefaultTrainer.auto_scale_workers(cfg, 3) is cfg


def test_auto_scale_workers_refuses_a_batch_that_does_not_divide(cfg):
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH = 8, 12
    with pytest.raises(ConfigError, match="12 must be a multiple"):
        DefaultTrainer.auto_scale_workers(cfg, 4)


def test_wrong_number_of_classes_is_noticed_before_the_first_step(cfg):
    DatasetCatalog.register("one_class", list)
    MetadataCatalog.get("one_class").thing_classes = ["cat"]
    cfg.DATASETS.TRAIN = ("one_class",)
    try:
        with pytest.raises(ConfigError, match="'one_class' has 1 classes"):
            ToyTrainer(cfg)
    finally:
        DatasetCatalog.remove("one_class")
        MetadataCatalog.remove("one_class")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (48, 72, 3), dtype=np.uint8)


def test_predictor_gives_what_the_model_gives_for_the_resized_image(tiny_cfg, tmp_path, image):
    tiny_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    model = build_model(tiny_cfg).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    tiny_cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    tiny_cfg.INPUT.MIN_SIZE_TEST = 48  # no resizing
    tiny_cfg.DATASETS.TEST = ("some_name",)
    predictor = DefaultPredictor(tiny_cfg)
    found = predictor(image)["instances"]
    tensor = torch.from_numpy(image.astype("float32").transpose(2, 0, 1))
    with torch.no_grad():
        expected = model([{"image": tensor, "height": 48, "width": 72}])[0]["instances"]
    assert found.image_size == (48, 72)
    torch.testing.assert_close(found.scores, expected.scores)
    assert predictor.metadata is MetadataCatalog.get("some_name")


def test_predictor_takes_bgr_whatever_the_model_takes(tiny_cfg, image):
    seen = []
    for image_format in ("BGR", "RGB"):
        tiny_cfg.INPUT.FORMAT = image_format
        predictor = DefaultPredictor(tiny_cfg)
        predictor.model.forward = lambda inputs: [inputs[0]["image"]]
        seen.append(predictor(image))
    torch.testing.assert_close(seen[0], seen[1].flip(0))
    assert seen[0].shape == (3, 64, 96)


def test_predictor_warns_of_random_weights(tiny_cfg, log):
    tiny_cfg.MODEL.WEIGHTS = ""
    DefaultPredictor(tiny_cfg)
    assert "random weights" in log.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(np.zeros((4, 4)), r"\(4, 4\)"), (np.zeros((4, 4, 4)), "BGRA2BGR"), (torch.zeros(3, 4, 4), "Tensor")],
)
def test_predictor_refuses_what_is_no_bgr_image(tiny_cfg, wrong, message):
    with pytest.raises(ValueError, match=message):
        DefaultPredictor(tiny_cfg)(wrong)


def test_predictor_takes_the_augmentations_of_the_config(tiny_cfg, image):
    tiny_cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "Resize", "SHAPE": [48, 40]}, {"NAME": "CenterCrop", "SIZE": 32}]
    predictor = DefaultPredictor(tiny_cfg)
    seen = []
    predictor.model.forward = lambda inputs: seen.append(inputs[0]["image"].shape) or [{}]
    predictor(image)
    assert seen == [(3, 32, 32)]


def test_predictor_has_the_resizing_that_scripts_ask_for(tiny_cfg, image):
    transform = DefaultPredictor(tiny_cfg).aug.get_transform(image)
    assert transform.apply_image(image).shape[0] == 64


@pytest.mark.parametrize("start_iter", [0, 2])
def test_data_is_looked_at_before_the_first_step_but_not_when_resumed(cfg, monkeypatch, start_iter):
    looked = []
    monkeypatch.setattr("detlib.engine.defaults.check_briefly", lambda *args: looked.append(args))
    trainer = ToyTrainer(cfg)
    trainer.start_iter = start_iter
    trainer.train()
    assert looked == ([(cfg, trainer.data_loader)] if start_iter == 0 else [])
