import copy
import pickle

import pytest
import torch
from torch import nn

from detlib.engine.activation_checkpoint import checkpoint_activations
from detlib.engine.prepare_model import compile_parts, prepare_model
from detlib.layers import CycleBatchNormList
from detlib.modeling import build_model
from detlib.utils.errors import ConfigError


class Network(nn.Module):
    """Batch norm, dropout and a norm that is another one in each call."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.towers = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), CycleBatchNormList(2, num_features=4))])

    def forward(self, x):
        x = self.stem(x)
        return sum(self.towers[0](level).relu().square().mean() for level in (x, x + 1))


def trained(patterns):
    torch.manual_seed(0)
    model = Network()
    checkpoint_activations(model, patterns)
    for _ in range(3):
        model(torch.randn(2, 3, 6, 6)).backward()
    return model


@pytest.mark.parametrize("patterns", [["stem", "stem.1", "towers.*"], ["stem.*", "towers.0.*"]])
def test_computing_again_changes_no_gradient_no_statistics_and_no_names(patterns):
    plain, again = trained([]), trained(patterns)
    for (name, expected), found in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad), name
    for (name, expected), (found_name, found) in zip(
        plain.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == found_name and torch.equal(found, expected), name
    assert again.stem[1].num_batches_tracked == 3


def test_norm_that_is_another_one_in_each_call_begins_with_the_first_again():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = CycleBatchNormList(2, num_features=4, affine=False)

        def forward(self, levels):
            return [self.norm(level) for level in levels]

    model = nn.Sequential(Head())
    checkpoint_activations(model, ["0"])
    level = torch.randn(2, 4, 3, 3, requires_grad=True)
    sum(x.square().mean() for x in model([level, level])).backward()
    assert model[0].norm._next == 0


def test_activations_of_the_modules_are_not_kept():
    def kept(patterns):
        torch.manual_seed(0)
        model, sizes = Network(), []
        checkpoint_activations(model, patterns)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            model(torch.randn(2, 3, 16, 16))
        return sum(sizes)

    assert kept(["stem", "towers.0"]) < 0.6 * kept([])


def test_evaluation_computes_once():
    model, calls = Network(), []
    checkpoint_activations(model, ["stem"])
    model.stem[0].register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(2, 3, 6, 6)).backward()
    assert len(calls) == 2
    model.eval()
    model(torch.randn(2, 3, 6, 6))
    assert len(calls) == 3


def test_copies_of_the_model_compute_with_their_own_weights():
    model = Network().eval()
    checkpoint_activations(model, ["stem"])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.stem[0].weight.data.zero_()
        other.stem[0].bias.data.fill_(2.0)
        assert not torch.equal(other.stem(torch.ones(1, 3, 6, 6)), model.stem(torch.ones(1, 3, 6, 6)))


def test_outer_module_is_taken_and_a_star_ends_at_a_dot():
    assert checkpoint_activations(Network(), ["stem", "stem.0"]) == ["stem"]
    assert checkpoint_activations(Network(), ["st*.*"]) == ["stem.0", "stem.1", "stem.2"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("backbone.*", r"no module of the model matches 'backbone\.\*'.*its parts are stem, towers"),
        ("stm", "close names are stem"),
        ("towers", r"'towers'.*is a ModuleList.*write 'towers\.\*'"),
        (3, "has 3; it must be a list of names"),
    ],
)
def test_pattern_of_no_use_is_refused(pattern, message):
    with pytest.raises(ConfigError, match=message):
        checkpoint_activations(Network(), [pattern])


def test_detector_with_recomputed_blocks_has_the_losses_and_gradients_of_one_without(tiny_cfg, sample):
    batch = [sample(64, 64, [[4, 4, 40, 40]], [0])]

    def step(patterns):
        torch.manual_seed(0)
        tiny_cfg.MODEL.ACTIVATION_CHECKPOINT = patterns
        model = prepare_model(tiny_cfg, build_model(tiny_cfg))
        losses = model(batch)
        sum(losses.values()).backward()
        return losses, [p.grad for p in model.parameters()], list(model.buffers())

    for expected, found in zip(step([]), step(["backbone.bottom_up.res*.*", "head"]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Compiled:
    """Counts what runs compiled; torch calls it with a traced graph."""

    def __init__(self):
        self.num_graphs = 0
        self.num_calls = 0

    def __call__(self, graph, example_inputs):
        self.num_graphs += 1

        def run(*args):
            self.num_calls += 1
            return graph(*args)

        return run


def test_compiled_parts_give_the_losses_and_names_of_the_model_and_evaluate_as_it_does(tiny_rcnn_cfg, sample):
    batch = [sample(64, 64, [[4, 4, 40, 40]], [0])]
    torch.manual_seed(0)
    model = build_model(tiny_rcnn_cfg)
    names = list(model.state_dict())
    torch.manual_seed(1)
    expected = model(batch)
    backend = Compiled()
    # The backbone takes long to trace.
    model.backbone.requires_grad_(False)
    assert compile_parts(model, backend) == ["proposal_generator.rpn_head", "roi_heads.box_head"]
    torch.manual_seed(1)
    losses = model(batch)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-4)
    assert backend.num_calls == 2 and list(model.state_dict()) == names
    sum(losses.values()).backward()
    assert model.proposal_generator.rpn_head.conv.weight.grad.abs().sum() > 0
    model.eval()
    model([{"image": batch[0]["image"]}])
    assert backend.num_calls == 2


def test_backbones_that_are_trained_and_dense_heads_are_compiled(tiny_cfg):
    assert compile_parts(build_model(tiny_cfg)) == ["backbone", "head"]


def test_model_without_parts_that_compile_is_refused(tiny_cfg):
    with pytest.raises(ConfigError, match=r"Network has none that is trained; set it to False"):
        compile_parts(Network())
    tiny_cfg.MODEL.COMPILE, tiny_cfg.MODEL.ACTIVATION_CHECKPOINT = True, ["stem"]
    with pytest.raises(ConfigError, match="use one of them"):
        prepare_model(tiny_cfg, Network())
