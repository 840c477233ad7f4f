import pytest
import torch
import torchvision
from torch import nn

from detlib.config import get_cfg
from detlib.layers import FrozenBatchNorm2d
from detlib.modeling.backbone import MobileNet, MobileNetV2, build_bottom_up
from detlib.modeling.backbone.mobilenet import InvertedResidual
from detlib.utils.errors import ConfigError

STAGES = [f"stage{i}" for i in range(1, 8)]
ALL_V2 = [*STAGES, "conv_out"]


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


def on_meta(model_class, **kwargs):
    with torch.device("meta"):
        return model_class(**kwargs)


def channels_and_strides(model):
    return [(shape.channels, shape.stride) for shape in model.output_shape().values()]


def test_v2_gives_the_same_numbers_as_torchvision():
    torch.manual_seed(0)
    reference = torchvision.models.mobilenet_v2().features.eval()
    model = MobileNetV2(out_features=["stage2", "stage3", "stage5", "stage7", "conv_out"]).eval()
    # Both have their layers in the order of the network.
    model.load_state_dict(dict(zip(model.state_dict(), reference.state_dict().values(), strict=True)))
    x = torch.randn(1, 3, 65, 96)
    with torch.no_grad():
        maps = model(x)
        for name, end in {"stage2": 3, "stage3": 6, "stage5": 13, "stage7": 17, "conv_out": 18}.items():
            torch.testing.assert_close(maps[name], reference[: end + 1](x))


@pytest.mark.parametrize(
    ("width_mult", "channels"),
    [
        (0.5, [8, 16, 16, 32, 48, 80, 160, 1280]),
        (0.75, [16, 24, 24, 48, 72, 120, 240, 1280]),
        (1, [16, 24, 32, 64, 96, 160, 320, 1280]),
        (1.4, [24, 32, 48, 88, 136, 224, 448, 1792]),
    ],
)
def test_v2_has_the_channels_of_its_width(width_mult, channels):
    model = on_meta(MobileNetV2, width_mult=width_mult, out_features=ALL_V2)
    assert channels_and_strides(model) == list(zip(channels, [2, 4, 8, 16, 16, 32, 32, 32]))


def test_v2_has_as_many_parameters_as_in_the_paper():
    assert num_parameters(on_meta(MobileNetV2)) == 2_223_872
    assert num_parameters(on_meta(MobileNetV2, out_features=["stage7"])) == 1_811_712


def test_v2_gives_four_strides_by_default():
    shapes = on_meta(MobileNetV2).output_shape()
    assert list(shapes) == ["stage2", "stage3", "stage5", "conv_out"]
    assert [(s.channels, s.stride) for s in shapes.values()] == [(24, 4), (32, 8), (96, 16), (1280, 32)]


def test_v1_has_the_parameters_channels_and_strides_of_the_paper():
    model = on_meta(MobileNet)
    assert num_parameters(model) == 3_206_976
    assert list(model.output_shape()) == ["res2", "res3", "res4", "res5"]
    assert channels_and_strides(model) == [(128, 4), (256, 8), (512, 16), (1024, 32)]


def test_v1_scales_its_channels():
    assert channels_and_strides(on_meta(MobileNet, width_mult=0.25)) == [(32, 4), (64, 8), (128, 16), (256, 32)]


@pytest.mark.parametrize("model_class", [MobileNet, MobileNetV2])
@pytest.mark.parametrize("size", [(224, 224), (257, 191)])
def test_sizes_are_rounded_up(model_class, size):
    model = on_meta(model_class, width_mult=0.25)
    maps = model(torch.zeros(2, 3, *size, device="meta"))
    shapes = model.output_shape()
    assert list(maps) == list(shapes)
    for name, shape in shapes.items():
        assert maps[name].shape == (2, shape.channels, *(-(-side // shape.stride) for side in size)), name


def test_what_follows_the_last_output_is_not_built():
    model = on_meta(MobileNetV2, out_features=["stage1", "stage3"])
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"stem", "stage1", "stage2", "stage3"}


def test_outputs_come_in_the_order_they_are_asked_for():
    model = on_meta(MobileNet, out_features=["res3", "stem"])
    assert list(model(torch.zeros(1, 3, 32, 32, device="meta"))) == ["res3", "stem"]


def test_inverted_residual_adds_its_input_where_shapes_agree():
    x = torch.randn(1, 8, 5, 5)
    block = InvertedResidual(8, 8)
    nn.init.zeros_(block.project.norm.weight)
    torch.testing.assert_close(block(x), x)
    for channels, stride in ((8, 2), (16, 1)):
        block = InvertedResidual(8, channels, stride=stride)
        nn.init.zeros_(block.project.norm.weight)
        assert block(x).count_nonzero() == 0


def test_projection_has_no_activation():
    block = InvertedResidual(8, 16)
    assert block(torch.randn(1, 8, 5, 5)).min() < 0


def test_freeze_at_three_stops_the_stem_and_two_stages():
    model = MobileNetV2(width_mult=0.25, out_features=["stage3"], freeze_at=3)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"stage3"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()(torch.randn(2, 3, 32, 32))
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"stage3"}
    assert isinstance(model.stage2[0].depthwise.norm, FrozenBatchNorm2d)


def test_freeze_at_zero_trains_all():
    assert all(p.requires_grad for p in MobileNet(width_mult=0.25).parameters())


@pytest.mark.parametrize("model_class", [MobileNet, MobileNetV2])
def test_norm_eval_keeps_statistics_when_training(model_class):
    model = model_class(width_mult=0.25, norm_eval=True).train()
    before = [buffer.clone() for buffer in model.buffers()]
    sum(x.sum() for x in model(torch.randn(2, 3, 32, 32)).values()).backward()
    assert all(buffer.equal(b) for buffer, b in zip(model.buffers(), before))
    assert all(p.grad is not None for p in model.parameters())


def test_takes_other_norms_and_channels():
    model = MobileNet(in_channels=1, out_features=["stem"], norm="GN")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model(torch.zeros(1, 1, 8, 8))["stem"].shape == (1, 64, 4, 4)


def test_is_built_from_a_config():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "MobileNetV2"
    cfg.MODEL.BACKBONE.WIDTH_MULT = 0.5
    cfg.MODEL.BACKBONE.OUT_FEATURES = ["stage3", "stage5", "stage7"]
    cfg.MODEL.BACKBONE.NORM = "FrozenBN"
    model = build_bottom_up(cfg)
    assert channels_and_strides(model) == [(16, 8), (48, 16), (160, 32)]
    assert isinstance(model.stage7[0].project.norm, FrozenBatchNorm2d)
    # FREEZE_AT is 2 by default.
    assert {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == {"stem", "stage1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"out_features": ["stage8"]},
            r"OUT_FEATURES of MobileNetV2 is \['stage8'\].*stem, stage1,.* conv_out",
        ),
        ({"out_features": []}, r"is \[\]; it must name at least one"),
        ({"width_mult": 0}, "WIDTH_MULT is 0; it must be above 0"),
    ],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        on_meta(MobileNetV2, **options)


def test_image_without_batch_is_refused():
    with pytest.raises(ValueError, match=r"MobileNet takes images of shape \(N, C, H, W\), got \(3, 8, 8\)"):
        on_meta(MobileNet)(torch.zeros(3, 8, 8))
