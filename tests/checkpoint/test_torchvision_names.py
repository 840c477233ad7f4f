import pytest
import torch
import torchvision

from detlib.checkpoint import DetectionCheckpointer
from detlib.checkpoint.torchvision_names import from_torchvision_names, torchvision_family
from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import build_resnet_backbone
from detlib.modeling.backbone import SwinTransformer, ViT, build_regnet_backbone

RESNET = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight"]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv3.weight", "res2.0.conv3.weight"),
        ("layer4.2.bn1.bias", "res5.2.conv1.norm.bias"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.running_mean", "res3.0.shortcut.norm.running_mean"),
        ("fc.weight", "linear.weight"),
    ],
)
def test_name_is_converted(theirs, ours):
    assert from_torchvision_names([*RESNET, theirs])[theirs] == ours


@pytest.mark.parametrize(
    ("name", "family", "constants"),
    [
        ("resnet18", "ResNet", 0),
        ("resnet50", "ResNet", 0),
        ("resnext50_32x4d", "ResNet", 0),
        ("regnet_y_400mf", "RegNet", 0),
        ("swin_t", "Swin", 12),  # One index of relative positions for each block.
        ("vit_b_32", "ViT", 0),
    ],
)
def test_families_are_recognised_and_names_stay_distinct(name, family, constants):
    with torch.device("cpu" if family == "RegNet" else "meta"):  # RegNet computes its widths with tensors.
        names = list(torchvision.models.get_model(name).state_dict())
    assert torchvision_family(names) == family
    assert len(set(from_torchvision_names(names).values())) == len(names) - constants


@pytest.mark.parametrize("name", ["mobilenet_v2", "swin_v2_t", "densenet121"])
def test_other_models_are_not_taken_for_them(name):
    with torch.device("meta"):
        names = torchvision.models.get_model(name).state_dict()
    assert torchvision_family(names) is None
    with pytest.raises(ValueError, match="not those of a ResNet, RegNet, Swin, ViT"):
        from_torchvision_names(names)


@pytest.mark.parametrize("depth", [18, 50])
def test_backbone_with_torchvision_weights_computes_what_torchvision_does(tmp_path, depth):
    theirs = torchvision.models.get_model(f"resnet{depth}").eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth == 18 else 256
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    ours = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(ours).load(str(tmp_path / "resnet.pth"))

    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.Sequential(*list(theirs.children())[:-2])(images)
    torch.testing.assert_close(ours(images)["res5"], expected)


def test_regnet_with_torchvision_weights_computes_what_torchvision_does(tmp_path):
    theirs = torchvision.models.regnet_y_400mf().eval()
    torch.save(theirs.state_dict(), tmp_path / "regnet.pth")
    cfg = get_cfg()
    cfg.MODEL.REGNET.merge_from_list(["DEPTH", 16, "W_A", 27.89, "W_0", 48, "W_M", 2.09, "GROUP_WIDTH", 8])
    cfg.MODEL.REGNET.SE_RATIO = 0.25
    ours = build_regnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(ours).load(str(tmp_path / "regnet.pth"))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images)["s4"], theirs.trunk_output(theirs.stem(images)))


def test_swin_with_torchvision_weights_computes_what_torchvision_does(tmp_path):
    theirs = torchvision.models.SwinTransformer([4, 4], 8, [2, 1], [1, 2], window_size=[4, 4]).eval()
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    ours = SwinTransformer(embed_dim=8, depths=(2, 1), num_heads=(1, 2), window_size=4, out_indices=(1,)).eval()
    DetectionCheckpointer(ours).load(str(tmp_path / "swin.pth"))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = theirs.features(images)
    expected = torch.nn.functional.layer_norm(features, features.shape[-1:]).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours(images)["p1"], expected, atol=1e-4, rtol=1e-4)


def test_blocks_of_vit_with_torchvision_weights_compute_what_torchvision_does(tmp_path):
    theirs = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 64).eval()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = ViT(32, 8, embed_dim=16, depth=2, num_heads=2, pretrain_img_size=32).eval()
    DetectionCheckpointer(ours).load(str(tmp_path / "vit.pth"))
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # Theirs without the class token, which ours has not.
    patches = theirs.conv_proj(images).flatten(2).transpose(1, 2) + theirs.encoder.pos_embedding[:, 1:]
    expected = theirs.encoder.layers(patches).transpose(1, 2).view(1, 16, 4, 4)
    torch.testing.assert_close(ours(images)["last_feat"], expected, atol=1e-4, rtol=1e-4)
