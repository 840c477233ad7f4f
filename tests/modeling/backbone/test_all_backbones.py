"""What holds for every registered backbone: built from a config, any image size, the promised shapes, gradients."""

import inspect

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from detlib.modeling.backbone import MViT, RegNet, SwinTransformer, ViT
from detlib.solver import build_optimizer

RESNET = {"DEPTH": 18, "NORM": "BN", "STEM_OUT_CHANNELS": 4, "RES2_OUT_CHANNELS": 4}
REGNET = {"DEPTH": 6, "W_A": 4.0, "W_0": 8, "W_M": 1.5, "GROUP_WIDTH": 4, "SE_RATIO": 0.25, "NORM": "BN"}
VIT = {
    "IMG_SIZE": 64,
    "EMBED_DIM": 8,
    "DEPTH": 3,
    "NUM_HEADS": 2,
    "USE_REL_POS": True,
    "WINDOW_SIZE": 3,
    "WINDOW_BLOCK_INDEXES": [0, 1],
    "RESIDUAL_BLOCK_INDEXES": [1],
    "DROP_PATH_RATE": 0.1,
}
SWIN = {"EMBED_DIM": 8, "DEPTHS": [2, 2, 1, 2], "NUM_HEADS": [1, 2, 4, 8], "WINDOW_SIZE": 4}
MVIT = {"EMBED_DIM": 4, "DEPTH": 6, "LAST_BLOCK_INDEXES": [0, 2, 4, 5], "ADAPTIVE_WINDOW_SIZE": 16}

RES, S, P = ["res2", "res3", "res4", "res5"], ["s1", "s2", "s3"], ["p0", "p1", "p2", "p3"]
SCALES = ["scale2", "scale3", "scale4", "scale5"]
# Builder -> section of its options, the options, outputs of the bottom-up network.
BUILDERS = {
    "build_resnet_backbone": ("RESNETS", {**RESNET, "OUT_FEATURES": ["stem", *RES]}, []),
    "build_resnet_fpn_backbone": ("RESNETS", {**RESNET, "OUT_FEATURES": RES}, RES),
    "build_retinanet_resnet_fpn_backbone": ("RESNETS", {**RESNET, "OUT_FEATURES": RES[1:]}, RES[1:]),
    "build_fcos_resnet_fpn_backbone": ("RESNETS", {**RESNET, "OUT_FEATURES": RES[1:]}, RES[1:]),
    "build_regnet_backbone": ("REGNET", {**REGNET, "OUT_FEATURES": ["stem", *S]}, []),
    "build_regnet_fpn_backbone": ("REGNET", {**REGNET, "OUT_FEATURES": S}, S),
    "build_vit_backbone": ("VIT", VIT, []),
    "build_vit_fpn_backbone": ("VIT", VIT, []),
    "build_swin_backbone": ("SWIN", SWIN, []),
    "build_swin_fpn_backbone": ("SWIN", SWIN, P),
    "build_mvit_backbone": ("MVIT", MVIT, []),
    "build_mvit_fpn_backbone": ("MVIT", MVIT, SCALES),
    "ResNet_CIFAR": ("BACKBONE", {"DEPTH": 18, "BASE_CHANNELS": 4, "OUT_FEATURES": ["stem", *RES]}, []),
    "MobileNet": ("BACKBONE", {"WIDTH_MULT": 0.25}, []),
    "MobileNetV2": ("BACKBONE", {"WIDTH_MULT": 0.25}, []),
    "TorchvisionBackbone": ("BACKBONE", {"MODEL_NAME": "mobilenet_v2", "MODEL_KWARGS": {"width_mult": 0.25}}, []),
}


def config(builder, top_block=""):
    section, options, in_features = BUILDERS[builder]
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    for key, value in options.items():
        cfg.MODEL[section][key] = value
    cfg.MODEL.FPN.merge_from_list(["IN_FEATURES", in_features, "OUT_CHANNELS", 8, "TOP_BLOCK", top_block])
    return cfg


def test_every_builder_is_tested_here():
    ours = {name for name, builder in BACKBONE_REGISTRY if builder.__module__.startswith("detlib.modeling.backbone")}
    # timm need not be there; test_adapters.py tests with it. GivenFeatures takes no image.
    assert ours - {"TimmBackbone", "GivenFeatures"} == set(BUILDERS)


