import time

import pytest
import torch
from fvcore.common.param_scheduler import MultiStepParamScheduler

from detlib.checkpoint import DetectionCheckpointer
from detlib.engine import HookBase, hooks
from detlib.solver import LRMultiplier
from detlib.utils.events import EventWriter

from .toy import KeepStorage, toy_trainer


class RecordingWriter(EventWriter):
    def __init__(self, trainer):
        self.trainer, self.written = trainer, []

    def write(self):
        self.written.append(self.trainer.iter)

    def close(self):
        self.written.append("closed")


def train_with(trainer, *new_hooks, start=0, end=1):
    """Trains and returns the storage."""
    keep = KeepStorage()
    trainer.register_hooks([*new_hooks, keep])
    trainer.train(start, end)
    return keep.storage


def test_callback_hook_calls_what_it_was_given():
    calls = []
    hook = hooks.CallbackHook(
        before_train=lambda trainer: calls.append("start"),
        after_step=lambda trainer: calls.append(trainer.iter),
        after_train=lambda trainer: calls.append("end"),
    )
    train_with(toy_trainer(1), hook, end=2)
    assert calls == ["start", 0, 1, "end"]


def test_iteration_timer_stores_times_after_its_warmup_and_logs_a_summary(log):
    storage = train_with(toy_trainer(1), hooks.IterationTimer(warmup_iter=2), end=5)
    assert [iteration for _, iteration in storage.history("time").values()] == [1, 2, 3, 4]
    assert "Speed: 4 iterations" in log.text


def test_iteration_timer_stores_the_images_per_second(monkeypatch):
    timer = hooks.IterationTimer(warmup_iter=0)
    monkeypatch.setattr(timer._step_timer, "seconds", lambda: 0.5)
    storage = train_with(toy_trainer(1), timer, end=1)
    assert storage.history("images_per_second").latest() == 2.0  # a batch of one in half a second


def test_long_waits_for_data_are_warned_of_once(log):
    class Slow(HookBase):
        def after_step(self):
            self.trainer.storage.put_scalars(time=1.0)

    trainer = toy_trainer(1)
    trainer._load_batch = lambda: type(trainer)._load_batch(trainer) and 0.5
    train_with(trainer, Slow(), hooks.DataWaitWarning(num_workers=0, period=2), end=6)
    assert log.text.count("50 % of the time of the last iterations was waiting for data. Raise") in (1, 2)  # pytest


def test_short_waits_for_data_are_not_warned_of(log):
    class Slow(HookBase):
        def after_step(self):
            self.trainer.storage.put_scalars(time=1000.0)

    train_with(toy_trainer(1), Slow(), hooks.DataWaitWarning(num_workers=0, period=2), end=6)
    assert "waiting for data" not in log.text


def test_iteration_timer_does_not_count_hooks():
    class Slow(HookBase):
        def after_step(self):
            time.sleep(0.05)

    storage = train_with(toy_trainer(1), hooks.IterationTimer(warmup_iter=0), Slow(), end=3)
    assert max(seconds for seconds, _ in storage.history("time").values()) < 0.05


def test_periodic_writer_writes_periodically_and_at_the_end():
    trainer = toy_trainer(1)
    writer = RecordingWriter(trainer)
    train_with(trainer, hooks.PeriodicWriter([writer], period=2), end=5)
    assert writer.written == [1, 3, 4, 5, "closed"]


def test_periodic_writer_refuses_what_is_no_writer():
    with pytest.raises(TypeError, match=r"EventWriter.*str"):
        hooks.PeriodicWriter(["metrics.json"])


def test_full_disk_keeps_metrics_from_being_written_but_not_the_training_from_going_on(log):
    class FullDisk(RecordingWriter):
        def write(self):
            raise OSError(28, "No space left on device")

    trainer = toy_trainer(1)
    other = RecordingWriter(trainer)
    train_with(trainer, hooks.PeriodicWriter([FullDisk(trainer), other], period=2), end=4)
    assert "METRICS ARE NOT WRITTEN by FullDisk: [Errno 28] No space left on device" in log.text
    assert trainer.iter == 4
    assert other.written


