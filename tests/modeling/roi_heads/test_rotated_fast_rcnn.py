import math

import pytest
import torch

from detlib.modeling import build_model
from detlib.modeling.roi_heads.rotated_fast_rcnn import RotatedFastRCNNOutputLayers, fast_rcnn_inference_rotated
from detlib.structures import Instances, RotatedBoxes, pairwise_iou_rotated
from detlib.utils.errors import ConfigError


@pytest.fixture
def cfg(tiny_rcnn_cfg):
    """Faster R-CNN for rotated boxes of two classes."""
    model = tiny_rcnn_cfg.MODEL
    model.PROPOSAL_GENERATOR.NAME = "RRPN"
    model.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    model.ANCHOR_GENERATOR.SIZES = [[24]]
    model.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5]]
    model.ANCHOR_GENERATOR.ANGLES = [[-60, -30, 0, 30, 60, 90]]
    model.RPN.IN_FEATURES = ["p3"]
    model.RPN.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0)
    model.ROI_HEADS.NAME = "RROIHeads"
    model.ROI_HEADS.NUM_CLASSES = 2
    model.ROI_HEADS.IN_FEATURES = ["p3", "p4"]
    model.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignRotated"
    model.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 2
    model.ROI_BOX_HEAD.FC_DIM = 64
    model.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0, 1.0)
    model.FPN.OUT_CHANNELS = 32
    model.PIXEL_MEAN, model.PIXEL_STD = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    return tiny_rcnn_cfg


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def picture(*boxes, height=64, width=64):
    """A sample with filled rectangles, red ones of class 0 and green ones of class 1 in turn."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.zeros(3, height, width)
    for i, (center_x, center_y, box_width, box_height, angle) in enumerate(boxes):
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        along_width = (x - center_x) * cos - (y - center_y) * sin
        along_height = (x - center_x) * sin + (y - center_y) * cos
        image[i % 2, (along_width.abs() <= box_width / 2) & (along_height.abs() <= box_height / 2)] = 1
    gt_boxes = RotatedBoxes(torch.tensor(boxes, dtype=torch.float32))
    instances = Instances((height, width), gt_boxes=gt_boxes, gt_classes=torch.arange(len(boxes)) % 2)
    return {"image": image, "height": height, "width": width, "instances": instances}


def test_losses_reach_every_weight(model):
    losses = model([picture((20, 20, 30, 12, 30), (45, 45, 24, 14, -50)), picture((30, 40, 28, 12, 80), height=96)])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    for part in (model.proposal_generator, model.roi_heads):
        assert all(p.grad.abs().sum() > 0 for p in part.parameters())


def test_images_without_objects(model):
    losses = model([picture(), picture()])
    assert losses["loss_box_reg"] == 0
    assert losses["loss_rpn_loc"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_detections_are_rotated_boxes_at_the_size_wanted(model):
    model.eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    (one,) = model([picture(height=64, width=96)])
    (double,) = model([{**picture(height=64, width=96), "height": 128, "width": 192}])
    one, double = one["instances"], double["instances"]
    assert len(one) > 0
    assert double.image_size == (128, 192)
    assert isinstance(double.pred_boxes, RotatedBoxes)
    torch.testing.assert_close(double.pred_boxes.tensor[:, :4], 2 * one.pred_boxes.tensor[:, :4])


def test_no_detection_is_no_error(model):
    model.eval()
    model.roi_heads.box_predictor.test_score_thresh = 1.0
    (found,) = model([picture()])
    assert found["instances"].pred_boxes.tensor.shape == (0, 5)


def test_a_few_rectangles_are_learned_with_their_angles(model):
    """A box of the right size and place, but with another angle, has an overlap of about 0.4."""
    batch = [picture((20, 20, 30, 12, 30), (45, 45, 24, 14, -50)), picture((30, 40, 28, 12, 80))]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(120):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = model(batch)
    for sample, output in zip(batch, outputs):
        true, found = sample["instances"], output["instances"]
        overlap = pairwise_iou_rotated(true.gt_boxes, found.pred_boxes)  # (objects, detections)
        of_class = true.gt_classes[:, None] == found.pred_classes
        assert (overlap * of_class).max(dim=1).values.min() > 0.6


def test_suppression_is_within_a_class_and_by_rotated_overlap():
    wide, across = [30.0, 30, 20, 4, 0], [30.0, 30, 20, 4, 90]
    boxes = torch.tensor([wide * 2, across * 2, wide * 2])
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.01, 0.1], [0.6, 0.02, 0.1]])
    (result,), (region,) = fast_rcnn_inference_rotated([boxes], [scores], [(60, 60)], 0.05, 0.5, 100)
    torch.testing.assert_close(result.scores, torch.tensor([0.9, 0.8, 0.7]))
    assert result.pred_classes.tolist() == [0, 1, 0]
    assert region.tolist() == [0, 0, 1]
    assert result.pred_boxes.tensor.tolist() == [wide, wide, across]
    (result,), _ = fast_rcnn_inference_rotated([boxes[:, :5]], [scores], [(60, 60)], 0.05, 0.5, 1)
    assert result.pred_boxes.tensor.tolist() == [wide]


def test_no_regions_give_no_detections():
    (result,), _ = fast_rcnn_inference_rotated([torch.zeros(0, 10)], [torch.zeros(0, 3)], [(60, 60)], 0.05, 0.5, 100)
    assert len(result) == 0


def test_output_layer_has_five_numbers_for_each_class(model):
    predictor = model.roi_heads.box_predictor
    assert isinstance(predictor, RotatedFastRCNNOutputLayers)
    assert predictor.bbox_pred.out_features == 2 * 5


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0), "BBOX_REG_WEIGHTS.*5 numbers"),
        ("ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou", "smooth_l1"),
        ("ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2", "ROIAlignRotated"),
        ("ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "rotated boxes only"),
    ],
)
def test_parts_that_do_not_fit_rotated_boxes_are_named(cfg, key, value, message):
    section, name = key.split(".")
    cfg.MODEL[section][name] = value
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)
