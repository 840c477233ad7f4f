import pytest
import torch
from torch import nn

from detlib.layers import ShapeSpec
from detlib.modeling import FPN, Backbone
from detlib.modeling.neck import PAFPN
from detlib.utils.errors import ConfigError, UnknownNameError

CHANNELS = {"res2": 2, "res3": 4, "res4": 6, "res5": 8}
SHAPES = {name: ShapeSpec(channels=c, stride=4 * 2**i) for i, (name, c) in enumerate(CHANNELS.items())}
RESNET50 = {name: ShapeSpec(channels=256 * 2**i, stride=4 * 2**i) for i, name in enumerate(CHANNELS)}


def maps(height=64, width=96, shapes=SHAPES):
    """Maps of noise of two images, with sizes rounded up."""
    generator = torch.Generator().manual_seed(0)
    sizes = {name: (-(-height // s.stride), -(-width // s.stride)) for name, s in shapes.items()}
    return {name: torch.randn(2, shapes[name].channels, *size, generator=generator) for name, size in sizes.items()}


class Maps(Backbone):
    """Gives :func:`maps` whatever the image is."""

    def forward(self, x):
        return maps()

    def output_shape(self):
        return SHAPES


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def identity(convs, factor=1.0):
    """Make 3x3 convolutions copy the centre of their window."""
    for conv in convs:
        nn.init.dirac_(conv.weight)
        conv.weight.data *= factor


def fpn_of(neck, out_channels):
    """An FPN that shares the weights of the way down."""
    fpn = FPN(Maps(), list(CHANNELS), out_channels)
    for stage, lateral, output in zip((2, 3, 4, 5), neck.lateral_convs, neck.fpn_convs):
        getattr(fpn, f"fpn_lateral{stage}").load_state_dict(lateral.state_dict())
        getattr(fpn, f"fpn_output{stage}").load_state_dict(output.state_dict())
    return fpn


def test_of_a_resnet50_it_has_6_884_864_parameters():
    with torch.device("meta"):
        neck = PAFPN(RESNET50)
    assert count(neck.lateral_convs) == 984_064
    assert count(neck.lateral_convs, neck.fpn_convs) == 3_344_384  # Those of an FPN.
    assert count(neck) == 6_884_864


def test_levels_are_named_by_their_strides():
    neck = PAFPN(SHAPES, out_channels=5)
    levels = neck(maps())
    assert [(name, tuple(x.shape[1:])) for name, x in levels.items()] == [
        ("p2", (5, 16, 24)),
        ("p3", (5, 8, 12)),
        ("p4", (5, 4, 6)),
        ("p5", (5, 2, 3)),
        ("p6", (5, 1, 2)),
    ]
    assert neck.output_shape() == {f"p{i}": ShapeSpec(channels=5, stride=2**i) for i in range(2, 7)}
    assert neck.size_divisibility == 32


def test_finest_level_is_that_of_an_fpn_and_p6_subsamples_p5():
    neck = PAFPN(SHAPES, out_channels=5)
    levels, expected = neck(maps()), fpn_of(neck, 5)(None)
    torch.testing.assert_close(levels["p2"], expected["p2"])
    assert not torch.allclose(levels["p3"], expected["p3"])
    assert torch.equal(levels["p6"], levels["p5"][:, :, ::2, ::2])


def test_with_a_neutral_way_up_all_levels_are_those_of_an_fpn():
    neck = PAFPN(SHAPES, out_channels=5, num_outs=4)
    for conv in neck.downsample_convs:
        nn.init.zeros_(conv.weight)
    identity(neck.pafpn_convs)
    levels, expected = neck(maps()), fpn_of(neck, 5)(None)
    assert list(levels) == list(expected) == ["p2", "p3", "p4", "p5"]
    for name, level in levels.items():
        torch.testing.assert_close(level, expected[name])


def test_way_up_adds_maps_that_have_not_passed_their_last_convolution():
    shapes = {name: ShapeSpec(channels=1, stride=s) for name, s in (("a", 8), ("b", 16), ("c", 32))}
    neck = PAFPN(shapes, out_channels=1, num_outs=3)
    for conv in neck.lateral_convs:
        nn.init.ones_(conv.weight)
    identity([*neck.fpn_convs, *neck.downsample_convs])
    identity(neck.pafpn_convs, factor=10)
    values = {"a": (4, 1.0), "b": (2, 2.0), "c": (1, 4.0)}
    levels = neck({name: torch.full((1, 1, side, side), value) for name, (side, value) in values.items()})
    # Down: 4, 2 + 4 = 6, 1 + 6 = 7. Up: 7, 6 + 7 = 13, 4 + 13 = 17; the last convolutions multiply by 10.
    assert [x.unique().tolist() for x in levels.values()] == [[7], [130], [170]]


@pytest.mark.parametrize(("source", "channels"), [("on_input", 8), ("on_lateral", 5), ("on_output", 5)])
def test_extra_levels_are_convolutions_of_their_source(source, channels):
    given = maps(128, 128)
    neck = PAFPN(SHAPES, out_channels=5, num_outs=6, add_extra_convs=source)
    levels = neck(given)
    first, second = neck.extra_convs
    assert first.in_channels == channels
    lateral = neck.lateral_convs[-1](given["res5"])
    expected = first({"on_input": given["res5"], "on_lateral": lateral, "on_output": levels["p5"]}[source])
    torch.testing.assert_close(levels["p6"], expected)
    torch.testing.assert_close(levels["p7"], second(expected))
    assert levels["p7"].shape[-2:] == (1, 1)


def test_relu_comes_before_the_second_extra_convolution():
    neck = PAFPN(SHAPES, out_channels=5, num_outs=6, add_extra_convs="on_output", relu_before_extra_convs=True)
    levels = neck(maps(128, 128))
    torch.testing.assert_close(levels["p6"], neck.extra_convs[0](levels["p5"]))
    torch.testing.assert_close(levels["p7"], neck.extra_convs[1](levels["p6"].relu()))


def test_in_features_choose_maps():
    neck = PAFPN(SHAPES, in_features=["res3", "res4"], out_channels=5, num_outs=2)
    assert [conv.in_channels for conv in neck.lateral_convs] == [4, 6]
    assert list(neck(maps())) == list(neck.output_shape()) == ["p3", "p4"]
    assert neck.size_divisibility == 16


@pytest.mark.parametrize("size", [(61, 90), (33, 17)])
def test_sizes_that_are_rounded_up_fit_each_other(size):
    levels = PAFPN(SHAPES, out_channels=5)(maps(*size))
    sizes = [tuple(-(-side // 2**i) for side in size) for i in range(2, 7)]
    assert [tuple(x.shape[-2:]) for x in levels.values()] == sizes


def test_norm_replaces_the_bias_and_may_spare_the_laterals():
    neck = PAFPN(SHAPES, out_channels=5, norm="BN", activation="ReLU", add_extra_convs="on_output")
    convs = [*neck.lateral_convs, *neck.fpn_convs, *neck.downsample_convs, *neck.pafpn_convs, *neck.extra_convs]
    assert all(type(conv.norm) is nn.BatchNorm2d and conv.bias is None for conv in convs)
    assert all(x.min() == 0 for x in neck(maps()).values())
    spared = PAFPN(SHAPES, out_channels=5, norm="BN", no_norm_on_lateral=True)
    assert all(conv.norm is None and conv.bias is not None for conv in spared.lateral_convs)
    assert all(conv.norm is not None for conv in spared.fpn_convs)


def test_weights_start_xavier_uniform_and_biases_at_zero():
    torch.manual_seed(0)
    neck = PAFPN(SHAPES, out_channels=16)
    for conv, fan_in, fan_out in ((neck.lateral_convs[3], 8, 16), (neck.downsample_convs[0], 144, 144)):
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.95 * bound < conv.weight.abs().max() <= bound
    assert all((p == 0).all() for name, p in neck.named_parameters() if name.endswith("bias"))


def test_gradients_reach_every_parameter():
    neck = PAFPN(SHAPES, out_channels=5, num_outs=6, add_extra_convs="on_input", norm="BN")
    levels = neck(maps(128, 128))
    sum((x * torch.randn_like(x)).sum() for x in levels.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in neck.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype):
    levels = PAFPN(SHAPES, out_channels=5).to(dtype)({name: x.to(dtype) for name, x in maps().items()})
    assert {x.dtype for x in levels.values()} == {dtype}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": ["res9"]}, r"MODEL.NECK.IN_FEATURES is \['res9'\], but the backbone gives res2, res3"),
        ({"in_features": []}, r"MODEL.NECK.IN_FEATURES is \[\]"),
        ({"in_features": ["res3", "res5"]}, r"double .* res3, res5 have \[8, 32\]. Change MODEL.NECK.IN_FEATURES"),
        ({"in_features": ["res4", "res3"]}, r"finest first; res4, res3 have \[16, 8\]"),
        ({"num_outs": 3}, r"MODEL.NECK.NUM_OUTS is 3, but there are 4 maps.* MODEL.NECK.IN_FEATURES"),
        ({"add_extra_convs": True}, r"MODEL.NECK.ADD_EXTRA_CONVS is True; .* on_input, on_lateral, on_output"),
        ({"relu_before_extra_convs": True}, r"RELU_BEFORE_EXTRA_CONVS .* set MODEL.NECK.ADD_EXTRA_CONVS"),
        ({"activation": "relu"}, r"MODEL.NECK.ACTIVATION is 'relu'; it must be one of ReLU"),
    ],
)
def test_arguments_that_do_not_fit_name_their_keys(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PAFPN(SHAPES, **arguments)


@pytest.mark.parametrize("stride", [14, 12, None])
def test_strides_that_are_no_power_of_two_are_refused(stride):
    with pytest.raises(ConfigError, match=rf"powers of 2 .* last_feat have \[{stride}\]"):
        PAFPN({"last_feat": ShapeSpec(channels=4, stride=stride)})


def test_unknown_norm_is_refused():
    with pytest.raises(UnknownNameError, match="No norm is called 'bn'"):
        PAFPN(SHAPES, norm="bn")
