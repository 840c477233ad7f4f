"""The trial with a black image: it finds layers that do not fit, and leaves no trace."""

import pytest
import torch
from torch import nn

from detlib.modeling import build_model
from detlib.utils.errors import ConfigError

TRUNK = "- {name: trunk, type: custom_net, kwargs: {depth: 1, out_planes: [8]}}\n"


class Layered(nn.Module):
    """Calls a layer with what a function makes of the dict."""

    def __init__(self, layer, take):
        super().__init__()
        self.layer, self.take = layer, take

    def forward(self, data):
        return {"out": self.layer(self.take(data))}


@pytest.fixture
def layered(graph, zoo):
    def build(layer, take=lambda data: data["features"][0]):
        zoo.register("layered", lambda: Layered(layer, take))
        return graph(TRUNK + "- {name: head, type: layered, prev: trunk}")

    return build


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 1, 1),
        nn.ConvTranspose2d(16, 1, 1),
        nn.BatchNorm2d(16),
        nn.GroupNorm(2, 16),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1)),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(16, 1, 1)),
    ],
)
def test_layer_that_gets_other_channels_than_it_was_made_for_is_named(layered, layer):
    name = r"layer(\.\d)?"
    with pytest.raises(ConfigError, match=rf"yaml:8: node 'head': its layer {name} takes 16 channels, but 8 come"):
        layered(layer)


def test_layer_that_fits_is_fine(layered):
    assert layered(nn.Conv2d(8, 1, 1)).nodes.head.layer.in_channels == 8


def test_explicit_channels_that_are_wrong_are_found(graph):
    head = "- {name: head, type: custom_head, prev: trunk, kwargs: {num_classes: 3, in_planes: 16}}"
    with pytest.raises(
        ConfigError, match="yaml:8: node 'head': its layer fc takes 16 channels, but 8 come; compare its"
    ):
        graph(TRUNK + head)


def test_layer_for_images_of_one_size_is_not_taken_for_a_misfit(layered):
    model = layered(nn.Sequential(nn.Flatten(), nn.Linear(8 * 4 * 4, 5)))
    assert model.eval()([{"image": torch.zeros(3, 4, 4)}])[0]["out"].shape == (5,)


def test_layer_over_the_pixels_is_not_taken_for_a_misfit(layered):
    assert layered(nn.Sequential(nn.Flatten(2), nn.Linear(16, 5))).training  # (N, C, H * W)


def test_module_that_fails_is_left_to_fail_with_data(graph, returning, batch):
    def fail(module, data):
        raise RuntimeError("not today")

    returning("broken", fail)
    model = graph(TRUNK + "- {name: a, type: broken}")
    with pytest.raises(RuntimeError, match="not today"):
        model(batch)


@pytest.mark.parametrize("given", [None, 3, {"features": 3}, {"features": [], "strides": [1]}, {"logits": 3}])
def test_module_that_returns_something_odd_is_left_to_be_reported_with_data(graph, returning, given):
    returning("odd", lambda module, data: given)
    assert len(graph("- {name: a, type: odd}").plan) == 1


def test_module_that_needs_what_only_samples_bring_is_built(graph, returning):
    returning("taker", lambda module, data: {"x": data["depth_map"][0].sum() + data["label"].sum()})
    assert len(graph("- {name: a, type: taker}").plan) == 1


def test_entry_that_a_node_names_but_nobody_gives_is_found(graph):
    linear = "- {name: fc, type: torch.nn.Flatten, inputs: [imge], outputs: [y]}"
    said = r"yaml:8: node 'fc' takes 'imge', which no node before has given; did you mean 'image'\? .*INPUTS"
    with pytest.raises(KeyError, match=said):
        graph(TRUNK + linear)
    assert len(graph(TRUNK + linear, "INPUTS: [imge]").plan) == 2


def test_entry_of_a_node_that_declares_nothing_is_found_by_the_trial(graph, returning):
    returning("giver", lambda module, data: {"vector": torch.zeros(1, 4)})
    linear = "- {name: fc, type: torch.nn.Linear, inputs: [vector], outputs: [y], "
    linear += "kwargs: {in_features: %d, out_features: 2}}"
    assert len(graph("- {name: a, type: giver}\n" + linear % 4).plan) == 2
    with pytest.raises(ConfigError, match="yaml:8: node 'fc': its layer fc takes 5 channels, but 4 come"):
        graph("- {name: a, type: giver}\n" + linear % 5)


