import pytest
import torch
import torchvision

from detlib.config import get_cfg
from detlib.layers import FrozenBatchNorm2d
from detlib.modeling import build_backbone
from detlib.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from detlib.utils.errors import ConfigError


def resnet(depth, **kwargs):
    return ResNet(BasicStem(norm="BN"), ResNet.make_default_stages(depth, norm="BN"), **kwargs)


def name_in_torchvision(key):
    """res2.0.conv1.norm.weight -> layer1.0.bn1.weight"""
    key = key.replace("stem.", "").replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
    for i in (1, 2, 3):
        key = key.replace(f"conv{i}.norm", f"bn{i}")
    for i in (2, 3, 4, 5):
        key = key.replace(f"res{i}.", f"layer{i - 1}.")
    return key.replace("linear.", "fc.")


@pytest.mark.parametrize("depth", [18, 50])
def test_gives_the_same_numbers_as_torchvision(depth):
    torch.manual_seed(0)
    reference = getattr(torchvision.models, f"resnet{depth}")().eval()
    model = resnet(depth, num_classes=1000).eval()
    weights = reference.state_dict()
    model.load_state_dict({key: weights[name_in_torchvision(key)] for key in model.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x)["linear"], reference(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("depth", "channels"), [(18, 512), (34, 512), (50, 2048), (101, 2048), (152, 2048)])
def test_every_depth_ends_with_stride_32(depth, channels):
    with torch.device("meta"):
        model = resnet(depth)
        assert model(torch.zeros(1, 3, 64, 96))["res5"].shape == (1, channels, 2, 3)
    assert (model.output_shape()["res5"].channels, model.output_shape()["res5"].stride) == (channels, 32)


def test_stages_after_the_last_output_are_not_built():
    with torch.device("meta"):
        model = resnet(18, out_features=["res2", "res3"])
        assert list(model(torch.zeros(1, 3, 32, 32))) == ["res2", "res3"]
    assert not any(key.startswith(("res4", "res5")) for key in model.state_dict())


def test_freeze_at_two_stops_stem_and_res2():
    model = resnet(18, freeze_at=2)
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}
    assert isinstance(model.stem.conv1.norm, FrozenBatchNorm2d)
    assert not isinstance(model.res3[0].conv1.norm, FrozenBatchNorm2d)


def test_stride_of_msra_weights_is_in_the_first_convolution():
    block = BottleneckBlock(8, 16, bottleneck_channels=4, stride=2, stride_in_1x1=True)
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


def test_make_stage_takes_a_value_for_each_block():
    blocks = ResNet.make_stage(
        BottleneckBlock, 3, in_channels=8, out_channels=16, bottleneck_channels=4, stride_per_block=[2, 1, 1]
    )
    assert [b.stride for b in blocks] == [2, 1, 1]
    assert [b.in_channels for b in blocks] == [8, 16, 16]


def test_make_stage_refuses_a_list_of_another_length():
    with pytest.raises(ValueError, match="stride_per_block with 3 values"):
        ResNet.make_stage(
            BottleneckBlock, 3, in_channels=8, out_channels=16, bottleneck_channels=4, stride_per_block=[2, 1]
        )


def config(tiny_cfg, **resnets):
    tiny_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    for key, value in resnets.items():
        tiny_cfg.MODEL.RESNETS[key] = value
    return tiny_cfg


def test_narrow_resnet_from_config(tiny_cfg):
    shapes = build_backbone(config(tiny_cfg)).output_shape()
    assert [s.channels for s in shapes.values()] == [16, 32, 64]


def test_dilated_res5_keeps_the_resolution_of_res4(tiny_cfg):
    cfg = config(tiny_cfg, DEPTH=50, RES5_DILATION=2, OUT_FEATURES=["res4", "res5"], WIDTH_PER_GROUP=4)
    with torch.device("meta"):
        model = build_backbone(cfg)
        maps = model(torch.zeros(1, 3, 64, 64))
    assert maps["res5"].shape[-2:] == maps["res4"].shape[-2:] == (4, 4)
    assert model.output_shape()["res5"].stride == 16


def test_resnext_has_grouped_convolutions(tiny_cfg):
    model = build_backbone(config(tiny_cfg, DEPTH=50, NUM_GROUPS=4, WIDTH_PER_GROUP=2, RES2_OUT_CHANNELS=16))
    assert model.res3[0].conv2.groups == 4
    assert model.res3[0].conv2.in_channels == 16


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_stage_starts_as_a_plain_convolution(tiny_cfg, modulated):
    cfg = config(
        tiny_cfg,
        DEPTH=50,
        WIDTH_PER_GROUP=4,
        DEFORM_ON_PER_STAGE=[False, True, False, False],
        DEFORM_MODULATED=modulated,
    )
    block = build_backbone(cfg).eval().res3[0]
    x = torch.randn(1, block.in_channels, 8, 8)
    hidden = torch.relu(block.conv1(x))  # (1, 8, 4, 4), as the stride is in the first convolution
    plain = torch.nn.functional.conv2d(hidden, block.conv2.weight, padding=1)
    weights = [torch.ones(1, 9, 4, 4)] if modulated else []
    found = block.conv2(hidden, torch.zeros(1, 18, 4, 4), *weights)
    torch.testing.assert_close(found, block.conv2.norm(plain), atol=1e-4, rtol=1e-4)
    assert block(x).shape == (1, 16, 4, 4)


def test_unknown_depth_lists_the_known_ones(tiny_cfg):
    with pytest.raises(ConfigError, match="DEPTH is 20; it must be one of 18, 34, 50, 101, 152"):
        build_backbone(config(tiny_cfg, DEPTH=20))


def test_unknown_output_lists_the_known_ones(tiny_cfg):
    with pytest.raises(ConfigError, match=r"OUT_FEATURES is .*res6.*stem, res2, res3, res4, res5"):
        build_backbone(config(tiny_cfg, OUT_FEATURES=["res6"]))


def test_basic_blocks_cannot_be_dilated(tiny_cfg):
    with pytest.raises(ConfigError, match="use a depth of 50 or more"):
        build_backbone(config(tiny_cfg, RES5_DILATION=2))


@pytest.mark.parametrize("depth", [18, 50])
def test_blocks_whose_branches_start_as_0_are_their_shortcuts(depth):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    options = ["DEPTH", depth, "NORM", "BN", "RES2_OUT_CHANNELS", 8, "STEM_OUT_CHANNELS", 8, "ZERO_INIT_RESIDUAL", True]
    cfg.MODEL.RESNETS.merge_from_list(options)
    block = build_backbone(cfg).res2[-1]  # without a projection
    x = torch.rand(2, 8, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("norm", "found"), [("FrozenBN", "FrozenBatchNorm2d"), ("", "NoneType")])
def test_branches_without_a_learned_scale_cannot_start_as_0(norm, found):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.merge_from_list(["DEPTH", 18, "NORM", norm, "ZERO_INIT_RESIDUAL", True])
    with torch.device("meta"), pytest.raises(ConfigError, match=f"blocks end in {found}, whose scale"):
        build_backbone(cfg)
