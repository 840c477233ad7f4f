"""A user's own backbone, neck, head and loss in one file, each used from a config of a classifier."""

import pytest
import torch

from detlib.config import get_cfg
from detlib.modeling import build_model
from detlib.modeling.backbone import BACKBONE_REGISTRY
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import LOSS_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.utils.errors import ConfigTypeError

MY_PARTS = """
import torch
from torch import nn

from detlib.layers import CNNBlockBase, Conv2d, get_norm
from detlib.modeling import BACKBONE_REGISTRY, HEAD_REGISTRY, LOSS_REGISTRY, NECK_REGISTRY, ResNet
from detlib.modeling.head import ClsHead
from detlib.modeling.loss import weighted_loss


class MyStem(CNNBlockBase):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, stride=1)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1, bias=False, norm=get_norm("BN", out_channels))

    def forward(self, x):
        return self.conv1(x).relu()


@BACKBONE_REGISTRY.register()
class MyResNet(ResNet):
    '''A ResNet whose stem is made for small images.

    Args:
        depth (int): from {18, 34, 50, 101, 152}.
    '''

    def __init__(self, depth, deep_stem=False, out_features=None, freeze_at=0):
        assert not deep_stem, "MyResNet does not support deep_stem"
        stages = ResNet.make_default_stages(depth)
        super().__init__(MyStem(3, 64), stages, out_features=out_features, freeze_at=freeze_at)


@NECK_REGISTRY.register()
class MyAveragePooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.gap = nn.AdaptiveAvgPool2d((1, 1))

    def forward(self, inputs):
        return tuple(self.gap(x).view(x.size(0), -1) for x in inputs.values())


@HEAD_REGISTRY.register()
class MyLinearHead(ClsHead):
    def __init__(self, num_classes, in_channels, loss=None, topk=(1,)):
        super().__init__(loss=loss, topk=topk)
        if num_classes <= 0:
            raise ValueError(f"num_classes={num_classes} must be a positive integer")
        self.fc = nn.Linear(in_channels, num_classes)
        nn.init.normal_(self.fc.weight, mean=0, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, features):
        return self.fc(self.pre_logits(features))


@weighted_loss
def my_l1_loss(pred, target):
    assert pred.size() == target.size() and target.numel() > 0
    return torch.abs(pred - target)


@LOSS_REGISTRY.register()
class MyL1Loss(nn.Module):
    def __init__(self, reduction="mean", loss_weight=1.0):
        super().__init__()
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        assert reduction_override in (None, "none", "mean", "sum")
        reduction = reduction_override if reduction_override else self.reduction
        return self.loss_weight * my_l1_loss(pred, target, weight, reduction=reduction, avg_factor=avg_factor)
"""

CONFIG = """
CUSTOM_IMPORTS: {IMPORTS: [./my_parts.py]}
MODEL:
  META_ARCHITECTURE: ImageClassifier
  DEVICE: cpu
  BACKBONE: {NAME: build_resnet_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, OUT_FEATURES: [res5], NORM: BN, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8}
  CLASSIFIER: {NUM_CLASSES: 3}
"""


@pytest.fixture(autouse=True)
def parts_are_forgotten():
    """Takes what a test has registered out of the registries."""
    registries = [BACKBONE_REGISTRY, NECK_REGISTRY, HEAD_REGISTRY, LOSS_REGISTRY]
    before = [dict(registry._obj_map) for registry in registries]
    yield
    for registry, names in zip(registries, before):
        registry._obj_map.clear()
        registry._obj_map.update(names)


@pytest.fixture
def build(tmp_path):
    """Builds the tiny classifier with what YAML says of sections under MODEL."""

    def build_classifier(changes):
        (tmp_path / "my_parts.py").write_text(MY_PARTS)
        (tmp_path / "base.yaml").write_text(CONFIG)
        (tmp_path / "model.yaml").write_text(f"_BASE_: base.yaml\nMODEL: {changes}")
        cfg = get_cfg()
        cfg.merge_from_file(str(tmp_path / "model.yaml"))
        torch.manual_seed(0)
        return build_model(cfg)

    return build_classifier


def train_and_predict(model, **target):
    """The loss of two images, after a backward pass that reaches all weights; and that they can be classified."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    batch = [{"image": image, **target} for image in images]
    loss = model(batch)["loss_cls"]
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert [p["pred_score"].shape for p in model.eval()(batch)] == [(3,), (3,)]
    return loss


def test_backbone_of_a_user(build):
    model = build("{BACKBONE: {NAME: MyResNet, DEPTH: 18, DEEP_STEM: false}}")
    train_and_predict(model, label=1)
    assert type(model.backbone.stem).__name__ == "MyStem"
    assert model.backbone.output_shape()["res5"].stride == 8
    assert sum(p.numel() for p in model.parameters()) == 11_173_962 - 7 * 513  # that of 10 classes, less 7 of them


def test_assertion_of_a_user_is_shown(build):
    with pytest.raises(AssertionError, match="does not support deep_stem"):
        build("{BACKBONE: {NAME: MyResNet, DEPTH: 18, DEEP_STEM: true}}")


def test_neck_of_a_user(build):
    model = build("{NECK: {NAME: MyAveragePooling}}")
    train_and_predict(model, label=1)
    assert type(model.neck).__name__ == "MyAveragePooling"


def test_head_of_a_user(build):
    model = build("{CLASSIFIER: {HEAD: {NAME: MyLinearHead, TOPK: [1, 2]}}}")
    train_and_predict(model, label=1)
    assert model.head.fc.weight.shape == (3, 64)  # offered by the classifier
    assert type(model.head.loss_module).__name__ == "CrossEntropyLoss"


@pytest.mark.parametrize("head", ["LinearClsHead", "MyLinearHead"])
def test_loss_of_a_user_learns_the_scores_of_another_model(build, head):
    model = build(f"{{CLASSIFIER: {{HEAD: {{NAME: {head}, LOSS: {{NAME: MyL1Loss, LOSS_WEIGHT: 2}}}}}}}}")
    torch.nn.init.zeros_(model.head.fc.weight)
    with torch.no_grad():
        model.head.fc.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    # |1 - 0.5| + |0 - 0.25| + |0 - 0.25| = 1 for each image, times the weight.
    assert train_and_predict(model, score=[0.5, 0.25, 0.25]).item() == 2


def test_integer_labels_are_no_target_of_an_l1_loss(build):
    model = build("{CLASSIFIER: {HEAD: {LOSS: {NAME: MyL1Loss}}}}")
    with pytest.raises(AssertionError):
        train_and_predict(model, label=1)


def test_all_parts_of_a_user_together(build):
    model = build(
        "{BACKBONE: {NAME: MyResNet, DEPTH: 18}, NECK: {NAME: MyAveragePooling},"
        " CLASSIFIER: {HEAD: {NAME: MyLinearHead, LOSS: {NAME: MyL1Loss, LOSS_WEIGHT: 1.0}}}}"
    )
    assert train_and_predict(model, score=[1.0, 0.0, 0.0]) > 0
    parts = [model.backbone, model.neck, model.head, model.head.loss_module]
    assert [type(part).__name__ for part in parts] == ["MyResNet", "MyAveragePooling", "MyLinearHead", "MyL1Loss"]


def test_argument_that_the_part_of_a_user_does_not_take_is_named(build):
    with pytest.raises(ConfigTypeError, match=r"MODEL\.NECK: MyAveragePooling takes no DIM"):
        build("{NECK: {NAME: MyAveragePooling, DIM: 2}}")
