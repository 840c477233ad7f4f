import errno
import os

import pytest
import torch

from detlib.checkpoint import DetectionCheckpointer
from detlib.engine.hooks import BestCheckpointer, CallbackHook, PeriodicCheckpointer
from detlib.utils.errors import CheckpointError
from tests.engine.toy import toy_trainer


class Disk:
    """Takes the place of ``torch.save``: fails while it is full."""

    def __init__(self, monkeypatch):
        self.is_full = False
        self.save = torch.save
        monkeypatch.setattr(torch, "save", self)

    def __call__(self, data, file):
        if self.is_full:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        self.save(data, file)


def files(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".pth"))


def train(folder, max_iter, period=1, keep=None, start=0, hook=None, **kwargs):
    trainer = toy_trainer(1)
    checkpointer = DetectionCheckpointer(trainer.model, str(folder))
    periodic = PeriodicCheckpointer(checkpointer, period, max_to_keep=keep, **kwargs)
    trainer.register_hooks([hook, periodic])
    trainer.train(start, max_iter)


def test_full_disk_is_an_error_in_the_log_and_the_training_goes_on(tmp_path, monkeypatch, log):
    disk = Disk(monkeypatch)

    def fill(trainer):
        disk.is_full = trainer.iter == 1

    train(tmp_path, 4, hook=CallbackHook(before_step=fill))
    assert files(tmp_path) == ["model_0000000.pth", "model_0000002.pth", "model_0000003.pth", "model_final.pth"]
    errors = {record.getMessage() for record in log.records if record.levelname == "ERROR"}
    assert len(errors) == 1
    assert "model_0000001 WAS NOT WRITTEN" in (error := errors.pop())
    assert "No space left on device" in error


def test_full_disk_at_the_end_is_raised_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)

    def fill(trainer):
        disk.is_full = trainer.iter > 1

    with pytest.raises(CheckpointError, match="No space left on device"):
        train(tmp_path, 4, period=2, hook=CallbackHook(before_step=fill))
    assert files(tmp_path) == ["model_0000001.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_best_model_that_cannot_be_written_is_tried_again(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    trainer = toy_trainer(1)
    hook = BestCheckpointer(1, DetectionCheckpointer(trainer.model, str(tmp_path)), "AP")

    def evaluate(trainer):
        disk.is_full = trainer.iter == 1
        trainer.storage.put_scalar("AP", (10, 30, 20, 0)[trainer.iter], smoothing_hint=False)

    trainer.register_hooks([CallbackHook(after_step=evaluate), hook])
    trainer.train(0, 4)
    assert (hook.best_metric, hook.best_iter) == (20, 2)  # The 30 of iteration 1 is in no file.
    assert torch.load(tmp_path / "model_best.pth")["iteration"] == 2


def test_so_many_checkpoints_are_kept_also_after_a_resume(tmp_path):
    (tmp_path / "model_best.pth").touch()
    train(tmp_path, 3, keep=2)
    assert files(tmp_path) == ["model_0000001.pth", "model_0000002.pth", "model_best.pth", "model_final.pth"]
    train(tmp_path, 4, keep=2, start=3)
    assert files(tmp_path) == ["model_0000002.pth", "model_0000003.pth", "model_best.pth", "model_final.pth"]


def test_nothing_is_deleted_when_the_new_checkpoint_is_no_good(tmp_path, monkeypatch, log):
    train(tmp_path, 2)
    write = os.replace

    def write_damaged(source, target):
        if target.endswith("2.pth"):
            with open(source, "r+b") as file:
                file.seek(100)
                file.write(b"?")
        write(source, target)

    monkeypatch.setattr(os, "replace", write_damaged)
    train(tmp_path, 3, keep=1, start=2)
    assert files(tmp_path)[:3] == ["model_0000000.pth", "model_0000001.pth", "model_0000002.pth"]
    assert "Older checkpoints are kept" in log.text


def test_checkpoints_of_a_later_iteration_are_not_touched(tmp_path):
    (tmp_path / "model_0000099.pth").touch()
    train(tmp_path, 2, keep=1)
    assert files(tmp_path) == ["model_0000001.pth", "model_0000099.pth", "model_final.pth"]
