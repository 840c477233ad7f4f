"""What a node sees of the dict, and how a module is named that returns something else than it tells."""

import math
import sys

import pytest
import torch
from torch import nn

from detlib.layers import ShapeSpec
from detlib.modeling import Wires
from detlib.utils.errors import ConfigTypeError, DatasetError

SHAPE = {"x": ShapeSpec(channels=2, stride=1)}
SEES = "- {name: last, type: last%s}\n"


@pytest.fixture
def seen(returning):
    """What the node "last" has seen."""
    seen = {}

    def look(module, data):
        seen.update(data)
        return {"last_loss": module.weight}

    returning("last", look)
    return seen


def maps(value, channels=2, side=8):
    return torch.full((2, channels, side, side), float(value))


def giver(name, **more):
    return f"- {{name: {name}, type: {name}" + "".join(f", {key}: {value}" for key, value in more.items()) + "}\n"


def test_every_node_sees_the_batch_and_what_nodes_before_it_gave(graph, returning, seen, batch):
    returning("first", lambda module, data: {"logits": data["image"].sum()})
    graph(giver("first") + SEES % "")(batch)
    assert {"image", "images", "image_sizes", "batched_inputs", "label", "logits"} <= set(seen)


def test_nodes_run_in_the_order_of_the_list(graph, returning, batch):
    order = []
    for name in ("second", "first"):
        returning(name, lambda module, data, name=name: order.append(name) or {f"{name}_loss": module.weight})
    model = graph(giver("second") + giver("first"))
    order.clear()
    model(batch)
    assert order == ["second", "first"]


@pytest.fixture
def two_levels(returning):
    """A trunk with features of ones, and a neck with features of twos at half the resolution."""
    returning("trunk", lambda module, data: {"features": [maps(1)], "strides": [1]}, shape=SHAPE)
    shape = {"y": ShapeSpec(channels=3, stride=2)}
    returning("neck", lambda module, data: {"features": [maps(2, 3, 4)], "strides": [2]}, shape=shape)


def test_node_sees_the_features_of_its_prev_and_not_the_last(graph, two_levels, seen, batch):
    graph(giver("trunk") + giver("neck", prev="trunk") + SEES % ", prev: trunk")(batch)
    assert [x.mean().item() for x in seen["features"]] == [1.0]
    assert (seen["strides"], list(seen["feature_dict"])) == ([1], ["x"])


def test_node_without_prev_sees_the_last_features(graph, two_levels, seen, batch):
    graph(giver("trunk") + giver("neck", prev="trunk") + SEES % "")(batch)
    assert [x.mean().item() for x in seen["features"]] == [2.0]
    assert (seen["strides"], list(seen["feature_dict"])) == ([2], ["y"])


def test_node_of_several_prev_sees_the_features_of_all_in_their_order(graph, two_levels, seen, batch):
    graph(giver("trunk") + giver("neck", prev="trunk") + SEES % ", prev: [neck, trunk]")(batch)
    assert [x.mean().item() for x in seen["features"]] == [2.0, 1.0]
    assert (seen["strides"], list(seen["feature_dict"])) == ([2, 1], ["y", "x"])


def test_features_of_one_name_are_seen_as_they_were_wired(graph, returning, seen, batch):
    for value, name in enumerate(("left", "right")):
        returning(name, lambda module, data, value=value: {"feature_dict": {"x": maps(value)}}, shape=SHAPE)
    graph(giver("left") + giver("right") + SEES % ", prev: [left, right]")(batch)
    assert {name: x.mean().item() for name, x in seen["feature_dict"].items()} == {"left.x": 0.0, "right.x": 1.0}


