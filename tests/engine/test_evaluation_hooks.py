import csv
import math
import random

import pytest
import torch

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import get_cfg
from detlib.engine import evaluation_hooks, hooks
from detlib.engine.evaluation_hooks import build_selection
from detlib.engine.evaluation_record import EvaluationRecord
from detlib.utils.errors import ConfigError

from .toy import KeepStorage, toy_trainer


def train_with(trainer, *new_hooks, start=0, end=1):
    """Trains and returns the storage."""
    keep = KeepStorage()
    trainer.register_hooks([*new_hooks, keep])
    trainer.train(start, end)
    return keep.storage


def evaluation_of(values, period=1, **kwargs):
    values = iter(values)
    return hooks.EvalHook(period, lambda: {"bbox": {"AP": next(values), "AP50": 0.0}}, **kwargs)


def rows(folder):
    with open(folder / "results.csv") as f:
        return list(csv.DictReader(f))


def test_evaluation_leaves_random_numbers_as_they_were():
    def draw():
        return random.random(), torch.rand(1).item()

    random.seed(0)
    torch.manual_seed(0)
    expected = draw()
    random.seed(0)
    torch.manual_seed(0)
    train_with(toy_trainer(1), hooks.EvalHook(1, lambda: {"drawn": sum(draw())}), end=2)
    assert draw() == expected


def test_first_metric_of_the_first_evaluation_chooses_the_best_model(tmp_path):
    trainer = toy_trainer(1)
    best = hooks.BestCheckpointer(1, DetectionCheckpointer(trainer.model, str(tmp_path)), "", "auto")
    train_with(trainer, evaluation_of([3.0, 5.0, 4.0]), best, end=3)
    assert best.state_dict() == {"best_metric": 5.0, "best_iter": 1, "val_metric": "bbox/AP"}


def test_metric_that_is_not_a_number_is_never_best(tmp_path):
    trainer = toy_trainer(1)
    best = hooks.BestCheckpointer(1, DetectionCheckpointer(trainer.model, str(tmp_path)), "bbox/AP")
    train_with(trainer, evaluation_of([math.nan, 2.0, math.nan]), best, end=3)
    assert (best.best_metric, best.best_iter) == (2.0, 1)


def test_less_of_a_loss_is_better(tmp_path):
    trainer, losses = toy_trainer(1), iter([3.0, 1.0, 2.0])
    best = hooks.BestCheckpointer(1, DetectionCheckpointer(trainer.model, str(tmp_path)), "validation_loss", "auto")
    train_with(trainer, hooks.EvalHook(1, lambda: {"validation_loss": next(losses)}), best, end=3)
    assert (best.best_metric, best.best_iter) == (1.0, 1)


def test_best_model_is_not_the_one_to_resume_from(tmp_path):
    trainer = toy_trainer(1)
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    checkpoints = hooks.PeriodicCheckpointer(checkpointer, period=1)
    best = hooks.BestCheckpointer(1, checkpointer, "bbox/AP")
    train_with(trainer, checkpoints, evaluation_of([1.0, 2.0]), best, end=2)
    assert (tmp_path / "model_best.pth").exists()
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_best_by_another_metric_than_before_starts_anew(tmp_path):
    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    best = hooks.BestCheckpointer(1, checkpointer, "bbox/AP50")
    best.load_state_dict({"best_metric": 70.0, "best_iter": 3, "val_metric": "bbox/AP"})
    assert best.best_metric is None


def test_misspelt_metric_is_told(tmp_path, log):
    trainer = toy_trainer(1)
    best = hooks.BestCheckpointer(1, DetectionCheckpointer(trainer.model, str(tmp_path)), "bbox/ap")
    train_with(trainer, evaluation_of([1.0, 2.0]), best, end=2)
    assert "Did you mean 'bbox/AP'? There are: bbox/AP, bbox/AP50" in log.text


class CountSteps(hooks.HookBase):
    steps = 0

    def before_step(self):
        self.steps += 1


def stopping(trainer, folder, **kwargs):
    return hooks.EarlyStopping(1, DetectionCheckpointer(trainer.model, str(folder), trainer=trainer), "", **kwargs)


def test_training_stops_after_two_evaluations_without_a_better_one(tmp_path):
    trainer, count = toy_trainer(1), CountSteps()
    evaluation = evaluation_of([1.0, 3.0, 2.0, 3.0])  # A further one would raise StopIteration.
    train_with(trainer, count, evaluation, stopping(trainer, tmp_path, patience=2), end=100)
    assert count.steps == trainer.iter == trainer.max_iter == 4
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["iteration"] == saved["trainer"]["iteration"] == 3
    assert saved["trainer"]["hooks"]["EarlyStopping"]["num_without"] == 2


def test_improvement_below_min_delta_is_none(tmp_path):
    trainer = toy_trainer(1)
    evaluation = evaluation_of([1.0, 1.4, 1.4, 1.4])
    train_with(trainer, evaluation, stopping(trainer, tmp_path, patience=2, min_delta=0.5), end=100)
    assert trainer.iter == 3


def test_resumed_training_counts_on(tmp_path):
    first, second = toy_trainer(1), toy_trainer(1)
    train_with(first, evaluation_of([3.0, 2.0, 1.0]), stopping(first, tmp_path, patience=3), end=3)  # Two in steps.
    second.register_hooks([hook := stopping(second, tmp_path, patience=3)])
    second.load_state_dict({**first.state_dict(), "iteration": 1})
    second._hooks.clear()
    train_with(second, evaluation_of([2.0, 1.0]), hook, start=2, end=100)
    assert second.iter == 4  # one without improvement before, two after


