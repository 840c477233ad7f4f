import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork

from detlib.layers import ShapeSpec
from detlib.modeling import FPN, Backbone, build_backbone
from detlib.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detlib.utils.errors import ConfigError

CHANNELS = {"res3": 4, "res4": 6, "res5": 8}
STRIDES = {"res3": 8, "res4": 16, "res5": 32}


class Maps(Backbone):
    """Feature maps of noise."""

    def forward(self, x):
        generator = torch.Generator().manual_seed(0)
        H, W = x.shape[-2:]
        return {
            k: torch.randn(len(x), c, H // STRIDES[k], W // STRIDES[k], generator=generator)
            for k, c in CHANNELS.items()
        }

    def output_shape(self):
        return {k: ShapeSpec(channels=c, stride=STRIDES[k]) for k, c in CHANNELS.items()}


def fpn(**kwargs):
    return FPN(Maps(), ["res3", "res4", "res5"], 5, **kwargs)


def test_gives_the_same_numbers_as_torchvision():
    model, reference = fpn(), FeaturePyramidNetwork(list(CHANNELS.values()), 5)
    for i, stage in enumerate((3, 4, 5)):
        reference.inner_blocks[i][0].load_state_dict(getattr(model, f"fpn_lateral{stage}").state_dict())
        reference.layer_blocks[i][0].load_state_dict(getattr(model, f"fpn_output{stage}").state_dict())
    x = torch.zeros(2, 3, 64, 96)
    found, expected = model(x), reference(model.bottom_up(x))
    assert list(found) == ["p3", "p4", "p5"]
    for level, name in zip(("p3", "p4", "p5"), CHANNELS):
        torch.testing.assert_close(found[level], expected[name])


def test_average_halves_the_sum_at_every_merge():
    torch.manual_seed(0)
    summed, averaged = fpn(), fpn(fuse_type="avg")
    averaged.load_state_dict(summed.state_dict())
    for model in (summed, averaged):
        torch.nn.init.zeros_(model.fpn_lateral3.weight)
        torch.nn.init.zeros_(model.fpn_output3.bias)
    x = torch.zeros(1, 3, 64, 64)
    # p4 = out(lateral4 + up), p3 = out(0 + up): its input is halved twice on the way from p5, once on that from res4.
    torch.testing.assert_close(averaged(x)["p5"], summed(x)["p5"])
    with torch.no_grad():
        torch.nn.init.zeros_(summed.fpn_lateral4.weight)
        torch.nn.init.zeros_(averaged.fpn_lateral4.weight)
    torch.testing.assert_close(averaged(x)["p3"] * 4, summed(x)["p3"])


def test_retinanet_makes_p6_and_p7_from_res5():
    model = fpn(top_block=LastLevelP6P7(8, 5))
    maps = model(torch.zeros(1, 3, 128, 128))
    assert [(name, tuple(x.shape[1:])) for name, x in maps.items()] == [
        ("p3", (5, 16, 16)),
        ("p4", (5, 8, 8)),
        ("p5", (5, 4, 4)),
        ("p6", (5, 2, 2)),
        ("p7", (5, 1, 1)),
    ]
    torch.testing.assert_close(maps["p6"], model.top_block.p6(model.bottom_up(torch.zeros(1, 3, 128, 128))["res5"]))
    assert model.output_shape()["p7"].stride == 128


def test_rcnn_subsamples_p5_to_p6():
    maps = fpn(top_block=LastLevelMaxPool())(torch.zeros(1, 3, 128, 128))
    torch.testing.assert_close(maps["p6"], maps["p5"][:, :, ::2, ::2])


def test_top_block_without_its_level_is_refused():
    with pytest.raises(ConfigError, match=r"LastLevelMaxPool builds on 'p5', but the levels are p3, p4"):
        FPN(Maps(), ["res3", "res4"], 5, top_block=LastLevelMaxPool())


def test_input_must_be_a_multiple_of_the_coarsest_lateral():
    assert fpn(top_block=LastLevelP6P7(8, 5)).size_divisibility == 32


def test_square_padding_is_handed_on():
    assert fpn(square_pad=64).padding_constraints == {"square_size": 64}


def test_unknown_input_lists_what_the_backbone_gives():
    with pytest.raises(ConfigError, match=r"IN_FEATURES is .*res9.*res3, res4, res5"):
        FPN(Maps(), ["res9"], 5)


def test_strides_that_do_not_double_are_refused():
    with pytest.raises(ConfigError, match="strides double"):
        FPN(Maps(), ["res3", "res5"], 5)


def test_unknown_fuse_type_is_refused():
    with pytest.raises(ConfigError, match="FUSE_TYPE is 'max'"):
        fpn(fuse_type="max")


def test_retinanet_backbone_without_res5_names_the_key(tiny_cfg):
    tiny_cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4"]
    tiny_cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    with pytest.raises(ConfigError, match=r"needs res5.*OUT_FEATURES"):
        build_backbone(tiny_cfg)


def test_maps_without_a_stride_are_refused(monkeypatch):
    monkeypatch.setitem(STRIDES, "res4", None)
    with pytest.raises(ConfigError, match=r"strides double, got \[8, None, 32\].*in MODEL.FPN, or .* as a neck"):
        fpn()