def test_heads_at_two_levels_are_built_for_and_see_their_own(graph, returning, two_levels, batch):
    heads = "".join(
        f"- {{name: {name}, type: custom_head, prev: {prev}, kwargs: {{num_classes: 2}}, "
        f"rename: {{output: {{head.ce_loss: {name}_loss, logits: {name}}}}}}}\n"
        for name, prev in (("low", "trunk"), ("high", "neck"))
    )
    model = graph(giver("trunk") + giver("neck", prev="trunk") + heads)
    assert (model.nodes.low.fc.in_features, model.nodes.high.fc.in_features) == (2, 3)
    assert set(model.train()(batch)) == {"low_loss", "high_loss"}
    assert set(model.eval()(batch)[0]) == {"low", "high"}


def test_module_that_writes_into_the_dict_and_returns_it_changes_nothing_else(graph, returning, seen, batch):
    def write(module, data):
        data["extra"] = data["label"] + 1
        del data["label"]
        return data

    returning("writer", write)
    graph(giver("writer") + SEES % "")(batch)
    assert (seen["extra"].tolist(), seen["label"].tolist()) == ([1, 2], [0, 1])
    assert set(batch[0]) == {"image", "label"}


def test_module_that_passes_all_on_gives_only_what_is_new(graph, returning, batch):
    returning("first", lambda module, data: {"one": data["label"]})
    returning("second", lambda module, data: {**data, "two": data["label"]})
    assert set(graph(giver("first") + giver("second")).eval()(batch)[0]) == {"one", "two"}


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, r"returned nothing; a module must return a dict .* does its forward\(\) end with return\?"),
        ([1], "returned a list; a module must return a dict"),
        (torch.zeros(1), "returned a Tensor; a module must return a dict of new entries, as {'logits': x}"),
    ],
)
def test_module_that_returns_no_dict_is_named(graph, returning, batch, returned, said):
    returning("first", lambda module, data: returned)
    with pytest.raises(TypeError, match=rf"yaml:7: node 'first' {said}"):
        graph(giver("first"))(batch)


def test_entry_that_is_missing_is_a_key_error_with_those_that_are_there(graph, returning, batch):
    returning("first", lambda module, data: {"logits": data["lable"]})
    said = r"yaml:7: node 'first' takes 'lable', which is not there; did you mean 'label'\? There is .*image, .*label"
    with pytest.raises(KeyError, match=said):
        graph(giver("first"))(batch)


def test_key_error_of_an_entry_that_is_there_is_the_modules_own(graph, returning, batch):
    returning("first", lambda module, data: {}["label"])
    with pytest.raises(KeyError) as caught:
        graph(giver("first"))(batch)
    assert caught.value.args == ("label",)


def test_entry_that_two_nodes_give_at_run_time_is_refused(graph, returning, batch):
    returning("first", lambda module, data: {"logits": data["label"]})
    returning("second", lambda module, data: {"logits": data["label"] + 1})
    model = graph(giver("first") + giver("second"))
    with pytest.raises(ValueError, match=r"yaml:8: node 'second' gives 'logits', which 'first' \(.*yaml:7\) has given"):
        model(batch)


def test_loss_that_two_nodes_give_is_refused(graph, returning, batch):
    for name in ("first", "second"):
        returning(name, lambda module, data: {"ce_loss": module.weight * 1})
    with pytest.raises(ValueError, match="node 'second' gives 'ce_loss', which 'first'"):
        graph(giver("first") + giver("second"))(batch)


def test_entry_of_the_batch_may_be_given_anew(graph, returning, seen, batch):
    returning("first", lambda module, data: {"label": data["label"] + 5})
    graph(giver("first") + SEES % "")(batch)
    assert seen["label"].tolist() == [5, 6]
    assert batch[1]["label"] == 1


WIRES = Wires(outputs=("one",), losses=("ce_loss", "aux_*"), predictions=("score",))