def test_trial_is_for_one_image_in_eval_mode_without_gradients(graph, returning):
    seen = []

    def look(module, data):
        seen.append((tuple(data["image"].shape), module.training, torch.is_grad_enabled()))
        return {}

    returning("look", look)
    graph("- {name: a, type: look}")
    assert seen == [((1, 3, 64, 64), False, False)]


def test_trial_leaves_the_random_numbers_as_they_were(graph_cfg, returning):
    draws = []
    returning("draws", lambda module, data: draws.append(torch.rand(1)) or {})
    cfg = graph_cfg("- {name: a, type: draws}")
    state = torch.random.get_rng_state()
    build_model(cfg)
    assert len(draws) == 1
    assert torch.equal(torch.random.get_rng_state(), state)


def test_trial_leaves_statistics_gradients_and_modes_as_they_were(graph, returning, zoo):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.sleeping = nn.Dropout().eval()

        def forward(self, data):
            return {"x": self.norm(data["image"] + 1)}

    zoo.register("normed", Normed)
    model = graph("- {name: a, type: normed}\n- {name: b, type: normed, freeze: true, rename: {output: {x: y}}}")
    for node in model.nodes.values():
        assert node.norm.running_mean.tolist() == [0.0] * 3
        assert node.norm.num_batches_tracked.item() == 0
        assert node.norm.weight.grad is None
    assert (model.training, model.nodes.a.norm.training, model.nodes.b.norm.training) == (True, True, False)


def test_hooks_of_the_trial_are_gone(graph):
    model = graph(TRUNK)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_lazy_layers_are_left_to_the_data(graph, zoo, batch):
    zoo.register("lazy", lambda: Layered(nn.LazyConv2d(2, 1), lambda data: data["image"]))
    model = graph("- {name: a, type: lazy}")
    assert isinstance(model.nodes.a.layer.weight, nn.UninitializedParameter)
    assert model.eval()(batch)[0]["out"].shape == (2, 8, 8)


def test_graph_can_be_built_on_the_meta_device(graph_cfg):
    head = "- {name: head, type: custom_head, prev: trunk, kwargs: {num_classes: 3%s}}"
    cfg = graph_cfg(TRUNK + head % "")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        assert build_model(cfg).nodes.head.fc.weight.is_meta
        with pytest.raises(ConfigError, match="node 'head': its layer fc takes 16 channels, but 8 come"):
            build_model(graph_cfg(TRUNK + head % ", in_planes: 16"))


def test_images_of_the_trial_are_as_large_as_the_nodes_ask_for(graph, zoo):
    seen = []

    class Padded(nn.Module):
        size_divisibility = 100

        def forward(self, data):
            seen.append(tuple(data["image"].shape[-2:]))
            return {}

    zoo.register("padded", Padded)
    graph("- {name: a, type: padded}")
    assert seen == [(100, 100)]


def test_output_that_no_node_gives_is_found(graph, returning, batch):
    returning("giver", lambda module, data: {"logits": [1] * len(data["image"])})
    nodes = TRUNK + "- {name: a, type: giver}"
    with pytest.raises(KeyError, match=r"OUTPUTS has 'logit', which no node gives; did you mean 'logits'\?"):
        graph(nodes, "OUTPUTS: [logit]")
    model = graph(nodes, "OUTPUTS: [logits, label]").eval()
    assert [(result["logits"], result["label"].item()) for result in model(batch)] == [(1, 0), (1, 1)]


def test_output_is_not_looked_for_when_a_module_fails(graph, returning):
    returning("giver", lambda module, data: {"depth": data["depth_map"]})
    assert graph("- {name: a, type: giver}", "OUTPUTS: [depth]").outputs == ["depth"]


def test_square_that_images_are_padded_to_is_the_only_size_of_the_trial(graph):
    vit = "{name: trunk, type: build_vit_fpn_backbone, cfg: {MODEL: {VIT: {EMBED_DIM: 16, DEPTH: 1, NUM_HEADS: 2}}}}"
    options = "{name: head, type: torch.nn.Conv2d, kwargs: {in_channels: 8, out_channels: 1, kernel_size: 1}"
    net = f"- {vit}\n- {options}, inputs: [trunk.p4], outputs: [out]}}\n"
    with pytest.raises(ConfigError, match="node 'head': its layer head takes 8 channels, but 256 come"):
        graph(net, overrides=["MODEL.FPN.SQUARE_PAD", 64, "MODEL.VIT.IMG_SIZE", 64])
