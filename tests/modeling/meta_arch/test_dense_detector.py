import pytest
import torch

from detlib.modeling import build_model
from detlib.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detlib.utils.errors import ConfigError


def test_permute_to_N_HWA_K_keeps_anchors_of_one_cell_together():
    x = torch.arange(8.0).view(1, 4, 1, 2)  # (N=1, A*K=4, H=1, W=2): A = 2, K = 2
    expected = torch.tensor([[[0.0, 2.0], [4.0, 6.0], [1.0, 3.0], [5.0, 7.0]]])  # cell 0, then cell 1
    torch.testing.assert_close(permute_to_N_HWA_K(x, 2), expected)


def test_permute_refuses_channels_that_are_no_multiple_of_K():
    with pytest.raises(ValueError, match=r"expected a shape \(N, A \* 3, H, W\), got \(1, 4, 1, 2\)"):
        permute_to_N_HWA_K(torch.zeros(1, 4, 1, 2), 3)


def test_moving_average_starts_from_the_initial_value(tiny_cfg):
    model = build_model(tiny_cfg)
    assert float(model._ema_update("average", torch.tensor(20.0), initial_value=10.0)) == pytest.approx(11.0)
    assert float(model._ema_update("average", torch.tensor(1.0), initial_value=10.0)) == pytest.approx(10.0)
    assert "average" not in model.state_dict()


def test_all_feature_maps_are_used_by_default(tiny_cfg):
    model = build_model(tiny_cfg)
    detector = type(model).__mro__[1](model.backbone, model.head, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    assert detector.head_in_features == ["p3", "p4", "p5", "p6", "p7"]


def on_a_bare_resnet(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RETINANET.IN_FEATURES = cfg.MODEL.FCOS.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64]]
    return cfg


@pytest.mark.parametrize("detector", ["RetinaNet", "FCOS"])
def test_maps_of_different_channels_ask_for_a_neck(tiny_cfg, detector):
    tiny_cfg.MODEL.META_ARCHITECTURE = detector
    with pytest.raises(ConfigError, match=r"have \[16, 32, 64\] channels; .*Set MODEL.NECK to one such as PAFPN"):
        build_model(on_a_bare_resnet(tiny_cfg))


def test_head_without_convolutions_is_refused(tiny_cfg):
    tiny_cfg.MODEL.RETINANET.NUM_CONVS = 0
    with pytest.raises(ConfigError, match="one convolution or more; set NUM_CONVS"):
        build_model(tiny_cfg)


@pytest.mark.parametrize(
    ("detector", "head", "message"),
    [
        ("RetinaNet", {"NAME": "FCOSHead"}, r"FCOSHead .* \[18, 24, 1\] .*RetinaNet needs A times \[3, 4\]"),
        ("FCOS", {"NAME": "RetinaNetHead"}, r"RetinaNetHead .* \[3, 4\] .*FCOS needs A times \[3, 4, 1\]"),
        ("FCOS", {"NAME": "FCOSHead", "NUM_ANCHORS": 2}, r"FCOSHead .* \[6, 8, 1\]"),
        ("RetinaNet", {"NAME": "RetinaNetHead", "NUM_CLASSES": 7}, r"RetinaNetHead .* \[42, 24\]"),
    ],
)
def test_head_that_predicts_something_else_is_named(tiny_cfg, sample, detector, head, message):
    tiny_cfg.MODEL.META_ARCHITECTURE = detector
    tiny_cfg.MODEL.FCOS.NUM_CLASSES = 3
    tiny_cfg.MODEL[detector.upper()].HEAD = {"CONV_DIMS": [16], "NORM": "", **head}
    model = build_model(tiny_cfg)
    with pytest.raises(ConfigError, match=message):
        model([sample(64, 64, [[8, 8, 40, 40]], [1])])


def test_head_of_fcos_by_name_takes_its_options(tiny_cfg, sample):
    tiny_cfg.MODEL.META_ARCHITECTURE = "FCOS"
    tiny_cfg.MODEL.FCOS.NUM_CLASSES = 3
    tiny_cfg.MODEL.FCOS.HEAD = {"NAME": "FCOSHead", "CONV_DIMS": [8, 24], "NORM": ""}
    model = build_model(tiny_cfg)
    assert model.head.ctrness.in_channels == 24
    assert all(loss.isfinite() for loss in model([sample(64, 64, [[8, 8, 40, 40]], [1])]).values())
