import logging

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import get_cfg
from detlib.layers import FrozenBatchNorm2d, ShapeSpec
from detlib.modeling.backbone.resnet import build_resnet_backbone
from detlib.utils.errors import CheckpointError, MissingFileError


def body(value=0.0, width=4):
    """Two layers whose parameters are all ``value``."""
    module = nn.ModuleDict({"conv1": nn.Conv2d(3, width, 1), "conv2": nn.Conv2d(width, width, 1)})
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


class Graph(nn.Module):
    """A body and a head, each of which may have weights of its own."""

    def __init__(self, value=0.0, **part_weights):
        super().__init__()
        self.nodes = nn.ModuleDict({"body": body(value), "head": nn.Linear(4, 2)})
        nn.init.constant_(self.nodes["head"].weight, value)
        self.part_weights = {f"nodes.{name}": str(path) for name, path in part_weights.items()}

    def values(self):
        """Those of body and head."""
        return self.nodes["body"]["conv2"].weight[0, 0].item(), self.nodes["head"].weight[0, 0].item()


def save(path, state):
    torch.save(state, path)
    return str(path)


def prefixed(prefix, module):
    return {prefix + name: value for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    "prefix", ["", "nodes.body.", "nodes.trunk.", "backbone.", "backbone.bottom_up.", "module.encoder_q.0."]
)
def test_part_is_found_under_any_prefix(tmp_path, prefix):
    path = save(tmp_path / "any.pth", {**prefixed(prefix, body(3.0)), "other.weight": torch.zeros(1)})
    graph = Graph()
    DetectionCheckpointer(graph).load_part("nodes.body", path)
    assert graph.values() == (3, 0)


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up."])
def test_backbone_with_a_neck_takes_one_without(tmp_path, prefix):
    path = save(tmp_path / "any.pth", prefixed(prefix, body(3.0)))
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"bottom_up": body(), "lateral": nn.Conv2d(4, 4, 1)})})
    DetectionCheckpointer(model).load_part("backbone", path)
    assert (model["backbone"]["bottom_up"]["conv2"].weight == 3).all()


def test_weights_of_another_model_go_into_the_part_alone(tmp_path):
    path = save(tmp_path / "graph.pth", {"model": Graph(3.0).state_dict()})
    graph = Graph()
    DetectionCheckpointer(graph).load_part("nodes.body", path)
    assert graph.values() == (3, 0)


def test_file_of_caffe2_loads_into_a_part(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 2, 1, bias=False)
            self.conv1.norm = FrozenBatchNorm2d(2)

    arrays = {
        "res2_0_branch2a_w": np.full((2, 3, 1, 1), 5, np.float32),
        "res2_0_branch2a_bn_s": np.full(2, 6, np.float32),
        "res2_0_branch2a_bn_b": np.full(2, 7, np.float32),
    }
    torch.save(arrays, tmp_path / "R-50.pth")
    model = nn.ModuleDict({"one": nn.ModuleDict({"res2": nn.ModuleList([Block()])}), "two": nn.Linear(1, 1)})
    DetectionCheckpointer(model).load_part("one", str(tmp_path / "R-50.pth"))
    assert (model["one"]["res2"][0].conv1.weight == 5).all()
    assert (model["one"]["res2"][0].conv1.norm.bias == 7).all()


