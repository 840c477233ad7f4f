import pytest
from torch import nn

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import MODULE_ZOO_REGISTRY


class CustomNet(nn.Module):
    """conv3x3 and ReLU for each of the widths."""

    def __init__(self, out_planes):
        super().__init__()
        widths = [3, *out_planes]
        layers = [(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in zip(widths, out_planes)]
        self.body = nn.Sequential(*(layer for pair in layers for layer in pair))
        self.width = out_planes[-1]

    def output_shape(self):
        return {"conv": ShapeSpec(channels=self.width, stride=1)}

    def forward(self, data):
        return {"features": [self.body(data["image"])], "strides": [1]}


class CustomHead(nn.Module):
    def __init__(self, in_planes, num_classes):
        super().__init__()
        self.fc = nn.Linear(in_planes, num_classes)

    def forward(self, data):
        return {"logits": self.fc(data["features"][0].mean(dim=(-2, -1)))}


@pytest.fixture
def graph_file(tmp_path, monkeypatch):
    """The config of CustomNet and CustomHead; Linear(32, 21) behind convolutions to 8, 16 and 32 channels."""
    monkeypatch.setitem(MODULE_ZOO_REGISTRY._obj_map, "custom_net", CustomNet)
    monkeypatch.setitem(MODULE_ZOO_REGISTRY._obj_map, "custom_head", CustomHead)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "ModuleGraph"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.MODULE_GRAPH.NET = [
        {"name": "backbone", "type": "custom_net", "kwargs": {"out_planes": [8, 16, 32]}},
        {"name": "head", "type": "custom_head", "prev": "backbone", "kwargs": {"num_classes": 21}},
    ]
    path = tmp_path / "graph.yaml"
    path.write_text(cfg.dump())
    return path


def test_graph_is_a_table_of_its_nodes(call_tool, graph_file):
    done = call_tool("analyze_model", "--config-file", graph_file, "--size", 8, 8, "--graph")
    assert done.status == 0, done.err
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    # (3 * 8 + 8 * 16 + 16 * 32) * 9 weights at each of 64 pixels, and 32 * 21 at once
    assert "backbone custom_net - conv: 32 ch 8 x 8 stride 1 6,032 6,032 0.00038246" in rows
    assert "head custom_head backbone logits: 1 x 21 693 693 0.00000067" in rows
    assert rows[-1] == "total 6,725 6,725 0.00038314"


def test_graph_is_drawn_where_asked_for(call_tool, graph_file, tmp_path):
    done = call_tool("analyze_model", "--config-file", graph_file, "--size", 8, 16, "--graph", "graph.svg")
    assert "The picture is in graph.svg." in done.out, done.err
    text = (tmp_path / "graph.svg").read_text()
    assert all(name in text for name in ("backbone", "custom_net", "head", "custom_head", "conv, 32 ch"))
    assert "graph.yaml, for an image of 8 x 16 pixels" in text


def test_graph_alone_leaves_out_the_other_tables(call_tool, graph_file):
    done = call_tool("analyze_model", "--config-file", graph_file, "--size", 8, 8, "--graph")
    assert "Parameters:" not in done.out and "By operator:" not in done.out


def test_tasks_are_printed_beside_the_graph(call_tool, graph_file):
    args = ("--graph", "--tasks", "parameter")
    done = call_tool("analyze_model", "--config-file", graph_file, "--size", 8, 8, *args)
    assert "0.00038314" in done.out and "6,725 parameters, 6,725 of them trained." in done.out


def test_totals_are_those_of_the_counts_by_part(call_tool, graph_file):
    done = call_tool("analyze_model", "--config-file", graph_file, "--size", 512, 512, "--graph", "--tasks", "flop")
    billions = (5976 * 512 * 512 + 672) / 1e9
    assert f"{billions:.8f}" in done.out
    assert f"{billions:.3f} billion operations." in done.out


@pytest.mark.parametrize(
    ("picture", "message"),
    [("graph.jpg", "can be one of .png, .svg, .pdf"), ("missing/graph.png", "there is no folder 'missing'")],
)
def test_picture_that_cannot_be_written_is_an_error_before_the_model_is_built(call_tool, picture, message):
    done = call_tool("analyze_model", "--config-file", "missing.yaml", "--graph", picture)
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: ") and message in line


def test_model_that_is_no_graph_is_told_what_would_work(call_tool, config_file):
    done = call_tool("analyze_model", "--config-file", config_file, "--graph")
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "ModuleGraph, and this one is a RetinaNet; --tasks structure shows its modules" in line


def test_help_shows_how_to_draw_a_graph(call_tool):
    assert "--graph graph.png" in call_tool("analyze_model", "--help").out
