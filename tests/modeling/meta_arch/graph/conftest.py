"""Small modules that pass a dict along, and graphs of them."""

import copy
import logging
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import MODULE_ZOO_REGISTRY, build_model


class CustomNet(nn.Module):
    """``depth`` times conv3x3 and ReLU at full resolution."""

    def __init__(self, depth, out_planes):
        super().__init__()
        if len(out_planes) != depth:
            raise ValueError(f"out_planes has {len(out_planes)} entries, depth is {depth}")
        widths = [3, *out_planes]
        self.body = nn.Sequential()
        for i in range(depth):
            self.body.add_module(f"conv{i}", nn.Conv2d(widths[i], widths[i + 1], 3, padding=1))
            self.body.add_module(f"relu{i}", nn.ReLU(inplace=True))
        self.last_width = widths[-1]

    def output_shape(self):
        return {"conv": ShapeSpec(channels=self.last_width, stride=1)}

    def forward(self, data):
        return {"features": [self.body(data["image"])], "strides": [1]}


class CustomHead(nn.Module):
    """Global average pooling and one Linear."""

    def __init__(self, in_planes, num_classes):
        super().__init__()
        self.fc = nn.Linear(in_planes, num_classes)

    def forward(self, data):
        logits = self.fc(data["features"][0].mean(dim=(-2, -1)))
        if self.training:
            return {"head.ce_loss": F.cross_entropy(logits, data["label"])}
        return {"logits": logits}


class Pyramid(nn.Module):
    """The image, shrunk by each of the strides, with as many channels as ``planes`` says."""

    def __init__(self, planes=(4, 8), strides=(2, 4), names=("a", "b")):
        super().__init__()
        self.planes, self.strides, self.names = planes, strides, names
        self.scale = nn.Parameter(torch.ones(()))

    def output_shape(self):
        shapes = zip(self.names, self.planes, self.strides)
        return {name: ShapeSpec(channels=planes, stride=stride) for name, planes, stride in shapes}

    def forward(self, data):
        grey = data["image"].mean(dim=1, keepdim=True) * self.scale
        maps = [F.avg_pool2d(grey, s).expand(-1, c, -1, -1) for c, s in zip(self.planes, self.strides)]
        return {"features": maps, "strides": list(self.strides)}


class Returns(nn.Module):
    """Returns what a function makes of the dict; the function gets the module, too."""

    def __init__(self, give, wires=None, shape=None):
        super().__init__()
        self.give = give
        self.weight = nn.Parameter(torch.ones(()))
        if wires is not None:
            self.wires = wires
        if shape is not None:
            self.output_shape = lambda: shape

    def forward(self, data):
        return self.give(self, data)


@pytest.fixture(autouse=True)
def zoo(monkeypatch):
    """The registry, with the modules above; what a test registers is gone after it."""
    modules = {"custom_net": CustomNet, "custom_head": CustomHead, "pyramid": Pyramid}
    monkeypatch.setattr(MODULE_ZOO_REGISTRY, "_obj_map", {**MODULE_ZOO_REGISTRY._obj_map, **modules})
    return MODULE_ZOO_REGISTRY


@pytest.fixture
def returning(zoo):
    """Registers modules that return what a function makes: ``returning("alias", lambda module, data: {...})``."""

    def register(alias, give, wires=None, shape=None):
        zoo._obj_map[alias] = lambda: Returns(give, wires, shape)  # A test may do so again.

    return register


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path."""

    def write(name, text):
        (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
        return str(tmp_path / name)

    return write


HEAD = """\
MODEL:
  META_ARCHITECTURE: ModuleGraph
  DEVICE: cpu
  PIXEL_MEAN: [0.0, 0.0, 0.0]
  MODULE_GRAPH:
    NET:
"""


@pytest.fixture
def graph_cfg(write):
    """The config of a graph whose NET is given as YAML; its first line is line 7 of ``graph.yaml``.

    Args: ``options``, other keys of MODULE_GRAPH as YAML; ``overrides``, as on the command line.
    """

    def read(net, options="", overrides=()):
        text = HEAD + textwrap.indent(textwrap.dedent(net).strip("\n"), " " * 6)
        cfg = get_cfg()
        cfg.merge_from_file(write("graph.yaml", f"{text}\n{textwrap.indent(options, ' ' * 4)}\n"))
        cfg.merge_from_list(list(overrides))
        return cfg

    return read


@pytest.fixture
def graph(graph_cfg):
    """The model of a graph whose NET is given as YAML."""
    return lambda *args, **kwargs: build_model(graph_cfg(*args, **kwargs))


@pytest.fixture
def batch():
    """Two images of 8 x 8 pixels, of the classes 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.rand(3, 8, 8, generator=generator) * 255, "label": label} for label in (0, 1)]


@pytest.fixture(autouse=True)
def propagate_logs(monkeypatch):
    """Lets caplog see messages although another test has called setup_logger."""
    monkeypatch.setattr(logging.getLogger("detlib"), "propagate", True)


@pytest.fixture
def graph_of(tiny_rcnn_cfg):
    """Builds a graph of nodes over a narrow ResNet-18."""
    cfg = tiny_rcnn_cfg
    cfg.MODEL.META_ARCHITECTURE = "ModuleGraph"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
    cfg.MODEL.SEM_SEG_HEAD.merge_from_list(["IN_FEATURES", ["p3", "p4", "p5"], "COMMON_STRIDE", 8, "NUM_CLASSES", 4])
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32

    def build(*net, options=()):
        cfg.merge_from_list(list(options))
        cfg.MODEL.MODULE_GRAPH.NET = copy.deepcopy(list(net))
        torch.manual_seed(0)
        return build_model(cfg)

    return build


@pytest.fixture
def samples(sample):
    """Two images with all kinds of labels."""
    batch = [sample(64, 64, [[4.0, 4, 30, 40], [20, 20, 60, 60]], [0, 2]), sample(48, 72)]
    for index, x in enumerate(batch):
        labels = torch.full(x["image"].shape[1:], index + 1)
        x.update(label=index, sem_seg=labels, file_name=f"{index}.jpg")
    return batch
