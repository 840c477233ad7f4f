"""ModuleGraph from a config to losses and predictions: the example of the tutorial, and what a batch becomes."""

import copy
import math

import pytest
import torch
from torch import nn

from detlib.structures import Boxes, Instances
from detlib.utils.errors import DatasetError

NET = """
- name: backbone
  type: custom_net
  kwargs: {depth: 3, out_planes: [8, 16, 32]}
- name: head
  prev: backbone
  type: custom_head
  kwargs: {num_classes: 21}
"""


@pytest.fixture
def sixteen():
    """Sixteen images of 12 x 10 pixels, of 16 classes."""
    return [{"image": torch.rand(3, 12, 10) * 255, "label": i % 21} for i in range(16)]


def test_example_has_the_layers_that_its_config_says(graph):
    model = graph(NET)
    assert sum(p.numel() for p in model.parameters()) == 224 + 1168 + 4640 + 693 == 6725
    assert (model.nodes.head.fc.in_features, model.nodes.head.fc.out_features) == (32, 21)
    assert [type(layer) for layer in model.nodes.backbone.body] == [nn.Conv2d, nn.ReLU] * 3
    assert "nodes.backbone.body.conv0.weight" in model.state_dict()


def test_example_gives_a_loss_when_training_and_logits_otherwise(graph, sixteen):
    model = graph(NET)
    losses = model.train()(sixteen)
    assert list(losses) == ["head.ce_loss"]
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    results = model.eval()(sixteen)
    assert [list(result) for result in results] == [["logits"]] * 16
    assert results[0]["logits"].shape == (21,)


def test_loss_of_zero_weights_is_that_of_a_guess(graph, sixteen):
    model = graph(NET)
    nn.init.zeros_(model.nodes.head.fc.weight)
    nn.init.zeros_(model.nodes.head.fc.bias)
    assert model(sixteen)["head.ce_loss"].item() == pytest.approx(math.log(21)) == pytest.approx(3.044522)


def test_batch_is_unchanged(graph, sixteen):
    samples = [dict(sample) for sample in sixteen]
    images = [sample["image"].clone() for sample in sixteen]
    model = graph(NET)
    model.train()(sixteen)
    model.eval()(sixteen)
    assert all(sample.keys() == old.keys() for sample, old in zip(sixteen, samples))
    assert all(sample[key] is old[key] for sample, old in zip(sixteen, samples) for key in old)
    assert all(torch.equal(sample["image"], image) for sample, image in zip(sixteen, images))


def test_wrong_argument_of_the_example_names_the_node_and_what_its_constructor_said(graph):
    with pytest.raises(ValueError, match=r"graph\.yaml:7: node 'backbone': .*out_planes has 1 entries, depth is 3"):
        graph(NET.replace("[8, 16, 32]", "[8]"))


def test_head_of_the_example_without_prev_says_that_it_needs_it(graph):
    with pytest.raises(ValueError, match=r"graph\.yaml:10: node 'head': CustomHead needs in_planes; .* needs prev or"):
        graph(NET.replace("  prev: backbone\n", ""))


def collated(graph, samples, training=True):
    return (
        graph("- {name: trunk, type: custom_net, kwargs: {depth: 0, out_planes: []}}").train(training).collate(samples)
    )


def test_images_are_normalised_and_padded_into_one_batch(graph):
    model = graph("- {name: trunk, type: custom_net, kwargs: {depth: 0, out_planes: []}}")
    model.pixel_mean.fill_(1.0)
    model.pixel_std.fill_(2.0)
    data = model.collate([{"image": torch.full((3, 2, 3), 5.0)}, {"image": torch.full((3, 4, 2), 5.0)}])
    assert data["image"].shape == (2, 3, 4, 3)
    assert data["image"][0, 0].tolist() == [[2.0] * 3] * 2 + [[0.0] * 3] * 2
    assert data["image_sizes"] == [(2, 3), (4, 2)]
    assert data["images"].tensor is data["image"]


