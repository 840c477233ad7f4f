import pytest
import torch
from torch import nn

from detlib.layers import ShapeSpec
from detlib.modeling.neck import BiFPN, fast_normalized_fusion
from detlib.utils.errors import ConfigError

SHAPES = {name: ShapeSpec(channels=c, stride=s) for name, c, s in (("res3", 4, 8), ("res4", 6, 16), ("res5", 8, 32))}


def maps(height=128, width=192):
    """Maps of noise of two images, with sizes rounded up."""
    generator = torch.Generator().manual_seed(0)
    sizes = {name: (-(-height // s.stride), -(-width // s.stride)) for name, s in SHAPES.items()}
    return {name: torch.randn(2, SHAPES[name].channels, *size, generator=generator) for name, size in sizes.items()}


def plain(levels=3, num_layers=1):
    """A neck of one channel and no norm, all of whose convolutions are the identity; epsilon does not count."""
    shapes = {f"c{i}": ShapeSpec(channels=1, stride=2**i) for i in range(levels)}
    neck = BiFPN(shapes, out_channels=1, num_outs=levels, num_layers=num_layers, norm="", epsilon=0.0)
    for module in neck.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
            nn.init.zeros_(module.bias)
            module.activation = None
    return neck


def constants(*values):
    """Maps of one channel, each half as large as the one before."""
    size = 2 ** (len(values) - 1)
    return {f"c{i}": torch.full((1, 1, size >> i, size >> i), float(v)) for i, v in enumerate(values)}


def test_fusion_is_a_mean_with_weights_that_are_not_negative():
    fused = fast_normalized_fusion(
        [torch.tensor(4.0), torch.tensor(8.0), torch.tensor(100.0)], torch.tensor([1.0, 3, -2])
    )
    torch.testing.assert_close(fused, torch.tensor((1 * 4 + 3 * 8) / 4.0001))


def test_fusion_of_equal_weights_is_the_mean_but_for_epsilon():
    fused = fast_normalized_fusion([torch.ones(2), torch.ones(2) * 3], torch.ones(2), epsilon=1e-4)
    torch.testing.assert_close(fused, torch.full((2,), 4 / 2.0001))


def test_levels_are_joined_down_then_up_with_their_input_once_more():
    levels = plain()(constants(2, 6, 14))
    # Down: (6 + 14) / 2 = 10. Up: (2 + 10) / 2 = 6, (6 + 10 + 6) / 3 = 22 / 3, (14 + 22 / 3) / 2 = 32 / 3.
    for level, value in zip(levels.values(), (6, 22 / 3, 32 / 3), strict=True):
        torch.testing.assert_close(level, torch.full_like(level, value))


def test_weights_choose_what_a_level_is_made_of():
    neck = plain()
    layer = neck.layers[0]
    layer.down[0].weights.data = torch.tensor([1.0, 3])
    layer.up[0].weights.data = torch.tensor([0.0, 2])
    layer.up[1].weights.data = torch.tensor([5.0, 0, -1])
    layer.up[2].weights.data = torch.tensor([1.0, 1])
    # Down: (6 + 3 * 14) / 4 = 12. Up: 12; the input, 6; (14 + 6) / 2 = 10.
    assert [x.unique().tolist() for x in neck(constants(2, 6, 14)).values()] == [[12], [6], [10]]


def test_second_layer_takes_the_levels_of_the_first():
    once, twice = plain(), plain(num_layers=2)
    first = once(constants(2, 6, 14))
    expected = once({f"c{i}": x for i, x in enumerate(first.values())})
    torch.testing.assert_close(twice(constants(2, 6, 14)), expected)


def test_two_levels_have_no_node_between_them():
    levels = plain(levels=2)(constants(2, 6))
    assert [x.unique().tolist() for x in levels.values()] == [[4], [5]]  # (2 + 6) / 2, (6 + 4) / 2


def test_halving_takes_the_largest_cell_and_doubling_repeats_it():
    neck = plain(levels=2)
    layer = neck.layers[0]
    layer.up[0].weights.data = torch.tensor([0.0, 1])
    layer.up[1].weights.data = torch.tensor([0.0, 1])
    levels = neck({"c0": torch.zeros(1, 1, 4, 4), "c1": torch.tensor([[[[1.0, 2], [3, 4]]]])})
    expected = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]])
    assert torch.equal(levels["p0"][0, 0], expected)
    assert torch.equal(levels["p1"][0, 0], torch.tensor([[1.0, 2], [3, 4]]))  # Windows reach one cell back, not ahead.


@pytest.mark.parametrize("size", [(128, 192), (32, 64), (61, 90)])
def test_levels_have_the_shapes_that_are_promised(size):
    neck = BiFPN(SHAPES, out_channels=5, num_layers=2)
    levels = neck(maps(*size))
    assert neck.output_shape() == {f"p{i}": ShapeSpec(channels=5, stride=2**i) for i in range(3, 8)}
    sizes = {f"p{i}": (2, 5, *(-(-side // 2**i) for side in size)) for i in range(3, 8)}
    assert {name: tuple(x.shape) for name, x in levels.items()} == sizes
    assert neck.size_divisibility == 32


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    neck = BiFPN(SHAPES, out_channels=5, num_layers=2)
    sum((x * torch.randn_like(x)).sum() for x in neck(maps()).values()).backward()
    assert [name for name, p in neck.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    weights = [name for name, _ in neck.named_parameters() if name.endswith("weights")]
    assert len(weights) == 2 * (3 + 5)  # Three levels are joined on the way down, all five on the way up.


def test_joined_maps_pass_a_separable_convolution_norm_and_swish():
    neck = BiFPN(SHAPES, out_channels=64)
    conv = neck.layers[0].up[0].conv
    assert (conv.depthwise.groups, conv.depthwise.kernel_size, conv.pointwise.kernel_size) == (64, (3, 3), (1, 1))
    assert type(conv.pointwise.norm) is nn.BatchNorm2d and type(conv.pointwise.activation) is nn.SiLU
    # Per node 3 * 3 * 64 + 64 biases, 64 * 64 and 2 * 64 of the norm: 4864; and two or three weights.
    assert sum(p.numel() for p in neck.layers[0].parameters()) == 8 * 4864 + 3 * 2 + 2 + 3 * 3 + 2


def test_half_precision_stays():
    levels = BiFPN(SHAPES, out_channels=5).bfloat16()({name: x.bfloat16() for name, x in maps().items()})
    assert {x.dtype for x in levels.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": ["res2"]}, r"MODEL.NECK.IN_FEATURES is \['res2'\]"),
        ({"num_outs": 2}, r"MODEL.NECK.NUM_OUTS is 2, but there are 3 maps"),
        ({"in_features": ["res5"], "num_outs": 1}, r"joins levels, and MODEL.NECK.NUM_OUTS is 1"),
        ({"num_layers": 0}, r"NUM_LAYERS 0"),
    ],
)
def test_arguments_that_do_not_fit_name_their_keys(arguments, message):
    with pytest.raises(ConfigError, match=message):
        BiFPN(SHAPES, **arguments)
