import pytest
import torch

from detlib.config import get_cfg
from detlib.modeling.backbone import BasicStem, ResNet, ResNet_CIFAR, build_bottom_up
from detlib.utils.errors import ConfigError


def on_meta(depth, **kwargs):
    with torch.device("meta"):
        return ResNet_CIFAR(depth, **kwargs)


@pytest.mark.parametrize(
    ("depth", "num_classes", "expected"),
    [(18, 10, 11_173_962), (34, 10, 21_282_122), (50, 10, 23_520_842), (50, 100, 23_705_252)],
)
def test_has_as_many_parameters_as_published(depth, num_classes, expected):
    model = on_meta(depth, num_classes=num_classes)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("depth", [18, 50])
def test_32_pixels_end_as_4_cells(depth):
    model = on_meta(depth, out_features=["stem", "res2", "res3", "res4", "res5"])
    maps = model(torch.zeros(2, 3, 32, 32, device="meta"))
    expansion = 1 if depth == 18 else 4
    channels = [64] + [width * expansion for width in (64, 128, 256, 512)]
    assert [(s.channels, s.stride) for s in model.output_shape().values()] == list(zip(channels, [1, 1, 2, 4, 8]))
    assert [x.shape for x in maps.values()] == [(2, c, s, s) for c, s in zip(channels, [32, 32, 16, 8, 4])]


def test_sizes_are_rounded_up():
    maps = on_meta(18, out_features=["res2", "res5"])(torch.zeros(1, 3, 257, 191, device="meta"))
    assert [x.shape[-2:] for x in maps.values()] == [(257, 191), (33, 24)]


def test_gives_the_last_stage_by_default():
    assert list(on_meta(18).output_shape()) == ["res5"]
    assert list(on_meta(18, num_classes=10).output_shape()) == ["linear"]


def test_differs_from_resnet_by_the_stem_only():
    ours = on_meta(18).state_dict()
    with torch.device("meta"):
        theirs = ResNet(BasicStem(), ResNet.make_default_stages(18)).state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key].shape != theirs[key].shape] == ["stem.conv1.weight"]


def test_stem_is_a_convolution_a_norm_and_a_relu():
    stem = ResNet_CIFAR(18, base_channels=4).eval().stem
    x = torch.randn(1, 3, 6, 5)
    expected = torch.nn.functional.conv2d(x, stem.conv1.weight, padding=1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(stem(x), expected.clamp(min=0))


def test_base_channels_make_it_narrow():
    model = on_meta(50, in_channels=1, base_channels=8, out_features=["stem", "res2", "res5"])
    maps = model(torch.zeros(1, 1, 16, 16, device="meta"))
    assert [x.shape[1] for x in maps.values()] == [8, 32, 256]
    assert model.res2[0].conv2.in_channels == 8


def test_freeze_at_one_stops_the_stem():
    model = on_meta(18, freeze_at=1)
    assert {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad} == {"stem"}


def test_deep_stem_is_refused():
    with pytest.raises(AssertionError, match="has no deep stem"):
        ResNet_CIFAR(18, deep_stem=True)


def test_is_built_from_a_config():
    cfg = get_cfg()
    for key, value in {"NAME": "ResNet_CIFAR", "DEPTH": 34, "BASE_CHANNELS": 8, "FREEZE_AT": 0}.items():
        cfg.MODEL.BACKBONE[key] = value
    model = build_bottom_up(cfg)
    assert model.output_shape()["res5"].channels == 64
    assert len(model.res4) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, "DEPTH is 20; it must be one of 18, 34, 50, 101, 152"),
        ({"depth": 18, "out_features": ["linear"]}, r"OUT_FEATURES is \['linear'\].*stem, res2, res3, res4, res5"),
    ],
)
def test_unusable_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        on_meta(**options)


def test_branches_start_as_0_if_wanted():
    last_norms = ["res2.0.conv2.norm.weight", "res5.1.conv2.norm.weight"]
    weights = ResNet_CIFAR(18, base_channels=4, zero_init_residual=True).state_dict()
    assert [weights[name].abs().sum() for name in last_norms] == [0, 0]
    assert ResNet_CIFAR(18, base_channels=4).state_dict()[last_norms[0]].tolist() == [1] * 4