@pytest.mark.parametrize(
    ("training", "returned", "said"),
    [
        (True, {"ce_loss": 1}, "gives one, ce_loss, aux_* when training, but it returned ce_loss"),
        (True, {"one": 1, "ce_loss": 1, "two": 1}, "when training, but it returned one, ce_loss, two"),
        (True, {}, "when training, but it returned nothing"),
        (False, {"one": 1}, "gives one, score when not training, but it returned one"),
        (False, {"one": 1, "score": 1, "ce_loss": 1}, "when not training, but it returned one, score, ce_loss"),
    ],
)
def test_module_that_returns_other_names_than_it_declares_is_named(graph, returning, batch, training, returned, said):
    returning("first", lambda module, data: returned, wires=WIRES)
    model = graph(giver("first")).train(training)
    with pytest.raises(ConfigTypeError, match=r"yaml:7: node 'first' declares that it ") as caught:
        model(batch)
    assert said in str(caught.value)


def test_names_that_match_a_declared_pattern_are_fine(graph, returning, batch):
    def give(module, data):
        return {
            "one": 1,
            **({"ce_loss": module.weight, "aux_1": 1, "aux_2": 2} if module.training else {"score": [1, 2]}),
        }

    returning("first", give, wires=WIRES)
    model = graph(giver("first"))
    assert list(model(batch)) == ["ce_loss"]
    assert model.eval()(batch) == [{"score": 1}, {"score": 2}]


@pytest.mark.parametrize(
    ("returned", "came"),
    [
        ({"features": [maps(0, 3)], "strides": [1]}, "x of 3 channels and stride 1"),
        ({"features": [maps(0)], "strides": [2]}, "x of 2 channels and stride 2"),
        (
            {"features": [maps(0), maps(0)], "strides": [1, 1]},
            "f0 of 2 channels and stride 1, f1 of 2 channels and stri",
        ),
        ({"feature_dict": {"z": maps(0)}}, "z of 2 channels and stride 1"),
    ],
)
def test_features_of_other_shapes_than_declared_are_reported(graph, returning, batch, returned, came):
    returning("first", lambda module, data: returned, shape=SHAPE)
    said = r"yaml:7: node 'first' declares the features x of 2 channels and stride 1 .*, but it returned " + came
    with pytest.raises(TypeError, match=said):
        graph(giver("first"))(batch)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ({}, "declares the features x of 2 channels and stride 1, but it returned none; a module returns them as"),
        ({"features": maps(0)}, "must return features as a list of tensors; it returned a Tensor"),
        ({"features": [[1]]}, "must return features as a list of tensors; it returned a list of list"),
        ({"features": [maps(0)], "strides": 1}, "must return a stride for each of the 1 features; got 1"),
        ({"features": [maps(0)], "strides": [1, 2]}, r"must return a stride for each of the 1 features; got \[1, 2\]"),
    ],
)
def test_features_in_another_form_are_reported(graph, returning, batch, returned, said):
    returning("first", lambda module, data: returned, shape=SHAPE)
    with pytest.raises((TypeError, ValueError), match=f"yaml:7: node 'first' {said}"):
        graph(giver("first"))(batch)


def test_features_and_strides_of_different_lengths_are_refused_whoever_gives_them(graph, two_levels, returning, batch):
    returning("third", lambda module, data: {"features": [data["image"]] * 2})
    with pytest.raises(ValueError, match=r"node 'third' must return a stride for each of the 2 features; got \[1\]"):
        graph(giver("trunk") + giver("third"))(batch)


def test_strides_that_are_not_returned_are_those_declared(graph, returning, seen, batch):
    returning("first", lambda module, data: {"features": [maps(0)]}, shape={"x": ShapeSpec(channels=2, stride=8)})
    graph(giver("first") + SEES % "")(batch)
    assert seen["strides"] == [8]


def test_features_without_declared_shapes_have_numbers_for_names(graph, returning, seen, batch):
    returning("first", lambda module, data: {"features": [maps(0), maps(1)], "strides": [1, 2]})
    graph(giver("first") + SEES % ", prev: first")(batch)
    assert (list(seen["feature_dict"]), seen["strides"]) == (["f0", "f1"], [1, 2])


