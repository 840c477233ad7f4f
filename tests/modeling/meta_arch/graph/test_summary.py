import pytest
import torch

from detlib.modeling import Wires, build_model
from detlib.modeling.meta_arch.graph.summary import FeatureSummary, summarize_graph
from detlib.utils.analysis import FlopCountAnalysis

IMAGE = [{"image": torch.zeros(3, 8, 8)}]

CUSTOM = """
- {name: backbone, type: custom_net, kwargs: {depth: 3, out_planes: [8, 16, 32]}}
- {name: head, type: custom_head, prev: backbone, kwargs: {num_classes: 21}}
"""


def by_name(model, batch=IMAGE):
    return {node.name: node for node in summarize_graph(model, batch).nodes}


def test_each_node_has_the_parameters_and_operations_of_its_layers(graph):
    summary = summarize_graph(graph(CUSTOM), IMAGE)
    backbone, head = summary.nodes
    assert backbone.num_parameters == 224 + 1168 + 4640 == 6032
    assert backbone.flops == (3 * 8 + 8 * 16 + 16 * 32) * 9 * 8 * 8 == 382464
    assert (head.num_parameters, head.flops) == (32 * 21 + 21, 32 * 21)
    assert (summary.num_parameters, summary.num_trained, summary.flops) == (6725, 6725, 383136)


def test_features_have_names_shapes_and_strides_and_other_entries_are_described(graph):
    nodes = by_name(graph(CUSTOM))
    assert nodes["backbone"].features == (FeatureSummary("conv", (32, 8, 8), 1),)
    assert nodes["head"].features == ()
    assert nodes["head"].entries == {"logits": "1 x 21"}


@pytest.mark.parametrize(
    ("value", "description"),
    [
        (torch.zeros(()), "a number"),
        ([torch.zeros(2, 4)], "list of 1: 2 x 4"),
        ([torch.zeros(2), torch.zeros(3)], "list of 2"),
        ((1, 2), "tuple of 2: int"),
        ([], "list of 0"),
        ({"cls": 1, "box": 2}, "dict of cls, box"),
        ("text", "str"),
    ],
)
def test_values_are_described_by_what_is_in_them(graph, returning, value, description):
    returning("giver", lambda module, data: {"entry": value})
    assert by_name(graph("- {name: a, type: giver}"))["a"].entries == {"entry": description}


def test_operations_for_features_that_nobody_takes_count_too(graph):
    assert by_name(graph(CUSTOM.splitlines()[1]))["backbone"].flops == 382464


def test_node_takes_features_of_prev_or_of_the_last_that_gave_some(graph):
    net = """
    - {name: first, type: pyramid}
    - {name: second, type: pyramid}
    - {name: with_prev, type: custom_head, prev: first, kwargs: {in_planes: 4, num_classes: 2}}
    - {name: without, type: custom_head, kwargs: {in_planes: 4, num_classes: 2}, rename: {output: {logits: scores}}}
    """
    nodes = by_name(graph(net))
    assert nodes["second"].takes == {}
    assert nodes["with_prev"].takes == {"first": ("features",)}
    assert nodes["without"].takes == {"second": ("features",)}


def test_entries_that_a_module_looks_up_come_from_the_nodes_that_give_them(graph, returning):
    returning("giver", lambda module, data: {"x": 1, "unused": 2})
    returning("taker", lambda module, data: {"y": data["z"], "size": data.get("image_sizes")})
    net = """
    - {name: a, type: giver}
    - {name: b, type: taker, rename: {input: {x: z}}}
    """
    assert by_name(graph(net))["b"].takes == {"a": ("x",)}


def test_declared_entries_count_as_taken(graph, returning):
    returning("giver", lambda module, data: {"x": 1})
    returning("taker", lambda module, data: {}, wires=Wires(inputs=("x",)))
    assert by_name(graph("- {name: a, type: giver}\n- {name: b, type: taker}"))["b"].takes == {"a": ("x",)}


def test_prev_without_features_still_comes_first(graph, returning):
    returning("giver", lambda module, data: {"x": 1})
    returning("taker", lambda module, data: {"y": data["image"]})
    assert by_name(graph("- {name: a, type: giver}\n- {name: b, type: taker, prev: a}"))["b"].takes == {"a": ()}


def test_loss_takes_what_it_compares_and_has_no_operations_as_it_runs_when_training(graph):
    net = f"{CUSTOM}\n- {{name: ce, type: CrossEntropyLoss, inputs: [logits, label], loss_weights: 0.5}}"
    loss = by_name(graph(net))["ce"]
    assert (loss.kind, loss.flops, loss.takes) == ("loss", None, {"head": ("logits",)})
    assert loss.entries == {"ce.loss": "when training"}
    assert loss.notes == ("loss x 0.5",)


