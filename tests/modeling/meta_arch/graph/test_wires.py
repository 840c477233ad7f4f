"""Wires are checked when a graph is built: before any data is read, and with the node and its line in the error."""

import pytest

from detlib.layers import ShapeSpec
from detlib.modeling import Wires
from detlib.modeling.meta_arch.graph.wires import join_features

TRUNK = "- {name: trunk, type: custom_net, kwargs: {depth: 0, out_planes: []}}\n"


@pytest.fixture
def declaring(returning):
    """Registers a module by its wires, which are all that counts here."""
    return lambda alias, **wires: returning(alias, lambda module, data: {}, wires=Wires(**wires))


def nodes(*types, **more):
    """Nodes named and typed alike; keyword arguments add keys to one of them."""
    return "\n".join(
        f"- {{name: {name}, type: {name}{', ' if name in more else ''}{more.get(name, '')}}}" for name in types
    )


def test_wires_of_training_and_of_prediction_differ():
    wires = Wires(inputs=("a",), targets=("b",), outputs=("c",), losses=("d",), predictions=("e",))
    assert (wires.taken(training=True), wires.taken(training=False)) == (("a", "b"), ("a",))
    assert (wires.given(training=True), wires.given(training=False)) == (("c", "d"), ("c", "e"))


@pytest.mark.parametrize("kind", ["inputs", "targets"])
def test_input_that_no_earlier_node_gives_is_a_key_error(graph, declaring, kind):
    declaring("giver", outputs=("logits",))
    declaring("taker", **{kind: ("logit",)})
    said = r"yaml:8: node 'taker' takes 'logit', which no earlier node provides; did you mean 'logits'\? .*INPUTS"
    with pytest.raises(KeyError, match=said):
        graph(nodes("giver", "taker"))


def test_input_of_a_later_node_is_a_key_error(graph, declaring):
    declaring("giver", outputs=("logits",))
    declaring("taker", inputs=("logits",))
    with pytest.raises(KeyError, match="yaml:7: node 'taker' takes 'logits', which no earlier node provides"):
        graph(nodes("taker", "giver"))


@pytest.mark.parametrize("kind", ["outputs", "predictions", "losses"])
def test_input_is_compared_with_what_is_given_at_that_time(graph, declaring, kind):
    declaring("giver", **{kind: ("logits",)})
    declaring("taker", inputs=("logits",))
    if kind == "outputs":
        assert len(graph(nodes("giver", "taker")).plan) == 2
        return
    with pytest.raises(KeyError, match="node 'taker' takes 'logits', which no earlier node provides"):
        graph(nodes("giver", "taker"))


def test_what_samples_bring_can_be_listed(graph, declaring):
    declaring("taker", inputs=("image", "depth_map"), targets=("gt_instances", "label", "sem_seg"))
    with pytest.raises(
        KeyError, match=r"takes 'depth_map', .* If samples bring it, list it in MODEL.MODULE_GRAPH.INPUTS"
    ):
        graph(nodes("taker"))
    assert len(graph(nodes("taker"), "INPUTS: [depth_map]").plan) == 1


def test_pattern_of_outputs_gives_what_it_matches(graph, declaring):
    declaring("giver", outputs=("logits_*",))
    declaring("taker", inputs=("logits_a",))
    assert len(graph(nodes("giver", "taker")).plan) == 2


def test_features_are_given_by_a_node_that_declares_their_shapes(graph, declaring):
    declaring("taker", inputs=("features",))
    assert len(graph(TRUNK + nodes("taker")).plan) == 2
    with pytest.raises(KeyError, match="node 'taker' takes 'features', which no earlier node provides"):
        graph(nodes("taker"))


def test_entry_that_two_nodes_give_is_refused(graph, declaring):
    declaring("first", outputs=("logits",))
    declaring("second", outputs=("logits",))
    said = r"yaml:8: node 'second' gives 'logits', which 'first' \(.*yaml:7\) gives already; rename it"
    with pytest.raises(ValueError, match=said):
        graph(nodes("first", "second"))
    assert len(graph(nodes("first", "second", second="rename: {output: {logits: other}}")).plan) == 2


def test_loss_and_prediction_of_one_name_are_refused_only_where_they_meet(graph, declaring):
    declaring("first", losses=("x_loss",), predictions=("score",))
    declaring("second", losses=("score",), predictions=("x_loss",))
    assert len(graph(nodes("first", "second")).plan) == 2
    declaring("third", losses=("x_loss",))
    with pytest.raises(ValueError, match="node 'third' gives 'x_loss', which 'first'"):
        graph(nodes("first", "third"))