def test_images_are_padded_to_the_largest_multiple_that_a_node_asks_for(graph, zoo):
    class Padded(nn.Identity):
        def __init__(self, size):
            super().__init__()
            self.size_divisibility = size

    zoo.register("padded", Padded)
    model = graph("\n".join(f"- {{name: by{size}, type: padded, kwargs: {{size: {size}}}}}" for size in (4, 16)))
    assert model.collate([{"image": torch.zeros(3, 5, 17)}])["image"].shape[-2:] == (16, 32)


def test_entries_of_samples_have_their_forms(graph):
    boxes = Instances((4, 4), gt_boxes=Boxes(torch.zeros(1, 4)))
    sample = {"image": torch.zeros(3, 4, 4), "label": 3, "instances": boxes, "file_name": "a.png", "task": "det"}
    data = collated(graph, [sample, {**sample, "extra": 1}])
    assert data["label"].tolist() == [3, 3]
    assert data["label"].dtype == torch.int64
    assert [len(x) for x in data["gt_instances"]] == [1, 1]
    assert (data["file_name"], data["task"]) == (["a.png", "a.png"], "det")
    assert "extra" not in data  # Only one of the samples has it.
    assert data["batched_inputs"][1]["extra"] == 1


def test_label_maps_are_padded_with_the_ignored_value(graph):
    sizes = ((2, 3), (4, 2))
    samples = [{"image": torch.zeros(3, *size), "sem_seg": torch.ones(size, dtype=torch.int64)} for size in sizes]
    padded = collated(graph, samples)["sem_seg"]
    assert padded[0].tolist() == [[1, 1, 1], [1, 1, 1], [255, 255, 255], [255, 255, 255]]
    assert padded[1].tolist() == [[1, 1, 255]] * 4


def test_label_map_of_another_size_than_its_image_is_refused(graph):
    sample = {"image": torch.zeros(3, 4, 4), "sem_seg": torch.zeros(2, 4), "file_name": "a.png"}
    with pytest.raises(DatasetError, match=r"sem_seg of .a\.png. has the shape \(2, 4\), its image \(4, 4\)"):
        collated(graph, [sample])


def test_batch_of_two_tasks_is_refused(graph):
    samples = [{"image": torch.zeros(3, 4, 4), "task": task} for task in ("det", "seg")]
    with pytest.raises(DatasetError, match=r"samples of the tasks \['det', 'seg'\]; they must all be of one"):
        collated(graph, samples)


def test_copy_of_a_model_is_a_model(graph, batch):
    model = graph(
        "- {name: trunk, type: custom_net, kwargs: {depth: 1, out_planes: [4]}}\n- {name: head, type: "
        "custom_head, prev: trunk, kwargs: {num_classes: 2}}"
    )
    other = copy.deepcopy(model)
    assert other(batch)["head.ce_loss"].item() == pytest.approx(model(batch)["head.ce_loss"].item())
    other.nodes.head.fc.weight.data.zero_()
    assert model.nodes.head.fc.weight.abs().sum() > 0


def test_frozen_node_learns_nothing_and_stays_in_eval_mode(graph, batch):
    model = graph(NET.replace("type: custom_net", "type: custom_net\n  freeze: true"))
    sum(model.train()(batch).values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.nodes.backbone.parameters())
    assert all(p.grad is not None for p in model.nodes.head.parameters())
    assert not model.nodes.backbone.body.training
    assert model.nodes.head.training
    assert not model.eval().nodes.head.training


def test_config_tells_rates_weights_taps_and_unused_parameters(graph):
    model = graph(
        NET.replace("type: custom_net", "type: custom_net\n  lr_factor: 0.1\n  weights: a.pth\n  tap: body.conv0")
    )
    assert model.lr_factors == {"nodes.backbone.": 0.1}
    assert model.part_weights == {"nodes.backbone": "a.pth"}
    assert model.tapped_modules == ["nodes.backbone.body.conv0"]
    assert not model.has_unused_parameters
    assert graph(NET + "  tasks: [cls]\n").has_unused_parameters
    assert graph(NET + "  tap: true\n").tapped_modules == ["nodes.head"]


def test_tap_of_an_unknown_module_is_refused(graph):
    with pytest.raises(ValueError, match=r"graph\.yaml:10: node 'head': tap is 'fcc'; did you mean 'fc'"):
        graph(NET + "  tap: fcc\n")
