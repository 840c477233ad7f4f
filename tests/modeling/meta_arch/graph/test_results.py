"""What a graph returns: the losses among the entries of its nodes, or a dict for each image."""

import logging

import pytest
import torch

from detlib.modeling import Wires
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

NODE = "- {name: first, type: first%s}\n"


@pytest.fixture
def giving(graph, returning):
    """A graph of one node, which gives what is made of its weight (1.0, learnable) and the dict."""

    def model(give, more="", options="", wires=None):
        returning("first", lambda module, data: give(module.weight, data), wires=wires)
        return graph(NODE % more, options)

    return model


def test_losses_are_the_entries_of_nodes_whose_names_contain_loss(giving, batch):
    model = giving(lambda w, data: {"first.ce_loss": w, "loss": 2 * w, "closs_x": 3 * w, "Loss": w, "los": w, "x": w})
    losses = model(batch)
    assert {key: value.item() for key, value in losses.items()} == {"first.ce_loss": 1.0, "loss": 2.0, "closs_x": 3.0}


def test_entries_of_samples_are_no_losses(giving, batch):
    samples = [{**sample, "loss_mask": torch.zeros(2)} for sample in batch]
    assert set(giving(lambda w, data: {"x_loss": w * len(data["loss_mask"])})(samples)) == {"x_loss"}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_loss_of_one_number_is_a_scalar(giving, batch, shape):
    loss = giving(lambda w, data: {"x_loss": w.reshape(shape)})(batch)["x_loss"]
    assert loss.shape == ()
    loss.backward()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (torch.zeros(2), r"it is a tensor of shape \(2,\)"),
        (torch.zeros(0), r"it is a tensor of shape \(0,\)"),
        (1.0, "it is a float"),
        ([torch.zeros(())], "it is a list of 1"),
        (None, "it is a NoneType"),
    ],
)
def test_loss_that_is_not_one_number_is_a_type_error(giving, batch, loss, said):
    with pytest.raises(TypeError, match=f"yaml:7: node 'first' gives 'x_loss', which must be one number, .*; {said}"):
        giving(lambda w, data: {"x_loss": loss})(batch)


def test_loss_without_gradient_is_taken_with_a_warning(giving, batch, caplog):
    model = giving(lambda w, data: {"x_loss": w.detach() * 3})
    with caplog.at_level(logging.WARNING):
        assert model(batch)["x_loss"].item() == 3.0
    assert "yaml:7: node 'first': nothing can be learned from 'x_loss', as it has no gradient" in caplog.text


def test_no_warning_of_gradients_where_none_are_wanted(giving, batch, caplog):
    model = giving(lambda w, data: {"y_loss": w * 3})
    with caplog.at_level(logging.WARNING), torch.no_grad():
        model(batch)
    assert not caplog.text


def test_training_without_a_loss_is_a_runtime_error(giving, batch):
    with pytest.raises(RuntimeError, match=r"no loss: .* an entry with 'loss' in its name; nodes gave logits$"):
        giving(lambda w, data: {"logits": w})(batch)


def test_batch_of_a_task_that_no_loss_is_for_says_which_nodes_did_not_run(giving, batch):
    model = giving(lambda w, data: {"x_loss": w}, ", tasks: [det]")
    with pytest.raises(RuntimeError, match="nodes gave nothing; for the task 'dett', first did not run"):
        model([{**sample, "task": "dett"} for sample in batch])


def test_other_numbers_go_to_the_event_storage(giving, batch):
    def give(w, data):
        return {"x_loss": w, "accuracy": w * 0.5, "count": 3, "map": torch.zeros(2), "name": "x"}

    with EventStorage() as storage:
        assert set(giving(give)(batch)) == {"x_loss"}
        assert {key: value for key, (value, _) in storage.latest().items()} == {"accuracy": 0.5, "count": 3.0}


def two_losses(w, data):
    return {"first.ce_loss": w, "aux_loss": w}


@pytest.mark.parametrize(
    ("weights", "values"),
    [
        ("0.5", [0.5, 0.5]),
        ("0", [0.0, 0.0]),
        ("{ce_loss: 2}", [2.0, 1.0]),
        ("{first.ce_loss: 2, aux_loss: 3}", [2.0, 3.0]),
    ],
)
def test_weights_of_losses_are_one_for_all_or_by_name(giving, batch, weights, values):
    losses = giving(two_losses, f", loss_weights: {weights}")(batch)
    assert list(losses) == ["first.ce_loss", "aux_loss"]
    assert [loss.item() for loss in losses.values()] == values