def test_training_that_was_stopped_stays_so(tmp_path):
    first, second = toy_trainer(1), toy_trainer(1)
    train_with(first, evaluation_of([3.0, 2.0]), stopping(first, tmp_path, patience=1), end=100)
    hook, count = stopping(second, tmp_path, patience=1), CountSteps()
    hook.load_state_dict(first.state_dict()["hooks"]["EarlyStopping"])
    train_with(second, evaluation_of([5.0]), hook, count, start=2, end=100)
    assert count.steps == 0
    assert second.iter == 2


@pytest.mark.parametrize(
    ("patience", "period", "mode", "message"),
    [(3, 0, "auto", "EVAL_PERIOD"), (-1, 5, "auto", "PATIENCE -1"), (1, 5, "most", "TEST.BEST.MODE")],
)
def test_config_that_cannot_be_followed_is_refused(patience, period, mode, message):
    cfg = get_cfg()
    cfg.TEST.EARLY_STOPPING.PATIENCE, cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST.MODE = patience, period, mode
    with pytest.raises(ConfigError, match=message):
        build_selection(cfg, None)


def test_results_are_a_row_each_with_losses_and_epoch(tmp_path):
    record = EvaluationRecord(str(tmp_path), iters_per_epoch=4)
    train_with(toy_trainer(2, lr=0.0), evaluation_of([1.5, 2.5], period=2, record=record), end=4)
    first, last = rows(tmp_path)
    assert first == {
        "iteration": "1",
        "epoch": "0.5",
        "train/total_loss": "2.0",
        "train/loss": "2.0",
        "bbox/AP": "1.5",
        "bbox/AP50": "0.0",
    }
    assert (last["iteration"], last["epoch"], last["bbox/AP"]) == ("3", "1.0", "2.5")


def test_resumed_training_goes_on_with_the_rows_that_it_does_not_repeat(tmp_path):
    record = EvaluationRecord(str(tmp_path))
    train_with(toy_trainer(1), evaluation_of([1.0, 2.0, 3.0, 4.0], record=record), end=4)
    train_with(toy_trainer(1), evaluation_of([30.0, 40.0], record=EvaluationRecord(str(tmp_path))), start=2, end=4)
    assert [float(row["bbox/AP"]) for row in rows(tmp_path)] == [1.0, 2.0, 30.0, 40.0]


def test_evaluation_that_a_kill_prevented_comes_first(tmp_path):
    evaluation = evaluation_of([7.0, 8.0], period=2, record=EvaluationRecord(str(tmp_path)))
    storage = train_with(toy_trainer(1), evaluation, start=2, end=4)
    assert storage.history("bbox/AP").values() == [(7.0, 1), (8.0, 4)]
    assert [row["iteration"] for row in rows(tmp_path)] == ["1", "3"]


def test_best_model_is_that_of_an_evaluation_after_the_checkpoint_that_is_resumed(tmp_path):
    train_with(toy_trainer(1), evaluation_of([9.0, 1.0], period=2, record=EvaluationRecord(str(tmp_path))), end=4)
    trainer = toy_trainer(1)
    best = hooks.BestCheckpointer(2, DetectionCheckpointer(trainer.model, str(tmp_path)), "")
    evaluation = evaluation_of([8.0], period=2, record=EvaluationRecord(str(tmp_path)))  # That of before is known.
    train_with(trainer, evaluation, best, start=2, end=4)
    assert (best.best_metric, best.best_iter) == (9.0, 1)


def test_change_to_the_best_before_is_logged_also_of_single_classes(tmp_path, log):
    values = iter([10.0, 30.0, 25.0])
    evaluation = hooks.EvalHook(
        1, lambda: {"bbox": {"AP": 1.0, "AP-cat": next(values)}}, record=EvaluationRecord(str(tmp_path))
    )
    train_with(toy_trainer(1), evaluation, end=3)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in log.text.splitlines()]
    cats = dict.fromkeys(tuple(line[1:]) for line in lines if line[0] == "bbox/AP-cat")  # pytest may log it twice.
    assert list(cats) == [("10", "-", "-", "-"), ("30", "10", "0", "+20"), ("25", "30", "1", "-5")]


def test_damaged_file_of_results_is_told_and_not_used(tmp_path, log):
    (tmp_path / "results.csv").write_text("iteration,bbox/AP\n1,many\n")
    evaluation = evaluation_of([2.0, 3.0], period=2, record=EvaluationRecord(str(tmp_path)))
    train_with(toy_trainer(1), evaluation, start=2, end=4)
    assert "results.csv is not what was written" in log.text
    assert [row["bbox/AP"] for row in rows(tmp_path)] == ["2.0", "3.0"]


def test_process_without_results_stops_when_the_main_one_does(monkeypatch):
    decisions = iter([False, False, True])

    class OtherProcess:
        is_main_process = staticmethod(lambda: False)
        all_gather = staticmethod(lambda data: [next(decisions, data), data])
        synchronize = staticmethod(lambda: waits.append(trainer.iter))

    waits, trainer = [], toy_trainer(1)
    monkeypatch.setattr(evaluation_hooks, "comm", OtherProcess)
    evaluation = hooks.EvalHook(1, dict)
    train_with(trainer, evaluation, hooks.EarlyStopping(1, None, "", patience=2), start=0, end=100)
    assert trainer.iter == 2
    assert waits == [0, 1]  # and not once more at the end, where the main process evaluates nothing
