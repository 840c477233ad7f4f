import itertools

import pytest
import torch
from torch.utils.data import IterableDataset

from detlib.config import get_cfg
from detlib.data import build_detection_train_loader
from detlib.engine import DefaultTrainer
from detlib.engine.schedule import num_samples_of, with_iterations
from detlib.solver import build_lr_scheduler
from detlib.utils.errors import ConfigError, DatasetError

from .toy import ToyModel


def loader_of(num_samples, batch_size=1, **kwargs):
    samples = [{"x": torch.tensor(float(i)), "width": 1, "height": 1} for i in range(num_samples)]
    return build_detection_train_loader(samples, mapper=None, total_batch_size=batch_size, **kwargs)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.SOLVER.IMS_PER_BATCH = 4
    return cfg


def test_passes_become_iterations_of_all_lengths(cfg):
    cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.STEP_EPOCHS, cfg.SOLVER.WARMUP_EPOCHS = 12, (8, 11), 0.5
    cfg.SOLVER.CHECKPOINT_EPOCHS, cfg.TEST.EVAL_EPOCHS = 1, 2
    cfg.freeze()
    resolved = with_iterations(cfg, loader_of(10))  # 2.5 batches of 4 are a pass
    solver = resolved.SOLVER
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (30, (20, 28), 2)
    assert (solver.CHECKPOINT_PERIOD, resolved.TEST.EVAL_PERIOD) == (3, 5)
    assert resolved.is_frozen() and cfg.SOLVER.MAX_ITER == 40000


def test_lengths_without_passes_stay(cfg):
    cfg.SOLVER.MAX_EPOCH = 0.5
    solver = with_iterations(cfg, loader_of(80)).SOLVER
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (10, (30000,), 1000)
    cfg.SOLVER.MAX_EPOCH = 0
    assert with_iterations(cfg, None) is cfg


def test_resolved_config_is_saved_and_may_be_resolved_again(cfg, tmp_path):
    cfg.SOLVER.MAX_EPOCH = 2
    (tmp_path / "config.yaml").write_text("# the command\nSEED: 3\n")
    with_iterations(cfg, loader_of(10))
    text = (tmp_path / "config.yaml").read_text()
    assert text.startswith("# the command\n")
    again = get_cfg()
    again.merge_from_file(tmp_path / "config.yaml")
    assert (again.SOLVER.MAX_ITER, again.SOLVER.MAX_EPOCH) == (5, 2)
    assert with_iterations(again, loader_of(10)) == again


def test_passes_are_counted_with_the_scaled_batch(cfg):
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_EPOCH = 1, 2, 3
    scaled = DefaultTrainer.auto_scale_workers(cfg, 4)
    assert with_iterations(scaled, loader_of(16)).SOLVER.MAX_ITER == 6  # of 8 images


def test_iterations_of_a_file_give_way_and_are_told(cfg, tmp_path, log):
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 90000, MAX_EPOCH: 2}\n")
    cfg.merge_from_file(tmp_path / "base.yaml")
    with_iterations(cfg, loader_of(8))
    assert "SOLVER.MAX_EPOCH 2 = SOLVER.MAX_ITER 4, in place of 90000" in log.text and "base.yaml:1" in log.text


def test_iterations_of_the_command_line_are_not_passed_over(cfg):
    cfg.SOLVER.MAX_EPOCH = 2
    cfg.merge_from_list(["SOLVER.MAX_ITER", "100"])
    with pytest.raises(ConfigError, match=r"SOLVER.MAX_ITER 100 of the command line.*also give SOLVER.MAX_EPOCH 0"):
        with_iterations(cfg, loader_of(8))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MAX_EPOCH", -1, "MAX_EPOCH is -1"),
        ("STEP_EPOCHS", (8, 3), "must rise"),
        ("STEP_EPOCHS", (8, 12), "reach the end"),
        ("STEP_EPOCHS", ("8",), "counted by numbers"),
    ],
)
def test_passes_that_make_no_sense_are_refused(cfg, key, value, message):
    cfg.SOLVER.MAX_EPOCH = 12
    cfg.SOLVER[key] = value
    with pytest.raises(ConfigError, match=message):
        with_iterations(cfg, loader_of(8))


def test_data_without_a_length_has_no_passes(cfg):
    class Stream(IterableDataset):
        def __iter__(self):
            return itertools.repeat({"x": 1})

    cfg.SOLVER.MAX_EPOCH = 12
    loader = build_detection_train_loader(Stream(), mapper=None, total_batch_size=2)
    with pytest.raises(DatasetError, match=r"SOLVER.MAX_EPOCH counts passes.*set SOLVER.MAX_ITER"):
        with_iterations(cfg, loader)


@pytest.mark.parametrize("grouping", [False, True])
def test_length_of_the_data_is_found_below_the_loader(grouping):
    assert num_samples_of(loader_of(7, batch_size=2, aspect_ratio_grouping=grouping)) == 7


def test_trainer_builds_the_model_of_resolved_iterations(cfg):
    seen = []

    class Trainer(DefaultTrainer):
        @classmethod
        def build_model(cls, cfg):
            seen.append(cfg.SOLVER.MAX_ITER)
            return ToyModel()

        @classmethod
        def build_train_loader(cls, cfg):
            seen.append("loader")
            return loader_of(10)

    cfg.SOLVER.MAX_EPOCH = 2
    trainer = Trainer(cfg)
    assert seen == ["loader", 5] and trainer.max_iter == 5 and trainer.cfg.SOLVER.MAX_ITER == 5


def test_cosine_schedule_of_rate_zero_is_zero(cfg):
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.BASE_LR = "WarmupCosineLR", 0.0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    assert build_lr_scheduler(cfg, optimizer).get_last_lr() == [0.0]
