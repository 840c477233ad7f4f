"""Necks that MODEL.NECK names, in whole detectors."""

import pytest
import torch

from detlib.modeling import build_backbone, build_model
from detlib.modeling.backbone.with_neck import BackboneWithNeck
from detlib.modeling.neck import NECK_REGISTRY, build_neck
from detlib.utils.errors import ConfigError, ConfigTypeError, UnknownNameError

NECKS = {
    "PAFPN": {"NAME": "PAFPN", "OUT_CHANNELS": 16, "ADD_EXTRA_CONVS": "on_output", "RELU_BEFORE_EXTRA_CONVS": True},
    "PAFPN-input": {"NAME": "PAFPN", "OUT_CHANNELS": 16, "ADD_EXTRA_CONVS": "on_input", "NORM": "BN"},
    "BiFPN": {"NAME": "BiFPN", "OUT_CHANNELS": 16, "NUM_LAYERS": 2},
    "FPN": {"NAME": "FPN", "OUT_CHANNELS": 16, "TOP_BLOCK": "LastLevelP6P7"},
    "FPN-p5": {"NAME": "FPN", "OUT_CHANNELS": 16, "TOP_BLOCK": "LastLevelP6P7", "TOP_BLOCK_IN_FEATURE": "p5"},
}


@pytest.fixture
def batch(sample):
    """Images of two sizes, one with objects."""
    return [sample(64, 64, [[4.0, 4, 30, 40], [20, 20, 60, 60]], [0, 2]), sample(48, 72)]


def on_resnet(cfg, neck, out_features=("res3", "res4", "res5")):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = list(out_features)
    cfg.MODEL.NECK = neck
    return cfg


def train_and_predict(cfg, batch):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    with torch.no_grad():
        assert [x["instances"].image_size for x in model.eval()(batch)] == [(64, 64), (48, 72)]
    return model


@pytest.mark.parametrize("neck", NECKS.values(), ids=NECKS)
def test_retinanet_trains_on_p3_to_p7(tiny_cfg, batch, neck):
    model = train_and_predict(on_resnet(tiny_cfg, {**neck, "IN_FEATURES": ["res3", "res4", "res5"]}), batch)
    assert list(model.backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "neck", [{"NAME": "PAFPN"}, {"NAME": "BiFPN"}, {"NAME": "FPN", "TOP_BLOCK": "LastLevelMaxPool"}]
)
def test_faster_rcnn_trains_on_p2_to_p6(tiny_rcnn_cfg, batch, neck):
    stages = ["res2", "res3", "res4", "res5"]
    cfg = on_resnet(tiny_rcnn_cfg, {**neck, "IN_FEATURES": stages, "OUT_CHANNELS": 16}, stages)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model = train_and_predict(cfg, batch)
    assert model.backbone.size_divisibility == 32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_weights_of_the_bottom_up_network_have_the_names_that_they_have_in_an_fpn(tiny_cfg):
    fpn = build_model(tiny_cfg).state_dict()
    model = build_model(on_resnet(tiny_cfg, NECKS["PAFPN"]))
    bottom_up = {name: x for name, x in fpn.items() if name.startswith("backbone.bottom_up.")}
    found = {name for name in model.state_dict() if name.startswith("backbone.") and ".neck." not in name}
    assert found == bottom_up.keys() and len(found) > 100
    model.load_state_dict(bottom_up, strict=False)
    assert torch.equal(model.backbone.bottom_up.stem.conv1.weight, fpn["backbone.bottom_up.stem.conv1.weight"])


def test_fpn_as_a_neck_gives_what_a_backbone_with_fpn_gives(tiny_cfg, batch):
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    necked = build_model(on_resnet(tiny_cfg, NECKS["FPN"]))
    weights = model.state_dict()
    for name in list(weights):
        if name.startswith(("backbone.fpn_", "backbone.top_block.")):
            weights[name.replace("backbone.", "backbone.neck.")] = weights.pop(name)
    necked.load_state_dict(weights)  # All of them, and no others.
    assert necked(batch) == model(batch)


def test_fpn_as_a_neck_names_what_it_cannot_take(tiny_cfg):
    with pytest.raises(ConfigError, match=r"IN_FEATURES is \['res2'\], but the backbone gives res3, .*named as a neck"):
        build_model(on_resnet(tiny_cfg, {**NECKS["FPN"], "IN_FEATURES": ["res2"]}))


def test_fpn_as_a_neck_names_the_top_blocks(tiny_cfg):
    with pytest.raises(ConfigError, match=r"TOP_BLOCK is 'P6P7'; it must be LastLevelMaxPool, LastLevelP6P7 or empty"):
        build_model(on_resnet(tiny_cfg, {**NECKS["FPN"], "TOP_BLOCK": "P6P7"}))


def test_without_a_neck_the_backbone_stays_alone(tiny_cfg):
    assert not isinstance(build_backbone(on_resnet(tiny_cfg, {"NAME": ""})), BackboneWithNeck)


def test_a_neck_that_makes_no_maps_is_refused_by_a_detector(tiny_cfg):
    with pytest.raises(ConfigError, match=r"MODEL.NECK 'GlobalAveragePooling' gives no feature maps.*RetinaNet"):
        build_model(on_resnet(tiny_cfg, {"NAME": "GlobalAveragePooling"}))


def test_all_necks_of_the_library_are_registered(tiny_cfg):
    assert {"PAFPN", "BiFPN", "FPN", "GlobalAveragePooling"} <= {name for name, _ in NECK_REGISTRY}
    with pytest.raises(UnknownNameError, match="did you mean 'PAFPN'"):
        build_neck({"NAME": "PAFPN2"}, {})


def test_key_of_another_library_lists_those_that_are_taken(tiny_cfg):
    with pytest.raises(ConfigTypeError, match=r"MODEL.NECK: PAFPN takes no START_LEVEL; .*IN_FEATURES"):
        build_model(on_resnet(tiny_cfg, {"NAME": "PAFPN", "START_LEVEL": 1}))