def test_node_that_passes_features_on_is_a_prev_like_others(graph, returning, two_levels, seen, batch):
    returning("same", lambda module, data: {"features": data["features"]}, shape=SHAPE)
    nodes = giver("trunk") + giver("same", prev="trunk") + giver("neck", prev="trunk")
    graph(nodes + SEES % ", prev: same")(batch)
    assert [x.mean().item() for x in seen["features"]] == [1.0]


def test_list_of_features_that_a_module_empties_is_its_own(graph, returning, two_levels, seen, batch):
    returning("greedy", lambda module, data: {"taken": len([data["features"].pop()])})
    graph(giver("trunk") + giver("greedy", prev="trunk") + SEES % ", prev: trunk")(batch)
    assert len(seen["features"]) == 1


def test_entries_can_be_renamed_on_their_way_in_and_out(graph, returning, seen, batch):
    returning("first", lambda module, data: {"out": data["target"] * 10, "has_label": "label" in data})
    graph(giver("first", rename="{input: {label: target}, output: {out: scaled}}") + SEES % "")(batch)
    assert (seen["scaled"].tolist(), seen["has_label"]) == ([0, 10], False)
    assert seen["label"].tolist() == [0, 1]
    assert "target" not in seen


def test_two_entries_can_change_places(graph, returning, batch):
    returning("first", lambda module, data: {"a": torch.tensor([1, 1]), "b": torch.tensor([2, 2])})
    returning("second", lambda module, data: {"a_is": data["a"], "b_is": data["b"]})
    nodes = giver("first") + giver("second", rename="{input: {a: b, b: a}}")
    result = graph(nodes).eval()(batch)[0]
    assert (result["a_is"].item(), result["b_is"].item()) == (2, 1)


def test_entry_to_rename_may_be_missing_when_it_is_not_needed(graph, returning):
    def head(module, data):
        return {"x_loss": data["target"].sum() * module.weight} if module.training else {"score": data["image"]}

    returning("head", head)
    model = graph(giver("head", rename="{input: {label: target}}"))
    sample = {"image": torch.zeros(3, 8, 8)}
    assert set(model.eval()([sample])[0]) == {"score"}
    with pytest.raises(KeyError, match="yaml:7: node 'head' takes 'label' as 'target', which is not there"):
        model.train()([sample])


def test_torch_module_is_called_with_the_entries_that_inputs_names(graph, batch):
    nodes = """
    - {name: pool, type: torch.nn.AdaptiveAvgPool2d, inputs: [image], outputs: [pooled], kwargs: {output_size: 1}}
    - {name: flat, type: torch.nn.Flatten, inputs: [pooled], outputs: [vector]}
    - {name: fc, type: torch.nn.Linear, inputs: [vector], outputs: [logits], kwargs: {in_features: 3, out_features: 2}}
    - {name: loss, type: CrossEntropyLoss, inputs: [logits, label]}
    """
    model = graph(nodes)
    nn.init.zeros_(model.nodes.fc.weight)
    nn.init.zeros_(model.nodes.fc.bias)
    losses = model(batch)
    assert {key: round(value.item(), 4) for key, value in losses.items()} == {"loss.loss": 0.6931}  # ln 2
    results = model.eval()([{"image": sample["image"]} for sample in batch])
    assert results[0]["logits"].tolist() == [0.0, 0.0]


CONV = "- {name: conv, type: torch.nn.Conv2d, inputs: %s, outputs: maps, kwargs: {out_channels: 5, kernel_size: 1}}"


def test_torch_module_can_take_one_map_of_a_node_and_is_told_its_channels(graph, batch):
    model = graph("- {name: trunk, type: pyramid}\n" + CONV % "trunk.b")
    assert model.nodes.conv.in_channels == 8
    assert tuple(model.eval()(batch)[0]["maps"].shape) == (5, 2, 2)  # b has stride 4.