@pytest.fixture
def resnet18():
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.NORM = 18, 64, "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT = ["res5"], 0
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("prefix", ["", "encoder_q."])
def test_names_of_torchvision_load_into_a_part(tmp_path, caplog, resnet18, prefix):
    theirs = torchvision.models.resnet18()
    path = save(tmp_path / "theirs.pth", prefixed(prefix, theirs))
    model = nn.ModuleDict({"backbone": resnet18})
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(model).load_part("backbone", path)
    torch.testing.assert_close(resnet18.res5[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert "missing" not in caplog.text
    assert "INPUT.FORMAT: RGB" in caplog.text


def test_weights_of_equal_shape_are_preferred(tmp_path):
    path = save(tmp_path / "m.pth", {**prefixed("wide.", body(1.0, width=8)), **prefixed("a.fits.", body(2.0))})
    graph = Graph()
    DetectionCheckpointer(graph).load_part("nodes.body", path)
    assert graph.values() == (2, 0)


def test_of_several_parts_alike_the_shortest_prefix_is_taken_with_a_warning(tmp_path, caplog):
    path = save(tmp_path / "m.pth", {**prefixed("average.model.", body(1.0)), **prefixed("model.", body(2.0))})
    graph = Graph()
    DetectionCheckpointer(graph).load_part("nodes.body", path)
    assert graph.values() == (2, 0)
    assert "under each of the prefixes 'model.', 'average.model.'" in caplog.text


def test_own_name_is_taken_among_parts_alike(tmp_path):
    path = save(tmp_path / "m.pth", {**prefixed("body.", body(1.0)), **prefixed("nodes.body.", body(2.0))})
    graph = Graph()
    DetectionCheckpointer(graph).load_part("nodes.body", path)
    assert graph.values() == (2, 0)


def test_file_without_the_part_is_refused_and_changes_nothing(tmp_path):
    path = save(tmp_path / "heads.pth", {"nodes.head.weight": torch.ones(2, 4), "nodes.head.bias": torch.ones(2)})
    graph = Graph()
    with pytest.raises(CheckpointError) as error:
        DetectionCheckpointer(graph).load_part("nodes.body", path)
    assert "heads.pth is for another model: of its 2 weights, 0 fit the part nodes.body" in str(error.value)
    assert "Names in the file: nodes.head.weight, nodes.head.bias; in the model: nodes.body.conv1.w" in str(error.value)
    assert graph.values() == (0, 0)


def test_file_with_a_little_of_the_part_is_refused(tmp_path):
    model = nn.ModuleDict({"part": nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(11)))})
    path = save(tmp_path / "m.pth", {"x.3.weight": torch.ones(1, 1)})
    with pytest.raises(CheckpointError, match="1 fit the part part of this model, which has 11"):
        DetectionCheckpointer(model).load_part("part", path)


def test_missing_file_names_the_part(tmp_path):
    with pytest.raises(MissingFileError, match=r"The weights of nodes\.body: Checkpoint .*none\.pth does not exist"):
        DetectionCheckpointer(Graph()).load_part("nodes.body", str(tmp_path / "none.pth"))


def test_unknown_part_is_named_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"no part 'backbone'; its first parts are nodes"):
        DetectionCheckpointer(Graph()).load_part("backbone", "any.pth")


def test_part_without_weights_is_refused():
    model = nn.ModuleDict({"pool": nn.AdaptiveAvgPool2d(1)})
    with pytest.raises(CheckpointError, match="pool has no weights"):
        DetectionCheckpointer(model).load_part("pool", "any.pth")


def test_parts_load_their_own_weights_when_no_checkpoint_is_given(tmp_path):
    graph = Graph(body=save(tmp_path / "body.pth", body(3.0).state_dict()))
    DetectionCheckpointer(graph).load("")
    assert graph.values() == (3, 0)


def test_parts_whose_weights_are_all_in_the_checkpoint_do_not_need_their_files(tmp_path):
    DetectionCheckpointer(Graph(5.0), str(tmp_path)).save("model_final")
    graph = Graph(body=tmp_path / "no_such_file.pth")
    DetectionCheckpointer(graph).load(str(tmp_path / "model_final.pth"))
    assert graph.values() == (5, 5)


@pytest.mark.parametrize("lacking", [None, torch.zeros(9)])
def test_part_that_the_checkpoint_has_not_all_of_is_loaded_from_its_file(tmp_path, caplog, lacking):
    state = Graph(5.0).state_dict()
    state["nodes.body.conv1.bias"] = lacking
    if lacking is None:
        del state["nodes.body.conv1.bias"]
    graph = Graph(body=save(tmp_path / "body.pth", body(3.0).state_dict()))
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(graph).load(save(tmp_path / "m.pth", {"model": state}))
    assert graph.values() == (3, 5)
    assert "Loaded 2 of the model's 2 weights" in caplog.text  # What the part loads is reported with its own file.
    assert "Loaded 4 of nodes.body's 4 weights" in caplog.text


def test_resumed_training_does_not_read_the_parts(tmp_path):
    first = Graph(5.0)
    optimizer = torch.optim.SGD(first.parameters(), lr=1.0)
    DetectionCheckpointer(first, str(tmp_path), optimizer=optimizer).save("model_0000001", iteration=1)
    saved = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    del saved["model"]["nodes.body.conv1.bias"]
    torch.save(saved, tmp_path / "model_0000001.pth")
    graph = Graph(body=tmp_path / "no_such_file.pth")
    checkpointer = DetectionCheckpointer(graph, str(tmp_path), optimizer=optimizer)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert graph.values() == (5, 5)
