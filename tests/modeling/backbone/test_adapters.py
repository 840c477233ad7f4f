import copy
import sys

import pytest
import torch
import torchvision
from torch import nn

from detlib.config import get_cfg
from detlib.modeling.backbone import TimmBackbone, TorchvisionBackbone, build_bottom_up
from detlib.modeling.backbone.adapters import _change_in_channels, _names
from detlib.utils.errors import ConfigError, DetlibError

RES = ["res2", "res3", "res4", "res5"]
# A Swin of timm for images of any size.
SMALL_SWIN = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
    "img_size": 64,
    "window_size": 4,
    "strict_img_size": False,
}
SMALL_VIT = {"embed_dim": 8, "depth": 4, "num_heads": 2, "img_size": 64, "dynamic_img_size": True}


def torchvision_backbone(name="mobilenet_v2", **kwargs):
    if name == "mobilenet_v2":
        kwargs.setdefault("model_kwargs", {"width_mult": 0.25})
    return TorchvisionBackbone(name, **kwargs)


def timm_backbone(name="mobilenetv2_035", **kwargs):
    pytest.importorskip("timm")
    return TimmBackbone(name, **kwargs)


BUILDERS = [torchvision_backbone, timm_backbone]


def channels_and_strides(model):
    return [(shape.channels, shape.stride) for shape in model.output_shape().values()]


def test_maps_are_named_after_their_strides():
    assert _names([2, 4, 32]) == ["res1", "res2", "res5"]
    assert _names([8, 16, 16]) == ["res3", "res4_1", "res4_2"]
    assert _names([14]) == ["res4"]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("size", [(224, 224), (257, 191)])