def test_periodic_checkpointer_saves_periodically_and_at_the_end(tmp_path):
    trainer = toy_trainer(1)
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    train_with(trainer, hooks.PeriodicCheckpointer(checkpointer, period=2), end=5)
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        "model_0000001.pth",
        "model_0000003.pth",
        "model_final.pth",
    }
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize(("mode", "best", "best_iter"), [("max", 5.0, 1), ("min", 1.0, 3)])
def test_best_checkpointer_keeps_the_best(tmp_path, mode, best, best_iter):
    trainer, metrics = toy_trainer(1), iter([3.0, 5.0, 4.0, 1.0])
    best_checkpointer = hooks.BestCheckpointer(1, DetectionCheckpointer(trainer.model, str(tmp_path)), "bbox/AP", mode)
    train_with(trainer, hooks.EvalHook(1, lambda: {"bbox": {"AP": next(metrics)}}), best_checkpointer, end=4)
    assert (best_checkpointer.best_metric, best_checkpointer.best_iter) == (best, best_iter)
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved["iteration"] == best_checkpointer.best_iter


def test_best_checkpointer_remembers_the_best_over_a_resume(tmp_path):
    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    first = hooks.BestCheckpointer(1, checkpointer, "AP")
    first.best_metric, first.best_iter = 7.0, 3
    second = hooks.BestCheckpointer(1, checkpointer, "AP")
    second.load_state_dict(first.state_dict())
    assert (second.best_metric, second.best_iter) == (7.0, 3)


def test_best_checkpointer_without_its_metric_saves_nothing(tmp_path):
    trainer = toy_trainer(1)
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    train_with(trainer, hooks.BestCheckpointer(1, checkpointer, "AP"), end=2)
    assert not list(tmp_path.glob("*.pth"))


def test_best_checkpointer_refuses_an_unknown_mode():
    with pytest.raises(ValueError, match="'best'"):
        hooks.BestCheckpointer(1, None, "AP", mode="best")


def test_lr_scheduler_steps_once_per_iteration_and_stores_the_rate():
    trainer = toy_trainer(1, lr=1.0)
    schedule = MultiStepParamScheduler([1, 0.1], milestones=[2], num_updates=4)
    storage = train_with(trainer, hooks.LRScheduler(scheduler=schedule), end=4)
    assert [value for value, _ in storage.history("lr").values()] == pytest.approx([1, 1, 0.1, 0.1])


def test_lr_scheduler_resumes_the_schedule():
    def build():
        trainer = toy_trainer(1, lr=1.0)
        schedule = MultiStepParamScheduler([1, 0.1], milestones=[2], num_updates=4)
        trainer.scheduler = LRMultiplier(trainer.optimizer, schedule, max_iter=4)
        return trainer

    first = build()
    train_with(first, hooks.LRScheduler(), end=2)
    second = build()
    second.register_hooks([hooks.LRScheduler()])
    second.load_state_dict(first.state_dict())
    storage = train_with(second, start=2, end=4)
    assert [value for value, _ in storage.history("lr").values()] == pytest.approx([0.1, 0.1])


def test_rate_of_the_largest_group_that_learns_is_shown_else_the_most_common():
    def best(*groups):
        params = [{"params": [torch.zeros(1) for _ in range(size)], "lr": lr} for size, lr in groups]
        return hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(params, lr=1.0))

    assert best((1, 0.1), (3, 0.2), (2, 0.3)) == 1
    assert best((1, 0.1), (1, 0.2), (1, 0.2)) == 1
    assert best((2, 0.1), (9, 0.0)) == 0


def test_eval_hook_evaluates_periodically_and_once_at_the_end():
    trainer, calls = toy_trainer(1), []

    def evaluate():
        calls.append(trainer.iter)
        return {"bbox": {"AP": 40, "per": {"cat": 50.0}}}

    storage = train_with(trainer, hooks.EvalHook(2, evaluate), end=4)
    assert calls == [1, 4]
    assert storage.latest()["bbox/AP"] == (40.0, 4)
    assert storage.latest()["bbox/per/cat"] == (50.0, 4)


def test_eval_hook_does_not_evaluate_after_a_failure():
    trainer, calls = toy_trainer(1, float("nan")), []
    trainer.register_hooks([hooks.EvalHook(0, lambda: calls.append(1))])
    with pytest.raises(FloatingPointError):
        trainer.train(0, 2)
    assert calls == []


@pytest.mark.parametrize("results", [[1], {"AP": "high"}])
def test_eval_hook_refuses_results_that_are_no_numbers(results):
    trainer = toy_trainer(1)
    trainer.register_hooks([hooks.EvalHook(1, lambda: results)])
    with pytest.raises(TypeError, match="an evaluation must return"):
        trainer.train(0, 2)


def test_progress_bar_counts_iterations_on_a_terminal_only(capsys, monkeypatch):
    train_with(toy_trainer(1), hooks.ProgressBar(), end=20)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train_with(toy_trainer(1), hooks.ProgressBar(), end=20)
    bar = capsys.readouterr().err
    assert "20/20" in bar
    assert "total_loss" in bar