def test_nodes_of_different_tasks_may_give_the_same(graph, declaring):
    declaring("first", outputs=("logits",))
    declaring("second", outputs=("logits",))
    assert len(graph(nodes("first", "second", first="tasks: [det]", second="tasks: [cls]")).plan) == 2
    with pytest.raises(ValueError, match="node 'second' gives 'logits', which 'first'"):
        graph(nodes("first", "second", first="tasks: [det]", second="tasks: [cls, det]"))
    with pytest.raises(ValueError, match="node 'second' gives 'logits', which 'first'"):
        graph(nodes("first", "second", first="tasks: [det]"))


def test_giver_must_run_whenever_its_taker_does(graph, declaring):
    declaring("giver", outputs=("logits",))
    declaring("taker", inputs=("logits",))
    said = r"yaml:8: node 'taker' takes 'logits' from 'giver' \(.*yaml:7\), which runs for the tasks det only; give it"
    with pytest.raises(ValueError, match=said):
        graph(nodes("giver", "taker", giver="tasks: [det]"))
    with pytest.raises(ValueError, match=said):
        graph(nodes("giver", "taker", giver="tasks: [det]", taker="tasks: [det, cls]"))
    assert len(graph(nodes("giver", "taker", giver="tasks: [det, cls]", taker="tasks: [det]")).plan) == 2
    assert len(graph(nodes("giver", "taker", taker="tasks: [det]")).plan) == 2


def test_prev_must_run_whenever_its_follower_does(graph):
    head = "- {name: head, type: custom_head, prev: trunk, kwargs: {num_classes: 2}"
    trunk = "- {name: trunk, type: custom_net, kwargs: {depth: 0, out_planes: []}, tasks: [det]}\n"
    with pytest.raises(ValueError, match=r"yaml:8: node 'head' takes its features from 'trunk' \(.*tasks det only"):
        graph(trunk + head + "}")
    assert len(graph(trunk + head + ", tasks: [det]}").plan) == 2


def test_frozen_node_gives_predictions_and_needs_no_targets(graph, declaring):
    declaring("frozen", targets=("teacher",), losses=("x_loss",), predictions=("score",))
    declaring("taker", inputs=("score",))
    assert len(graph(nodes("frozen", "taker", frozen="freeze: true")).plan) == 2
    with pytest.raises(KeyError, match="takes 'teacher', which no earlier node provides"):
        graph(nodes("frozen"))


def test_renamed_entries_are_compared_by_their_names_in_the_graph(graph, declaring):
    declaring("giver", outputs=("a",))
    declaring("taker", inputs=("b",))
    more = {"giver": "rename: {output: {a: mid}}", "taker": "rename: {input: {mid: b}}"}
    assert len(graph(nodes("giver", "taker", **more)).plan) == 2
    with pytest.raises(KeyError, match="node 'taker' takes 'a', which no earlier node provides"):
        graph(nodes("giver", "taker", **{**more, "taker": "rename: {input: {a: b}}"}))


def test_weight_of_a_loss_that_the_module_does_not_declare_is_refused(graph, declaring):
    declaring("head", losses=("head.ce_loss", "aux_*_loss"))
    assert len(graph(nodes("head", head="loss_weights: {ce_loss: 2, aux_1_loss: 3}")).plan) == 1
    with pytest.raises(ValueError, match=r"yaml:7: node 'head' has a loss weight for 'mse_loss', but its losses are"):
        graph(nodes("head", head="loss_weights: {mse_loss: 2}"))


def test_inputs_and_outputs_of_a_node_are_its_wires(graph):
    linear = (
        "- {name: fc, type: torch.nn.Linear, inputs: [%s], outputs: [%s], kwargs: {in_features: 2, out_features: 2}}\n"
    )
    with pytest.raises(KeyError, match="yaml:7: node 'fc' takes 'pooled', which no earlier node provides"):
        graph(linear % ("pooled", "logits"))
    two = linear % ("image", "logits") + (linear % ("image", "logits")).replace("fc", "fc2")
    with pytest.raises(ValueError, match="yaml:8: node 'fc2' gives 'logits', which 'fc'"):
        graph(two)


def test_joined_features_keep_their_order_and_share_no_name():
    features = {"left": {"a": 1, "b": 2}, "right": {"b": 3, "c": 4}}
    assert list(join_features(features).items()) == [("a", 1), ("left.b", 2), ("right.b", 3), ("c", 4)]
    assert join_features({}) == {}


def test_shape_without_channels_or_stride_can_be_given(graph, returning):
    returning("giver", lambda module, data: {"features": [data["image"]]}, shape={"x": ShapeSpec()})
    assert len(graph(nodes("giver")).plan) == 1
