import pytest
import torch
import torchvision
from torch import nn

from detlib.config import get_cfg
from detlib.layers import FrozenBatchNorm2d
from detlib.modeling import build_backbone
from detlib.modeling.backbone.regnet import (
    AnyNet,
    RegNet,
    ResBasicBlock,
    ResBottleneckBlock,
    ResStem,
    SimpleStem,
    VanillaBlock,
)
from detlib.utils.errors import ConfigError

X_800MF = {"depth": 16, "w_a": 35.73, "w_0": 56, "w_m": 2.28, "group_width": 16}
Y_400MF = {"depth": 16, "w_a": 27.89, "w_0": 48, "w_m": 2.09, "group_width": 8, "se_ratio": 0.25}


def regnet(**kwargs):
    options = {"depth": 4, "w_a": 8, "w_0": 8, "w_m": 2, "group_width": 4, **kwargs}
    return RegNet(**{"stem_class": SimpleStem, "stem_width": 32, "block_class": ResBottleneckBlock, **options})


def name_in_torchvision(key):
    """s1.b2.f.a_bn.weight -> trunk_output.block1.block1-1.f.a.1.weight"""
    part, _, rest = key.partition(".")
    if part == "stem":
        return "stem." + rest.replace("conv", "0").replace("bn", "1")
    stage, (block, _, rest) = part[1:], rest.partition(".")
    rest = rest.replace("f_ex.0", "fc1").replace("f_ex.2", "fc2")
    for name in "abc":
        rest = rest.replace(f"f.{name}_bn.", f"f.{name}.1.").replace(f"f.{name}.weight", f"f.{name}.0.weight")
    if rest.startswith(("proj", "bn")):
        rest = rest.replace("proj", "proj.0").replace("bn", "proj.1")
    return f"trunk_output.block{stage}.block{stage}-{int(block[1:]) - 1}.{rest}"


@pytest.mark.parametrize(("name", "options"), [("regnet_x_800mf", X_800MF), ("regnet_y_400mf", Y_400MF)])
def test_gives_the_same_numbers_as_torchvision(name, options):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name).eval()
    model = regnet(**options, out_features=["s2", "s4"]).eval()
    weights = reference.state_dict()
    model.load_state_dict({key: weights[name_in_torchvision(key)] for key in model.state_dict()})
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = model(x)
        stem = reference.stem(x)
        s2 = reference.trunk_output[:2](stem)
        torch.testing.assert_close(found["s2"], s2)
        torch.testing.assert_close(found["s4"], reference.trunk_output[2:](s2))


@pytest.mark.parametrize(
    ("options", "widths", "depths"),
    [
        # Tables of the paper's models: RegNetX-400MF, RegNetX-4.0GF, RegNetY-4.0GF, RegNetX-32GF.
        ((22, 24.48, 24, 2.54, 16), [32, 64, 160, 384], [1, 2, 7, 12]),
        ((23, 38.65, 96, 2.43, 40), [80, 240, 560, 1360], [2, 5, 14, 2]),
        ((22, 31.41, 96, 2.24, 64), [128, 192, 512, 1088], [2, 6, 12, 2]),
        ((23, 69.86, 320, 2.0, 168), [336, 672, 1344, 2520], [2, 7, 13, 1]),
    ],
)
def test_widths_and_depths_are_those_of_the_paper(options, widths, depths):
    names = ("depth", "w_a", "w_0", "w_m", "group_width")
    with torch.device("meta"):
        model = regnet(**dict(zip(names, options)))
    assert [stage[-1].out_channels for stage, _ in model.stages_and_names] == widths
    assert [len(stage) for stage, _ in model.stages_and_names] == depths


def test_bottleneck_wider_than_its_block_divides_into_groups():
    model = regnet(bottleneck_ratio=2.0, group_width=6)
    for stage, _ in model.stages_and_names:
        conv = stage[0].f.b
        assert (conv.in_channels, conv.in_channels % conv.groups) == (2 * stage[0].out_channels, 0)


@pytest.mark.parametrize("block", [VanillaBlock, ResBasicBlock, ResBottleneckBlock])
@pytest.mark.parametrize("stem", [SimpleStem, ResStem])
def test_every_block_and_stem_gives_the_shapes_it_promises(block, stem):
    model = regnet(block_class=block, stem_class=stem, out_features=["stem", "s1", "s2"])
    maps = model(torch.randn(2, 3, 64, 96))
    for name, shape in model.output_shape().items():
        assert maps[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)


def test_residual_block_adds_its_input():
    block = ResBasicBlock(4, 4, 1, "BN", nn.ReLU, {})
    nn.init.zeros_(block.f.b_bn.weight)
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x), x.relu())
    assert block.proj is None


def test_freeze_at_two_stops_stem_and_s1():
    model = regnet(freeze_at=2, out_features=["s2"])
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "s1"}
    assert isinstance(model.s1.b1.f.a_bn, FrozenBatchNorm2d)
    assert isinstance(model.s2.b1.f.a_bn, nn.BatchNorm2d)


def test_stages_after_the_last_output_are_not_built():
    assert not any(key.startswith("s2") for key in regnet(out_features=["s1"]).state_dict())


def test_anynet_takes_each_stage_as_it_is():
    model = AnyNet(
        stem_class=SimpleStem,
        stem_width=4,
        block_class=ResBottleneckBlock,
        depths=[1, 2],
        widths=[4, 12],
        group_widths=[2, 3],
        strides=[1, 2],
        bottleneck_ratios=[1.0, 0.5],
        se_ratio=0.0,
        activation_class=nn.SiLU,
        out_features=["s1", "s2"],
    )
    assert [(s.channels, s.stride) for s in model.output_shape().values()] == [(4, 2), (12, 4)]
    assert (model.s2.b1.f.b.in_channels, model.s2.b1.f.b.groups) == (6, 2)
    assert isinstance(model.s2.b2.af, nn.SiLU)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("STEM_CLASS", "Stem", "STEM_CLASS is 'Stem'; it must be one of SimpleStem, ResStem"),
        ("OUT_FEATURES", ["s5"], "OUT_FEATURES is .*s5.*stem, s1, s2, s3, s4"),
        ("W_0", 12, "W_0 12.*a multiple of 8"),
    ],
)
def test_unusable_options_are_named(key, value, message):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_regnet_backbone"
    cfg.MODEL.REGNET[key] = value
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_backbone(cfg)