def test_map_that_a_node_does_not_have_is_suggested(graph):
    with pytest.raises(KeyError, match=r"yaml:8: node 'conv' takes 'trunk\.c', .* did you mean 'trunk\.[ab]'\?"):
        graph("- {name: trunk, type: pyramid}\n" + (CONV % "trunk.c").replace("kwargs: {", "kwargs: {in_channels: 8, "))


def test_torch_loss_is_left_out_when_predicting(graph, returning, batch):
    returning("head", lambda module, data: {"logits": module.weight * torch.zeros(len(data["image"]), 4)})
    loss = "- {name: ce, type: torch.nn.CrossEntropyLoss, inputs: [logits, label], outputs: [ce_loss]}"
    model = graph(giver("head") + loss)
    assert model(batch)["ce_loss"].item() == pytest.approx(math.log(4))
    results = model.eval()([{"image": sample["image"]} for sample in batch])
    assert [list(result) for result in results] == [["logits"], ["logits"]]


def test_module_with_several_outputs_returns_a_list_of_them(graph, zoo, batch):
    class Split(nn.Module):
        def forward(self, image, label):
            return image.mean(), label

    zoo.register("split", Split)
    model = graph("- {name: a, type: split, inputs: [image, label], outputs: [mean, same]}", "OUTPUTS: [same]")
    assert [result["same"].item() for result in model.eval()(batch)] == [0, 1]
    three = graph("- {name: a, type: split, inputs: [image, label], outputs: [x, y, z]}")
    with pytest.raises(TypeError, match="yaml:7: node 'a': outputs names 3 entries, but the module returned 2"):
        three.eval()(batch)


def test_inputs_without_outputs_are_refused(graph):
    with pytest.raises(ValueError, match="yaml:7: node 'a': a node with inputs needs outputs"):
        graph("- {name: a, type: torch.nn.Flatten, inputs: [image]}")


def test_node_of_another_task_is_left_out(graph, returning, batch):
    for name in ("det", "cls"):
        returning(name, lambda module, data, name=name: {f"{name}_loss": module.weight})
    model = graph(giver("det", tasks="[det, both]") + giver("cls", tasks="[cls, both]"))

    def losses_for(task):
        return set(model([{**sample, "task": task} for sample in batch]))

    assert [losses_for(task) for task in ("det", "cls", "both")] == [
        {"det_loss"},
        {"cls_loss"},
        {"det_loss", "cls_loss"},
    ]
    assert set(model(batch)) == {"det_loss", "cls_loss"}
    with pytest.raises(DatasetError, match="must all be of one task"):
        model([{**batch[0], "task": "det"}, {**batch[1], "task": "cls"}])


def test_trunk_learns_from_the_batches_of_all_tasks(graph, returning, batch):
    returning("trunk", lambda module, data: {"features": [maps(1) * module.weight], "strides": [1]}, shape=SHAPE)
    returning("det", lambda module, data: {"det_loss": data["features"][0].mean()})
    returning("cls", lambda module, data: {"cls_loss": 2 * data["features"][0].mean()})
    model = graph(giver("trunk") + giver("det", tasks="det", prev="trunk") + giver("cls", tasks="cls", prev="trunk"))
    gradients = []
    for task in ("det", "cls"):
        sum(model([{**sample, "task": task} for sample in batch]).values()).backward()
        gradients.append(model.nodes.trunk.weight.grad.item())
    assert gradients == [1.0, 3.0]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors have notes from Python 3.11 on")
def test_error_of_a_module_has_a_note_with_its_node(graph, zoo, batch):
    class TakesATensor(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)

    zoo.register("takes_a_tensor", TakesATensor)
    with pytest.raises(TypeError) as caught:
        graph(giver("a").replace("type: a", "type: takes_a_tensor"))(batch)
    (note,) = caught.value.__notes__
    assert "graph.yaml:7: node 'a'. Without inputs, a module is called with the dict" in note
