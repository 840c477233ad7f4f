import os

import pytest
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.utils.errors import CheckpointError


def model_of(value):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


@pytest.fixture
def run(tmp_path):
    """A folder with checkpoints of iterations 9, 19 and 29, whose weight is the iteration."""
    for iteration in (9, 19, 29):
        DetectionCheckpointer(model_of(iteration), str(tmp_path)).save(f"model_{iteration:07d}", iteration=iteration)
    return tmp_path


def resumed(folder):
    model = model_of(0)
    DetectionCheckpointer(model, str(folder)).resume_or_load("", resume=True)
    return model.weight.item()


def damage(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_last_checkpoint_gives_way_to_the_one_before(run, caplog):
    before = sorted(os.listdir(run))
    damage(run / "model_0000029.pth")
    assert resumed(run) == 19
    damage(run / "model_0000019.pth")
    assert resumed(run) == 9
    assert sorted(os.listdir(run)) == before
    assert "model_0000029.pth" in next(r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert f"RESUMING FROM {run}/model_0000009.pth INSTEAD" in caplog.text


@pytest.mark.parametrize("content", [b"", b"model_0000039.pth", b"\x00\xff\x80 rubbish", None])
def test_last_checkpoint_that_names_nothing_gives_way_to_the_newest(run, caplog, content):
    (run / "last_checkpoint").unlink() if content is None else (run / "last_checkpoint").write_bytes(content)
    assert resumed(run) == 29
    assert "RESUMING FROM" in caplog.text


def test_checkpoints_of_a_longer_training_before_are_not_resumed(run):
    DetectionCheckpointer(model_of(5), str(run)).save("model_0000005", iteration=5)
    damage(run / "model_0000005.pth")
    with pytest.raises(CheckpointError, match=r"no checkpoint to resume from.*model_0000005\.pth.*without --resume"):
        resumed(run)


def test_best_model_is_not_resumed_while_there_are_others(run):
    DetectionCheckpointer(model_of(50), str(run)).save_aside("model_best")
    assert resumed(run) == 29
    damage(run / "model_0000029.pth")
    assert resumed(run) == 19


def test_folder_without_checkpoints_is_no_run(tmp_path):
    (tmp_path / "R-50.pth").write_bytes(b"weights of someone else")
    assert resumed(tmp_path) == 0
    assert not DetectionCheckpointer(model_of(0), str(tmp_path)).has_checkpoint()


def test_weights_that_are_asked_for_are_not_replaced_by_others(run):
    damage(run / "model_0000029.pth")
    with pytest.raises(CheckpointError, match="damaged"):
        DetectionCheckpointer(model_of(0), str(run)).load(str(run / "model_0000029.pth"))


def test_leftover_of_a_write_that_was_killed_is_removed_by_the_next(run):
    (run / ".model_0000035.pth.tmp").write_bytes(b"half of it")
    assert resumed(run) == 29
    DetectionCheckpointer(model_of(39), str(run)).save("model_0000039")
    assert not [name for name in os.listdir(run) if name.endswith(".tmp")]