def test_kinds_follow_from_the_part_or_from_what_flows(graph, returning):
    returning("halve", lambda module, data: {"features": [x / 2 for x in data["features"]], "strides": [2, 4]})
    net = """
    - {name: pyramid, type: pyramid}
    - {name: halved, type: halve, prev: pyramid}
    - {name: pool, type: gap, prev: pyramid}
    - {name: cls, type: linear_cls_head, prev: pool, kwargs: {num_classes: 2}}
    """
    kinds = [node.kind for node in by_name(graph(net)).values()]
    assert kinds == ["backbone", "neck", "neck", "head"]


def test_frozen_node_trains_nothing(graph):
    nodes = by_name(graph(CUSTOM.replace("name: backbone,", "name: backbone, freeze: true,")))
    assert nodes["backbone"].frozen and not nodes["head"].frozen
    assert (nodes["backbone"].num_parameters, nodes["backbone"].num_trained) == (6032, 0)


def test_notes_tell_what_else_the_config_says(graph):
    keys = "loss_weights: {head.ce_loss: 2.0}, lr_factor: 0.1, weights: head.pth, tap: [fc]"
    nodes = by_name(graph(CUSTOM.replace("prev: backbone,", f"prev: backbone, {keys},")))
    assert nodes["head"].notes == ("head.ce_loss x 2", "learning rate x 0.1", "weights: head.pth", "tap: fc")
    assert nodes["backbone"].notes == ()


def test_nodes_of_all_tasks_are_there_even_if_they_give_the_same_entry(graph):
    net = """
    - {name: trunk, type: pyramid}
    - {name: cats, type: custom_head, prev: trunk, tasks: cats, kwargs: {in_planes: 4, num_classes: 2}}
    - {name: dogs, type: custom_head, prev: trunk, tasks: [dogs], kwargs: {in_planes: 4, num_classes: 3}}
    """
    nodes = by_name(graph(net))
    assert list(nodes) == ["trunk", "cats", "dogs"]
    assert [nodes[name].entries for name in ("cats", "dogs")] == [{"logits": "1 x 2"}, {"logits": "1 x 3"}]
    assert [nodes[name].flops for name in ("cats", "dogs")] == [4 * 2, 4 * 3]
    assert nodes["dogs"].notes == ("tasks: dogs",)


def test_total_is_that_of_the_whole_model(tiny_cfg):
    cfg = tiny_cfg
    cfg.MODEL.META_ARCHITECTURE = "ModuleGraph"
    cfg.MODEL.RESNETS.NORM = "FrozenBN"  # It costs other operators where gradients flow.
    cfg.MODEL.MODULE_GRAPH.NET = [
        {"name": "trunk", "type": "build_resnet_backbone"},
        {"name": "fpn", "type": "fpn", "prev": "trunk", "kwargs": {"out_channels": 16, "top_block": "LastLevelP6P7"}},
        {"name": "boxes", "type": "retinanet_head", "prev": "fpn"},
    ]
    model, images = build_model(cfg).eval(), [{"image": torch.zeros(3, 64, 64)}]
    total = FlopCountAnalysis(model, images).uncalled_modules_warnings(False).total()
    assert summarize_graph(model, images).flops == total


def test_proposals_lead_from_rpn_to_roi_heads(tiny_rcnn_cfg):
    cfg = tiny_rcnn_cfg
    cfg.MODEL.META_ARCHITECTURE = "ModuleGraph"
    cfg.MODEL.MODULE_GRAPH.NET = [
        {"name": "trunk", "type": "build_resnet_backbone"},
        {"name": "fpn", "type": "fpn", "prev": "trunk", "kwargs": {"out_channels": 16}},
        {"name": "rpn", "type": "rpn", "prev": "fpn"},
        {"name": "boxes", "type": "roi_heads", "prev": "fpn"},
    ]
    nodes = by_name(build_model(cfg), [{"image": torch.zeros(3, 64, 64)}])
    assert nodes["boxes"].takes == {"fpn": ("features",), "rpn": ("proposals",)}
    assert nodes["fpn"].features[0] == FeatureSummary("p3", (16, 8, 8), 8)
    assert nodes["rpn"].entries["proposals"].startswith("list of 1: Instances of ")


def test_model_keeps_the_mode_of_each_of_its_modules(graph):
    model = graph(CUSTOM)
    model.nodes.head.fc.eval()
    summarize_graph(model, IMAGE)
    assert model.training and model.nodes.head.training and not model.nodes.head.fc.training


@pytest.mark.parametrize(
    ("shape", "channels", "size"),
    [((256, 4, 5), 256, (4, 5)), ((512,), 512, ()), ((197, 768), None, (197, 768))],
)
def test_tokens_have_no_channels_as_nobody_knows_which_these_are(shape, channels, size):
    feature = FeatureSummary("x", shape)
    assert (feature.channels, feature.size) == (channels, size)