def test_outputs_have_the_shapes_that_are_promised(build, size):
    model = build().eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, *size))
    shapes = model.output_shape()
    assert list(maps) == list(shapes) == RES
    for name, shape in shapes.items():
        assert maps[name].shape == (1, shape.channels, *(-(-side // shape.stride) for side in size)), name


@pytest.mark.parametrize("build", BUILDERS)
def test_image_is_padded_to_the_largest_stride(build):
    assert build().size_divisibility == 32


@pytest.mark.parametrize("build", BUILDERS)
def test_every_parameter_is_trained(build):
    torch.manual_seed(0)
    model = build(in_channels=4)
    maps = model(torch.randn(2, 4, 64, 64))
    sum((x * torch.randn_like(x)).sum() for x in maps.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("build", BUILDERS)
def test_norm_eval_keeps_statistics_when_training(build):
    model = build(norm_eval=True).train()
    before = [buffer.clone() for buffer in model.buffers()]
    model(torch.randn(2, 3, 32, 32))
    assert all(buffer.equal(b) for buffer, b in zip(model.buffers(), before))
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("build", BUILDERS)
def test_copy_gives_the_same_numbers(build):
    model = build(norm_eval=True)
    x = torch.randn(1, 3, 64, 64)
    for mode in (True, False):
        copied = copy.deepcopy(model.train(mode))
        assert copied.training == mode
        with torch.no_grad():
            torch.testing.assert_close(copied(x), model(x))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [(64, 4), (128, 8), (256, 16), (512, 32)]),
        ("regnet_y_400mf", [(48, 4), (104, 8), (208, 16), (440, 32)]),
        ("mobilenet_v2", [(24, 4), (32, 8), (96, 16), (1280, 32)]),
        ("convnext_tiny", [(96, 4), (192, 8), (384, 16), (768, 32)]),
        ("swin_t", [(96, 4), (192, 8), (384, 16), (768, 32)]),
        ("mnasnet0_5", [(16, 4), (24, 8), (48, 16), (1280, 32)]),
    ],
)
def test_torchvision_families_end_each_stride_with_its_last_block(name, expected):
    # torchvision reads numbers off tensors when it builds a RegNet.
    with torch.device("cpu" if "regnet" in name else "meta"):
        model = TorchvisionBackbone(name)
        maps = model(torch.zeros(2, 3, 64, 96))
    assert list(model.output_shape()) == RES
    assert channels_and_strides(model) == expected
    # Swin's come with the channels in front, too.
    assert [x.shape for x in maps.values()] == [(2, c, 64 // s, 96 // s) for c, s in expected]


def test_torchvision_gives_the_numbers_of_the_whole_network():
    torch.manual_seed(0)
    model = TorchvisionBackbone("resnet18").eval()
    reference = torchvision.models.resnet18().eval()
    reference.load_state_dict(model.model.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits = reference.fc(model(x)["res5"].mean((2, 3)))
        torch.testing.assert_close(logits, reference(x))


def test_torchvision_leaves_out_what_follows_the_last_map():
    model = torchvision_backbone(out_nodes=["features.3", "features.6"])
    assert list(model.output_shape()) == ["res2", "res3"]
    assert {name.split(".")[2] for name, _ in model.named_parameters()} == set("0123456")


def test_torchvision_takes_finer_maps_by_name():
    model = torchvision_backbone(out_nodes=["features.1", "features.2", "features.3"])
    assert list(model.output_shape()) == ["res1", "res2_1", "res2_2"]


def test_torchvision_weights_of_colours_are_averaged_for_other_channels():
    conv = nn.Conv2d(3, 2, 3)
    grey = torch.randn(1, 1, 8, 8)
    expected = conv(grey.expand(1, 3, 8, 8))
    for in_channels in (1, 4):
        changed = nn.Sequential(copy.deepcopy(conv))
        _change_in_channels(changed, in_channels, keep_weights=True)
        torch.testing.assert_close(changed(grey.expand(1, in_channels, 8, 8)), expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet180", {}, "torchvision.models has no model 'resnet180'; did you mean resnet18"),
        ("?", {}, r"torchvision.models has no model '\?'; torchvision.models.list_models\(\) lists them"),
        ("resnet18", {"weights": "V3"}, "WEIGHTS of resnet18 is 'V3'; it must be '' or IMAGENET1K_V1, DEFAULT"),
        ("resnet18", {"model_kwargs": {"depth": 3}}, "cannot build 'resnet18' with {'depth': 3}: .*unexpected"),
        ("resnet18", {"out_nodes": ["layer5"]}, "layer5 cannot be taken from torchvision's resnet18;"),
        (
            "resnet18",
            {"out_nodes": ["layer4", "fc"]},
            r"OUT_NODES .*\['layer4', 'fc'\].*, which fc is not",
        ),
        ("vit_b_32", {}, "vit_b_32; .*images of one size only: Wrong image height"),
        ("squeezenet1_0", {}, "has no feature maps whose strides are powers of 2; name some by OUT_NODES"),
    ],
)
def test_torchvision_errors_say_what_is_wrong(name, options, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        TorchvisionBackbone(name, **options)


def test_timm_leaves_out_strides_below_4_unless_asked():
    assert channels_and_strides(timm_backbone()) == [(8, 4), (16, 8), (32, 16), (112, 32)]
    assert list(timm_backbone(out_indices=[0, 2]).output_shape()) == ["res1", "res3"]


def test_timm_leaves_out_what_follows_the_last_map():
    model = timm_backbone("resnet10t", out_indices=[1, 2])
    assert channels_and_strides(model) == [(64, 4), (128, 8)]
    assert not any(name.startswith(("model.layer3", "model.layer4")) for name in model.state_dict())


def test_timm_swin_comes_with_channels_in_front():
    model = timm_backbone("swin_tiny_patch4_window7_224", model_kwargs=SMALL_SWIN).eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps, reference = model(x), model.model(x)
    assert [m.shape for m in maps.values()] == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 32, 4, 6), (1, 64, 2, 3)]
    for m, r in zip(maps.values(), reference):
        torch.testing.assert_close(m, r.permute(0, 3, 1, 2))


def test_timm_vit_numbers_its_maps():
    model = timm_backbone("vit_tiny_patch16_224", out_indices=[1, 3], model_kwargs=SMALL_VIT).eval()
    assert {name: (s.channels, s.stride) for name, s in model.output_shape().items()} == {
        "res4_1": (8, 16),
        "res4_2": (8, 16),
    }
    assert [x.shape for x in model(torch.zeros(1, 3, 32, 64)).values()] == [(1, 8, 2, 4)] * 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet180", {}, "timm has no model 'resnet180'; did you mean resnet18"),
        ("resnet18", {"model_kwargs": {"foo": 1}}, "timm cannot build 'resnet18' with {'foo': 1}: .*unexpected"),
        ("resnet18", {"out_indices": [9]}, r"timm cannot build 'resnet18' with {'out_indices': \(9,\)}"),
    ],
)
def test_timm_errors_say_what_is_wrong(name, options, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        timm_backbone(name, **options)


def test_timm_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DetlibError, match=r"TimmBackbone needs timm: pip install 'detlib\[timm\]'"):
        TimmBackbone("resnet18")


def from_yaml(tmp_path, text):
    (tmp_path / "config.yaml").write_text(f"MODEL: {{BACKBONE: {text}}}")
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    return build_bottom_up(cfg)


def test_torchvision_is_built_from_a_config(tmp_path):
    text = "{NAME: TorchvisionBackbone, MODEL_NAME: mobilenet_v2, MODEL_KWARGS: {width_mult: 0.25}, NORM_EVAL: true}"
    model = from_yaml(tmp_path, text)
    assert channels_and_strides(model)[:3] == [(8, 4), (8, 8), (24, 16)]
    assert model.norm_eval


def test_timm_is_built_from_a_config(tmp_path):
    pytest.importorskip("timm")
    text = "{NAME: TimmBackbone, MODEL_NAME: mobilenetv2_035, OUT_INDICES: [2, 3], MODEL_KWARGS: {DROP_PATH_RATE: 0.1}}"
    assert channels_and_strides(from_yaml(tmp_path, text)) == [(16, 8), (32, 16)]
