import xml.etree.ElementTree as ET

import pytest

from detlib.modeling.meta_arch.graph.summary import FeatureSummary, GraphSummary, NodeSummary
from detlib.utils.errors import ConfigError
from detlib.visualization.graph import check_picture_path, draw_graph, feature_span, short_count

PYRAMID = tuple(FeatureSummary(f"p{i}", (256, 64 >> i, 64 >> i), 2**i) for i in range(3, 8))

SUMMARY = GraphSummary(
    (
        NodeSummary(
            "fpn", "pafpn", "neck", features=PYRAMID, num_parameters=3_344_384, flops=1_160_417_280, frozen=True
        ),
        NodeSummary(
            "finder",
            "rpn",
            "head",
            prev=("fpn",),
            takes={"fpn": ("features",)},
            entries={"proposals": "list of 1"},
            num_parameters=6725,
            num_trained=6000,
            flops=672,
        ),
        NodeSummary(
            "boxes",
            "roi_heads",
            "head",
            prev=("fpn",),
            takes={"fpn": ("features",), "finder": ("proposals",)},
            entries={"instances": "list of 1"},
            notes=("tasks: det", "loss x 0.5"),
        ),
        NodeSummary(
            "costs", "FocalLoss", "loss", takes={"boxes": ()}, entries={"costs.loss": "when training"}, flops=None
        ),
    )
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The lines of text in the picture of SUMMARY."""
    path = tmp_path_factory.mktemp("graph") / "graph.svg"
    draw_graph(SUMMARY, str(path), title="My graph")
    return [element.text.strip() for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_picture_names_nodes_types_and_the_graph(texts):
    assert {"My graph", "fpn", "pafpn", "finder", "rpn", "boxes", "roi_heads", "costs", "FocalLoss"} <= set(texts)


def test_picture_has_parameters_and_operations_of_nodes_and_of_all(texts):
    assert {"3.34 M parameters, frozen", "1.16 G FLOPs"} <= set(texts)
    assert {"6,725 parameters, 6,000 trained", "672 FLOPs"} <= set(texts)
    assert "3.35 M parameters (6,000 trained), 1.16 G FLOPs" in texts
    assert "runs when training" in texts


def test_arrows_are_labelled_with_what_flows(texts):
    assert texts.count("p3-p7, 256 ch") == 2  # to the finder and to the boxes
    assert texts.count("proposals") == 1


def test_boxes_tell_tasks_and_what_nobody_takes(texts):
    assert {"tasks: det", "loss x 0.5", "gives instances", "gives costs.loss"} <= set(texts)
    assert "gives proposals" not in texts


def test_picture_has_a_key_of_the_kinds_that_there_are(texts):
    assert {"neck", "head", "loss", "frozen"} <= set(texts)
    assert "backbone" not in texts


def test_names_with_dollars_stay_as_they_are(tmp_path):
    draw_graph(GraphSummary((NodeSummary("a", "x", entries={"cost_$a$": "1"}),)), str(tmp_path / "graph.svg"))
    assert "gives cost_$a$" in (tmp_path / "graph.svg").read_text()


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")])
def test_suffix_gives_the_format(tmp_path, suffix, start):
    path = tmp_path / f"graph{suffix}"
    draw_graph(SUMMARY, str(path))
    assert path.read_bytes().startswith(start)


def test_same_graph_gives_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        draw_graph(SUMMARY, str(tmp_path / name))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("graph.jpg", "can be one of .png, .svg, .pdf, but not"),
        ("graph", "can be one of .png, .svg, .pdf, but not"),
        ("missing/graph.png", "there is no folder"),
        ("folder.png", "cannot be written to"),
    ],
)
def test_path_at_which_no_picture_can_be_is_an_error(tmp_path, path, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=message):
        check_picture_path(str(tmp_path / path))


@pytest.mark.parametrize(
    ("names", "channels", "span"),
    [
        (["p3", "p4", "p5"], [256] * 3, ["p3-p5, 256 ch"]),
        (["res4", "res5"], [1024, 2048], ["res4, res5, 1024/2048 ch"]),
        (["res2", "res3", "res4", "res5"], [256, 512, 1024, 2048], ["res2-res5", "256/512/1024/2048 ch"]),
        (["stem", "p3", "p5"], [8, 8, 8], ["stem, p3, p5, 8 ch"]),
    ],
)
def test_features_are_told_in_short(names, channels, span):
    assert feature_span([FeatureSummary(name, (c, 4, 4)) for name, c in zip(names, channels)]) == span


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (6725, "6,725"),
        (10_000, "10.0 k"),
        (122_389_152, "122 M"),
        (999_950, "1.00 M"),
        (999_500_000, "1.00 G"),
        (1_234_000_000_000, "1,234 G"),
    ],
)
def test_large_counts_have_three_digits(count, text):
    assert short_count(count) == text