def test_weights_of_losses_are_in_the_gradient(giving, batch):
    model = giving(two_losses, ", loss_weights: {ce_loss: 2, aux_loss: 3}")
    sum(model(batch).values()).backward()
    assert model.nodes.first.weight.grad.item() == 5.0


def test_weight_of_a_loss_that_the_node_does_not_give_is_refused(giving, batch):
    model = giving(two_losses, ", loss_weights: {aux_los: 2}")
    said = (
        r"yaml:7: node 'first' has a loss weight for 'aux_los'; did you mean 'aux_loss'\? Its losses: first.ce_loss, a"
    )
    with pytest.raises(ConfigError, match=said):
        model(batch)


def test_predictions_are_what_nodes_give_for_each_image(giving, batch):
    model = giving(lambda w, data: {"logits": torch.tensor([[1.0], [2.0]]), "names": ["a", "b"], "x_loss": w}).eval()
    assert model(batch) == [
        {"logits": torch.tensor([1.0]), "names": "a"},
        {"logits": torch.tensor([2.0]), "names": "b"},
    ]


def test_features_are_no_predictions(graph, batch):
    assert graph("- {name: trunk, type: pyramid}").eval()(batch) == [{}, {}]


def test_entries_declared_for_later_nodes_are_no_predictions_unless_asked_for(giving, batch):
    wires = Wires(outputs=("logits",), predictions=("label_of",))

    def give(w, data):
        return {"logits": [1, 2], "label_of": [3, 4]}

    assert giving(give, wires=wires).eval()(batch) == [{"label_of": 3}, {"label_of": 4}]
    model = giving(give, wires=wires, options="OUTPUTS: [logits, label]").eval()
    assert [(result["logits"], result["label"].item()) for result in model(batch)] == [(1, 0), (2, 1)]


def test_results_of_a_node_are_the_answer(giving, batch):
    model = giving(lambda w, data: {"results": [{"a": 1}, {"b": 2}], "logits": [1, 2]}).eval()
    assert model(batch) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("results", "said"),
    [([{}], "it is a list of 1"), ({}, "it is a dict"), ([1, 2], "it is a list of 2"), (None, "it is a NoneType")],
)
def test_results_must_be_a_dict_for_each_image(giving, batch, results, said):
    model = giving(lambda w, data: {"results": results}).eval()
    with pytest.raises(ValueError, match=f"yaml:7: node 'first' gives 'results', .* each of the 2 images; {said}"):
        model(batch)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(3, 2), r"is a tensor of shape \(3, 2\)"),
        (torch.zeros(()), r"is a tensor of shape \(\)"),
        ([1], "is a list of 1"),
        ("ab", "is a str"),
        ({"a": 1, "b": 2}, "is a dict"),
    ],
)
def test_prediction_that_is_not_one_for_each_image_is_refused(giving, batch, value, said):
    model = giving(lambda w, data: {"logits": value}).eval()
    with pytest.raises(
        ValueError, match=f"yaml:7: node 'first' gives 'logits', .* each of the 2 images .* {said}; list"
    ):
        model(batch)


def test_output_that_no_node_gives_for_a_batch_is_suggested(giving, batch):
    def give(w, data):
        return {"logits" if "label" in data else "logit": [1] * len(data["image"])}

    model = giving(give, options="OUTPUTS: [logit]").eval()
    with pytest.raises(KeyError, match=r"OUTPUTS has 'logit', which no node gives; did you mean 'logits'\?"):
        model(batch)


def test_features_are_no_outputs_even_if_there_are_as_many_levels_as_images(graph, batch):
    model = graph("- {name: trunk, type: pyramid}", "OUTPUTS: [features]").eval()
    with pytest.raises(ValueError, match="'features', which must have an item for each of the 2 images"):
        model(batch)


def test_one_feature_map_can_be_an_output(graph, batch):
    results = graph("- {name: trunk, type: pyramid}", "OUTPUTS: [trunk.b]").eval()(batch)
    assert [tuple(result["trunk.b"].shape) for result in results] == [(8, 2, 2), (8, 2, 2)]


def test_outputs_of_nodes_that_a_task_leaves_out_are_absent(graph, returning, batch):
    for name in ("det", "cls"):
        returning(name, lambda module, data, name=name: {f"{name}_score": [1, 2], "name": name})
    nodes = "".join(f"- {{name: {name}, type: {name}, tasks: {name}}}\n" for name in ("det", "cls"))
    model = graph(nodes, "OUTPUTS: [det_score, cls_score]").eval()
    assert model([{**sample, "task": "cls"} for sample in batch]) == [{"cls_score": 1}, {"cls_score": 2}]
