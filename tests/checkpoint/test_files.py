import pickle

import numpy as np
import pytest
import torch

from detlib.checkpoint.files import read_checkpoint, write_atomically
from detlib.utils.errors import CheckpointError
from detlib.utils.file_io import PathManager


class Unknown:
    """A type of a user's project."""


def write_pickle(path, content):
    with open(path, "wb") as f:
        pickle.dump(content, f)
    return str(path)


def test_torch_file_keeps_everything_that_was_saved(tmp_path):
    path = str(tmp_path / "model.pth")
    torch.save({"model": {"w": torch.ones(2)}, "iteration": 7, "best": np.float64(0.5)}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint["iteration"] == 7
    assert checkpoint["best"] == 0.5
    assert checkpoint["model"]["w"].tolist() == [1, 1]


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state"])
def test_weights_are_found_under_each_common_key(tmp_path, key):
    path = str(tmp_path / "model.pth")
    torch.save({key: {"w": torch.ones(2)}, "epoch": 3}, path)
    assert read_checkpoint(path)["model"]["w"].tolist() == [1, 1]


def test_bare_state_dict_becomes_the_model(tmp_path):
    path = str(tmp_path / "resnet.pth")
    torch.save(torch.nn.Linear(2, 1).state_dict(), path)
    assert list(read_checkpoint(path)["model"]) == ["weight", "bias"]


def test_zoo_pickle_keeps_its_flags(tmp_path):
    content = {"model": {"w": np.ones(2)}, "__author__": "somebody", "matching_heuristics": True}
    assert read_checkpoint(write_pickle(tmp_path / "zoo.pkl", content)).keys() == content.keys()


@pytest.mark.parametrize("wrap", [lambda blobs: blobs, lambda blobs: {"blobs": blobs}])
def test_caffe2_pickle_is_recognised_and_loses_its_momentum(tmp_path, wrap):
    blobs = {"conv1_w": np.ones(2), "conv1_w_momentum": np.ones(2)}
    checkpoint = read_checkpoint(write_pickle(tmp_path / "R-50.pkl", wrap(blobs)))
    assert checkpoint["__author__"] == "Caffe2"
    assert checkpoint["matching_heuristics"]
    assert list(checkpoint["model"]) == ["conv1_w"]


def test_safetensors_file_is_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"w": torch.ones(2)}, str(tmp_path / "model.safetensors"))
    assert read_checkpoint(str(tmp_path / "model.safetensors"))["model"]["w"].tolist() == [1, 1]


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_object_of_unknown_type_is_refused_by_name(tmp_path, suffix):
    path = str(tmp_path / f"model{suffix}")
    content = {"model": {"w": torch.ones(2).numpy()}, "extra": Unknown()}
    torch.save(content, path) if suffix == ".pth" else write_pickle(path, content)
    with pytest.raises(CheckpointError, match=r"test_files\.Unknown"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_cut_file_is_reported_as_damaged(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x02}q")
    with pytest.raises(CheckpointError, match="model"):
        read_checkpoint(str(path))


def test_file_without_weights_names_its_keys(tmp_path):
    path = str(tmp_path / "model.pth")
    torch.save({"epoch": 3, "loss": 0.5}, path)
    with pytest.raises(CheckpointError, match="'epoch', 'loss'"):
        read_checkpoint(path)


def test_kill_while_writing_leaves_the_earlier_file(tmp_path):
    path = str(tmp_path / "model.pth")
    write_atomically(PathManager, path, lambda f: f.write(b"earlier"))

    def killed(f):
        f.write(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(PathManager, path, killed)
    assert (tmp_path / "model.pth").read_bytes() == b"earlier"
    write_atomically(PathManager, path, lambda f: f.write(b"later"))
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]
    assert (tmp_path / "model.pth").read_bytes() == b"later"


def test_full_disk_is_reported_and_leaves_no_partial_file(tmp_path):
    def full(f):
        f.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        write_atomically(PathManager, str(tmp_path / "model.pth"), full)
    assert list(tmp_path.iterdir()) == []
