import logging
import os
import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from detlib.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detlib.checkpoint import files as checkpoint_files
from detlib.layers import FrozenBatchNorm2d
from detlib.utils.errors import CheckpointError, MissingFileError


def small_model(value=0.0, num_classes=3):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, num_classes, 1))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def save_pickle(path, content):
    with open(path, "wb") as f:
        pickle.dump(content, f)
    return str(path)


class Wrapped(nn.Module):
    """Holds a backbone, as detectors do."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


class Block(nn.Module):
    """A convolution with its frozen norm, under detlib's names."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 1, bias=False)
        self.conv1.norm = FrozenBatchNorm2d(2)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_saved_model_and_optimizer_are_restored(tmp_path, wrap):
    model = small_model(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    DetectionCheckpointer(wrap(model), str(tmp_path), optimizer=optimizer).save("model_0000009", iteration=9)

    other = small_model()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    rest = DetectionCheckpointer(wrap(other), str(tmp_path), optimizer=other_optimizer).resume_or_load("")
    assert rest["iteration"] == 9
    assert other_optimizer.param_groups[0]["lr"] == 0.5
    assert all((parameter == 1).all() for parameter in other.parameters())


def test_load_without_resume_takes_the_model_only(tmp_path):
    model = small_model(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model")
    optimizer.param_groups[0]["lr"] = 0.1
    checkpointer.resume_or_load(str(tmp_path / "model.pth"), resume=False)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_empty_path_loads_nothing():
    assert DetectionCheckpointer(small_model()).load("") == {}


def test_failed_save_leaves_the_last_checkpoint_as_it_was(tmp_path, monkeypatch):
    checkpointer = DetectionCheckpointer(small_model(1.0), str(tmp_path))
    checkpointer.save("first")

    def full(data, f):
        f.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpointer.save("second")
    assert os.path.basename(checkpointer.get_checkpoint_file()) == "first.pth"
    assert sorted(os.listdir(tmp_path)) == ["first.pth", "last_checkpoint"]


def test_last_checkpoint_changes_only_after_the_file_is_complete(tmp_path, monkeypatch):
    renamed = []
    replace = os.replace
    monkeypatch.setattr(
        checkpoint_files.os, "replace", lambda old, new: (renamed.append(os.path.basename(new)), replace(old, new))
    )
    DetectionCheckpointer(small_model(), str(tmp_path)).save("model")
    assert renamed == ["model.pth", "last_checkpoint"]


def test_old_checkpoints_are_deleted_by_the_periodic_checkpointer(tmp_path):
    periodic = PeriodicCheckpointer(DetectionCheckpointer(small_model(), str(tmp_path)), period=1, max_to_keep=1)
    for iteration in range(3):
        periodic.step(iteration)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000002.pth"]


def test_saving_a_type_that_cannot_be_loaded_warns(tmp_path, caplog):
    DetectionCheckpointer(small_model(), str(tmp_path)).save("model", extra=nn.ReLU())
    assert "torch.nn.modules.activation.ReLU" in caplog.text


def test_checkpointer_that_must_not_write_does_not(tmp_path):
    DetectionCheckpointer(small_model(), str(tmp_path), save_to_disk=False).save("model")
    assert list(tmp_path.iterdir()) == []


def test_missing_file_names_the_closest(tmp_path):
    DetectionCheckpointer(small_model(), str(tmp_path)).save("model_final")
    with pytest.raises(MissingFileError, match=r"closest in that folder: model_final\.pth"):
        DetectionCheckpointer(small_model()).load(str(tmp_path / "model_fnal.pth"))


def test_resuming_with_another_optimizer_names_the_checkpointable(tmp_path):
    model = small_model()
    DetectionCheckpointer(model, str(tmp_path), optimizer=torch.optim.SGD(model.parameters(), lr=1.0)).save("model")
    fewer = torch.optim.SGD(list(model.parameters())[:1], lr=1.0)
    with pytest.raises(CheckpointError, match="'optimizer'"):
        DetectionCheckpointer(model, str(tmp_path), optimizer=fewer).resume_or_load("")


def test_head_with_another_number_of_classes_is_skipped_and_reported(tmp_path, caplog):
    DetectionCheckpointer(small_model(1.0, num_classes=3), str(tmp_path)).save("model")
    model = small_model(0.0, num_classes=5)
    DetectionCheckpointer(model).load(str(tmp_path / "model.pth"))
    assert (model[0].weight == 1).all()
    assert (model[2].weight == 0).all()
    assert "2.weight: [3, 4, 1, 1] in the file, [5, 4, 1, 1] in the model" in caplog.text


def test_checkpoint_of_another_model_is_refused(tmp_path):
    torch.save(torchvision.models.mobilenet_v2().state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth is for another model: of its \d+ weights, 0 fit"):
        DetectionCheckpointer(small_model()).load(str(tmp_path / "other.pth"))


def test_checkpoint_without_weights_on_purpose_is_accepted(tmp_path):
    torch.save({"model": {}, "iteration": 4}, tmp_path / "empty.pth")
    assert DetectionCheckpointer(small_model()).load(str(tmp_path / "empty.pth"))["iteration"] == 4


def test_complete_checkpoint_makes_no_warning(tmp_path, caplog):
    DetectionCheckpointer(small_model(), str(tmp_path)).save("model")
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(small_model()).load(str(tmp_path / "model.pth"))
    assert "Loaded 8 of the model's 8 weights" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_constants_in_old_checkpoints_are_ignored_quietly(tmp_path, caplog):
    state = {name: tensor.numpy() for name, tensor in small_model(1.0).state_dict().items()}
    constants = {"pixel_mean": np.zeros((3, 1, 1)), "proposal_generator.anchor_generator.cell_anchors.0": np.zeros(4)}
    path = save_pickle(tmp_path / "zoo.pkl", {"model": {**state, **constants}, "__author__": "somebody"})
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(small_model()).load(path)
    assert "pixel_mean" not in caplog.text
    assert "cell_anchors" not in caplog.text


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefix_of_a_wrapper_is_removed(tmp_path, prefix):
    torch.save({prefix + name: tensor for name, tensor in small_model(1.0).state_dict().items()}, tmp_path / "m.pth")
    model = small_model()
    DetectionCheckpointer(model).load(str(tmp_path / "m.pth"))
    assert (model[0].weight == 1).all()


def test_caffe2_weights_load_into_a_nested_backbone(tmp_path, caplog):
    arrays = {
        "res2_0_branch2a_w": np.full((2, 3, 1, 1), 5, np.float32),
        "res2_0_branch2a_bn_s": np.full(2, 6, np.float32),
        "res2_0_branch2a_bn_b": np.full(2, 7, np.float32),
    }
    backbone = nn.ModuleDict({"res2": nn.ModuleList([Block()])})
    DetectionCheckpointer(Wrapped(backbone)).load(save_pickle(tmp_path / "R-50.pkl", arrays))
    conv = backbone["res2"][0].conv1
    assert (conv.weight == 5).all()
    assert (conv.norm.weight == 6).all()
    assert (conv.norm.bias == 7).all()
    assert "missing" not in caplog.text  # Caffe2 has no statistics: they are part of scale and bias.


def test_suffixes_match_when_the_path_asks_for_it(tmp_path):
    torch.save(small_model(1.0).state_dict(), tmp_path / "backbone.pth")
    path = str(tmp_path / "backbone.pth")
    model = Wrapped(small_model())
    with pytest.raises(CheckpointError, match="matching_heuristics"):
        DetectionCheckpointer(model).load(path)
    DetectionCheckpointer(model).load(f"{path}?matching_heuristics=True")
    assert (model.backbone[0].weight == 1).all()


@pytest.mark.parametrize("to_detector", [True, False])
def test_backbone_of_a_classifier_loads_below_a_neck_and_back(tmp_path, caplog, to_detector):
    classifier, detector = Wrapped(Block()), Wrapped(nn.Module())
    detector.backbone.bottom_up = Block()
    source, target = (classifier, detector) if to_detector else (detector, classifier)
    nn.init.ones_(next(source.parameters()))
    DetectionCheckpointer(source, str(tmp_path)).save("source")
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(target).load(str(tmp_path / "source.pth"))
    assert (next(target.parameters()) == 1).all()
    below = "backbone.conv1.weight to backbone.bottom_up.conv1.weight"
    above = "backbone.bottom_up.conv1.weight to backbone.conv1.weight"
    assert f"renamed, as {below if to_detector else above}" in caplog.text


def test_tensor_with_two_names_is_not_missing_under_the_second(tmp_path, caplog):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "b.weight"}
    torch.save(state, tmp_path / "m.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "m.pth"))
    assert "missing" not in caplog.text


def test_big_endian_arrays_load(tmp_path):
    state = {name: tensor.numpy().astype(">f4") for name, tensor in nn.Linear(2, 2).state_dict().items()}
    model = nn.Linear(2, 2)
    DetectionCheckpointer(model).load(save_pickle(tmp_path / "m.pkl", {"model": state}))
    np.testing.assert_array_equal(model.weight.detach().numpy(), state["weight"])


def test_entry_that_is_no_array_is_refused_by_name(tmp_path):
    path = save_pickle(tmp_path / "m.pkl", {"model": {"weight": "text"}})
    with pytest.raises(CheckpointError, match="'weight' of the checkpoint is a str"):
        DetectionCheckpointer(nn.Linear(2, 2)).load(path)


def test_subclass_may_read_its_own_format():
    class Own(DetectionCheckpointer):
        def _load_file(self, f):
            return {"model": {"weight": np.ones((1, 1), np.float32)}}

    model = nn.Linear(1, 1, bias=False)
    Own(model).load(__file__)
    assert model.weight.item() == 1
