import pytest
import torch
import torchvision

from detlib.checkpoint import DetectionCheckpointer
from detlib.checkpoint.torchvision_names import from_torchvision_names, is_torchvision_resnet
from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import build_resnet_backbone


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
    assert from_torchvision_names([theirs]) == {theirs: ours}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_resnets_are_recognised_and_names_stay_distinct(name):
    names = list(torchvision.models.get_model(name).state_dict())
    assert is_torchvision_resnet(names)
    assert len(set(from_torchvision_names(names).values())) == len(names)


def test_other_models_are_not_taken_for_resnets():
    assert not is_torchvision_resnet(torchvision.models.mobilenet_v2().state_dict())
    assert not is_torchvision_resnet([])


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
