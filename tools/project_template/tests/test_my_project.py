"""The parts of MyProject, alone and in the detector of its config."""

import math
from pathlib import Path

import pytest
import torch

from detlib.config import CfgNode, get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import build_model, build_neck
from detlib.modeling.loss import build_loss
from detlib.structures import Boxes, Instances

CONFIG = Path(__file__).parents[1] / "configs" / "my_project.yaml"


@pytest.fixture(autouse=True)
def cfg() -> CfgNode:
    """The config; reading it imports the package, which registers the parts."""
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    return cfg


def training_image(*boxes_xyxy: list[float]) -> dict:
    boxes = Boxes(torch.tensor(boxes_xyxy).reshape(-1, 4))
    instances = Instances((64, 96), gt_boxes=boxes, gt_classes=torch.zeros(len(boxes), dtype=torch.int64))
    return {"image": torch.rand(3, 64, 96) * 255, "instances": instances}


def test_box_loss_is_log_cosh_of_the_difference() -> None:
    loss = build_loss({"NAME": "MyProjectBoxLoss", "SCALE": 1.0, "LOSS_WEIGHT": 2.0})
    pred, target = torch.tensor([[0.0, 1.0, -1.0, 0.0]]), torch.zeros(1, 4)
    # Two of the four differences are 1 or -1.
    assert loss(pred, target).item() == pytest.approx(2.0 * math.log(math.cosh(1)) / 2)
    assert loss(pred, target, avg_factor=1).item() == pytest.approx(2.0 * math.log(math.cosh(1)) * 2)


def test_box_loss_of_no_boxes_is_zero_with_a_gradient() -> None:
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = build_loss({"NAME": "MyProjectBoxLoss"})(pred, torch.zeros(0, 4), avg_factor=1)
    assert loss == 0 and loss.requires_grad


def test_neck_gives_one_map_of_the_finest_stride() -> None:
    shapes = {"res3": ShapeSpec(channels=4, stride=8), "res4": ShapeSpec(channels=6, stride=16)}
    neck = build_neck({"NAME": "MyProjectNeck", "OUT_CHANNELS": 5}, shapes)
    maps = neck({"res3": torch.rand(1, 4, 8, 12), "res4": torch.rand(1, 6, 4, 6)})
    assert {name: x.shape for name, x in maps.items()} == {"p3": (1, 5, 8, 12)}
    assert neck.output_shape() == {"p3": ShapeSpec(channels=5, stride=8)}


def test_one_step_gives_finite_losses_and_a_gradient_everywhere(cfg: CfgNode) -> None:
    model = build_model(cfg)
    losses = model([training_image([8, 8, 40, 40]), training_image()])
    sum(losses.values()).backward()
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    assert all(loss.isfinite() for loss in losses.values())
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_objects_too_small_to_see_are_not_trained_on(cfg: CfgNode) -> None:
    cfg.MODEL.MY_PROJECT.MIN_OBJECT_SIZE = 5.0
    model = build_model(cfg)
    assert model([training_image([8, 8, 13, 40])])["loss_box_reg"] == 0
    assert model([training_image([8, 8, 14, 40])])["loss_box_reg"] > 0