@pytest.mark.parametrize("builder", BUILDERS)
def test_outputs_have_the_shapes_that_are_promised(builder):
    torch.manual_seed(0)
    model = build_backbone(config(builder)).eval()
    multiple = max(model.size_divisibility, 32)
    height, width = 2 * multiple, 3 * multiple
    with torch.no_grad():
        maps = model(torch.randn(2, 3, height, width))
    shapes = model.output_shape()
    assert list(maps) == list(shapes)
    for name, shape in shapes.items():
        # The last levels of RetinaNet's pyramid are smaller than their stride.
        size = (-(-height // shape.stride), -(-width // shape.stride))
        assert maps[name].shape == (2, shape.channels, *size), name
        assert maps[name].isfinite().all()


@pytest.mark.parametrize("builder", [name for name in BUILDERS if "fpn" not in name and "vit_" not in name])
@pytest.mark.parametrize("size", [(61, 90), (33, 17)])
def test_sizes_that_are_no_multiple_are_rounded_up(builder, size):
    model = build_backbone(config(builder)).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, *size))
    for name, shape in model.output_shape().items():
        assert maps[name].shape[-2:] == tuple(-(-side // shape.stride) for side in size), name


def test_vit_wants_whole_patches():
    model = build_backbone(config("build_vit_backbone")).eval()
    assert model.size_divisibility == 16
    assert model(torch.randn(1, 3, 48, 80))["last_feat"].shape == (1, 8, 3, 5)


@pytest.mark.parametrize("builder", BUILDERS)
def test_gradients_reach_every_parameter(builder):
    torch.manual_seed(0)
    model = build_backbone(config(builder))
    maps = model(torch.randn(2, 3, 96, 128))
    # Random weights, as sums over normalised channels have no gradient.
    sum((x * torch.randn_like(x)).sum() for x in maps.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.parametrize("builder", [name for name in BUILDERS if "_fpn_" in name and "resnet" not in name])
def test_pyramid_takes_the_top_block_of_the_config(builder):
    channels = {}
    for top_block, more in {"": [], "LastLevelMaxPool": ["p6"], "LastLevelP6P7": ["p6", "p7"]}.items():
        if "regnet" in builder:  # Three stages end with p4, of which R-CNN's p6 is not made.
            if top_block == "LastLevelMaxPool":
                continue
            more = [f"p{int(name[1]) - 1}" for name in more]
        with torch.device("meta"):
            model = build_backbone(config(builder, top_block))
            maps = model(torch.zeros(1, 3, 128, 128))
        channels = {name: x.shape[1] for name, x in maps.items()}
        last = "p4" if "regnet" in builder else "p5"
        assert list(channels) == [*[f"p{i}" for i in range(2, int(last[1]) + 1)], *more]
        assert set(channels.values()) == {8}


@pytest.mark.parametrize("builder", [name for name in BUILDERS if "fpn" in name])
def test_operations_can_be_counted(builder):
    model = build_backbone(config(builder)).eval()
    counts = FlopCountAnalysis(model, torch.zeros(1, 3, 96, 128)).unsupported_ops_warnings(False)
    assert counts.by_operator()["conv"] > 0


@pytest.mark.parametrize(
    ("model", "section"), [(RegNet, "REGNET"), (ViT, "VIT"), (SwinTransformer, "SWIN"), (MViT, "MVIT")]
)
def test_keys_of_the_config_are_the_arguments_with_their_defaults(model, section):
    defaults = {
        name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for name, parameter in inspect.signature(model).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    options = {key.lower(): value for key, value in get_cfg().MODEL[section].items()}
    # RegNet trains from published weights like ResNet, hence with frozen norms.
    exceptions = {"norm", "out_features"} if model is RegNet else set()
    compared = options.keys() & defaults.keys() - exceptions
    assert {name: options[name] for name in compared} == {name: defaults[name] for name in compared}
    assert options.keys() <= inspect.signature(model).parameters.keys()
    # What is no plain value or follows from another part of the config has no key.
    rest = {"in_chans", "norm_layer", "act_layer", "activation_class", "frozen_stages", "freeze_at"}
    assert inspect.signature(model).parameters.keys() - options.keys() <= rest


def test_images_of_one_channel_reach_all_but_regnet():
    for builder in ("build_vit_backbone", "build_swin_backbone", "build_mvit_backbone"):
        model = build_backbone(config(builder), ShapeSpec(channels=1))
        assert model(torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize("builder", ["build_vit_fpn_backbone", "build_swin_fpn_backbone", "build_mvit_fpn_backbone"])
def test_retinanet_trains_on_transformers(tiny_cfg, sample, builder):
    cfg = config(builder, "LastLevelP6P7")
    section = BUILDERS[builder][0]
    for key in (section, "FPN", "BACKBONE"):
        tiny_cfg.MODEL[key] = cfg.MODEL[key]
    tiny_cfg.merge_from_list(["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.001])
    torch.manual_seed(0)
    model = build_model(tiny_cfg).train()
    optimizer = build_optimizer(tiny_cfg, model)
    batch = [sample(64, 80, [[8.0, 8, 40, 40]], [1]), sample(70, 64)]
    losses = []
    for _ in range(10):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() * model.loss_normalizer.item())  # The normaliser itself falls.
    assert losses[-1] < losses[0]
