import pytest
import torch

from detlib.checkpoint import DetectionCheckpointer
from detlib.checkpoint.files import read_checkpoint
from detlib.modeling import build_model

pytest.importorskip("safetensors")


@pytest.fixture
def trained(tiny_cfg, tmp_path):
    """A model of which there is a checkpoint, run/model_best.pth."""
    model = build_model(tiny_cfg)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    checkpointer = DetectionCheckpointer(model, str(tmp_path / "run"), optimizer=optimizer)
    checkpointer.metadata = {"classes": {"thing_classes": ["cat", "dog", "bird"]}}
    checkpointer.save("model_best", iteration=7)
    return model


def test_weights_come_back_with_the_names_of_the_classes(call_tool, trained, tiny_cfg, tmp_path):
    done = call_tool("export_weights", "run/model_best.pth", "model.safetensors")
    assert done.status == 0, done.err
    assert "thing_classes: cat, dog, bird" in done.out
    content = read_checkpoint(str(tmp_path / "model.safetensors"))
    assert content.keys() == {"model", "detlib"}
    assert content["detlib"]["classes"] == {"thing_classes": ["cat", "dog", "bird"]}
    assert content["detlib"]["iteration"] == 7
    other = build_model(tiny_cfg)
    DetectionCheckpointer(other).load(str(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in other.state_dict().items())


def test_other_software_reads_the_file(call_tool, trained, tmp_path):
    from safetensors.torch import load_file

    call_tool("export_weights", "run/model_best.pth", "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == trained.state_dict().keys()


def test_averages_replace_the_weights_that_have_one(call_tool, tmp_path):
    hooks = {"ModelEMA": {"num_updates": 3, "averages": {"weight": torch.ones(2)}}}
    model = {"weight": torch.zeros(2), "running_mean": torch.full((2,), 5.0)}
    torch.save({"model": model, "trainer": {"hooks": hooks}}, tmp_path / "m.pth")
    done = call_tool("export_weights", "m.pth", "model.safetensors", "--averages")
    assert done.status == 0, done.err
    weights = read_checkpoint(str(tmp_path / "model.safetensors"))["model"]
    assert {name: value.tolist() for name, value in weights.items()} == {"weight": [1, 1], "running_mean": [5, 5]}


def test_averages_that_are_not_there_are_told(call_tool, trained):
    done = call_tool("export_weights", "run/model_best.pth", "model.safetensors", "--averages")
    assert done.status == 2
    assert "model_best.pth has no averages" in done.err


def test_another_suffix_is_refused(call_tool, trained):
    done = call_tool("export_weights", "run/model_best.pth", "model.pth")
    assert done.status == 2
    assert "must end with .safetensors" in done.err
