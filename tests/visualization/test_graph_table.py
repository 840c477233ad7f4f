import re
from itertools import pairwise

import pytest

from detlib.modeling.meta_arch.graph.summary import FeatureSummary, GraphSummary, NodeSummary
from detlib.visualization.graph_table import graph_table, wrapped

MAPS = (FeatureSummary("res3", (128, 10, 20), 8), FeatureSummary("res4", (1024, 5, 10), 16))


def table(*nodes):
    return graph_table(GraphSummary(nodes))


def squeezed(text):
    return "".join(text.split())


def test_table_has_a_row_for_each_node_with_its_features_below_each_other_and_one_with_totals():
    backbone = NodeSummary(
        "trunk", "resnet", "backbone", features=MAPS, num_parameters=1200, num_trained=200, flops=3_000_000_000
    )
    head = NodeSummary(
        "head",
        "custom_head",
        prev=("trunk",),
        takes={"trunk": ("features",)},
        entries={"logits": "1 x 21"},
        num_parameters=34,
        num_trained=34,
        flops=2_500_000,
        notes=("tasks: det",),
    )
    assert table(backbone, head).splitlines() == [
        "node   type, settings  from   gives                              parameters  trained  10^9 FLOPs",
        "-----  --------------  -----  ---------------------------------  ----------  -------  ----------",
        "trunk  resnet          -      res3:  128 ch  10 x 20  stride 8        1,200      200      3.0000",
        "                              res4: 1024 ch   5 x 10  stride 16",
        "head   custom_head     trunk  logits: 1 x 21                             34       34      0.0025",
        "       tasks: det",
        "-----  --------------  -----  ---------------------------------  ----------  -------  ----------",
        "total                                                                 1,234      234      3.0025",
    ]


def test_entries_tell_from_which_node_they_come():
    rpn = NodeSummary("rpn", "rpn", entries={"proposals": "list of 1"})
    boxes = NodeSummary("boxes", "roi_heads", prev=("fpn",), takes={"fpn": ("features",), "rpn": ("proposals",)})
    assert "proposals of rpn" in table(NodeSummary("fpn", "fpn", features=MAPS), rpn, boxes)


def test_features_of_a_node_that_is_not_prev_are_named():
    assert "features of trunk" in table(
        NodeSummary("trunk", "net", features=MAPS), NodeSummary("head", "head", takes={"trunk": ("features",)})
    )


def test_frozen_node_is_marked():
    lines = table(NodeSummary("trunk", "net", num_parameters=5, frozen=True)).splitlines()
    assert lines[2].split() == ["trunk", "net", "-", "5", "0", "0"]
    assert lines[3].split() == ["frozen"]


def test_node_that_only_trains_has_no_count():
    assert table(NodeSummary("ce", "CrossEntropyLoss", "loss", flops=None)).splitlines()[2].split()[-1] == "-"


def test_smallest_count_has_two_digits():
    lines = table(NodeSummary("a", "x", flops=672), NodeSummary("b", "x", flops=382_464)).splitlines()
    assert [line.split()[-1] for line in lines[2:4]] == ["0.00000067", "0.00038246"]


def test_long_names_go_on_in_the_next_line_and_lose_nothing():
    name, path = "a_node_with_a_long_name_" * 4, "my_company.research.graph_parts.heads.DoubleHeadWithAttention"
    what = "list of 3: " + "x" * 90
    text = table(
        NodeSummary(name, path, entries={"long": what}, num_parameters=10**12, num_trained=10**12, flops=10**15),
        NodeSummary("head", "head", prev=(name,), takes={name: ("an_entry_with_a_long_name",)}),
    )
    assert max(map(len, text.splitlines())) == 120
    lines = text.splitlines()
    rule = next(index for index, line in enumerate(lines) if line.startswith("---"))
    head = next(index for index, line in enumerate(lines) if line.startswith("head"))
    starts = [0, *(match.end() for match in re.finditer("  ", lines[rule]))]
    columns = [
        squeezed("".join(line[start:end] for line in lines[rule + 1 : head])) for start, end in pairwise([*starts, 120])
    ]
    assert columns[0] == name
    assert columns[1] == path
    assert columns[3] == squeezed(f"long: {what}")


def test_vectors_have_channels_only_and_tokens_a_shape_only():
    features = (FeatureSummary("pooled", (512,)), FeatureSummary("tokens", (197, 768)))
    lines = table(NodeSummary("a", "x", features=features)).splitlines()
    assert "pooled: 512 ch" in lines[2]
    assert lines[3].split() == ["tokens:", "197", "x", "768"]


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("short", 10, ["short"]),
        ("package.module.Class", 15, ["package.module.", "Class"]),
        ("CrossEntropyLoss", 12, ["CrossEntropy", "Loss"]),
        ("tasks: det, seg", 11, ["tasks: det,", "seg"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("", 5, [""]),
    ],
)
def test_text_is_wrapped_where_words_end_and_within_words_where_it_must(text, width, lines):
    assert wrapped(text, width) == lines
