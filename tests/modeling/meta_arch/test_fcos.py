import copy
import math

import pytest
import torch

from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.modeling.meta_arch.fcos import FCOSHead
from detlib.structures import Boxes, Instances


@pytest.fixture
def model(tiny_cfg):
    torch.manual_seed(0)
    tiny_cfg.MODEL.META_ARCHITECTURE = "FCOS"
    tiny_cfg.MODEL.BACKBONE.NAME = "build_fcos_resnet_fpn_backbone"
    tiny_cfg.MODEL.FCOS.NORM = ""
    tiny_cfg.MODEL.FCOS.NUM_CLASSES = 3
    tiny_cfg.MODEL.FCOS.NUM_CONVS = 1
    return build_model(tiny_cfg)


def grids(*sides):
    """A feature map of side x side cells for each, of strides 8, 16, ..."""
    return [torch.zeros(1, 1, side, side) for side in sides]


def label(model, boxes_xyxy, classes, sides=(16, 8, 4, 2, 1)):
    anchors = model.anchor_generator(grids(*sides))
    gt = Instances((128, 128))
    gt.gt_boxes = Boxes(torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4))
    gt.gt_classes = torch.tensor(classes, dtype=torch.int64)
    (labels,), (boxes,) = model.label_anchors(anchors, [gt])
    return labels, boxes, Boxes.cat(anchors)


def test_losses_are_finite_and_reach_every_weight(model, sample):
    losses = model([sample(64, 96, [[8, 8, 40, 40]], [1]), sample(96, 64, [[0, 0, 60, 60], [5, 5, 20, 25]], [0, 2])])
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_image_without_objects_has_no_box_and_no_centerness_loss(model, sample):
    losses = model([sample(64, 64)])
    assert losses["loss_fcos_loc"] == 0
    assert losses["loss_fcos_ctr"] == 0
    assert losses["loss_fcos_cls"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_image_without_objects_beside_one_with_objects(model, sample):
    losses = model([sample(64, 64), sample(64, 64, [[8, 8, 40, 40]], [1])])
    assert all(x.isfinite() and x > 0 for x in losses.values())


def test_cells_within_the_radius_of_an_objects_centre_learn_it(model):
    """Radius 1.5 at stride 8: 12 pixels from (64, 64) along both axes, open, which are cells 52 to 76."""
    labels, boxes, anchors = label(model, [[34, 34, 94, 94]], [1])
    learning = labels == 1
    centers = anchors.get_centers()[learning]
    assert learning.sum() == 4  # 60 and 68: 52 and 76 are on the border
    assert sorted(set(centers.flatten().tolist())) == [60, 68]
    assert boxes[learning].tolist() == [[34, 34, 94, 94]] * 4
    assert (labels[~learning] == 3).all()


def test_cells_outside_of_the_box_do_not_learn_it_though_near_its_centre(model):
    labels, _, anchors = label(model, [[57, 63, 71, 69]], [0])
    centers = anchors.get_centers()[labels == 0]
    assert centers.tolist() == [[60, 68], [68, 68]]


@pytest.mark.parametrize(("side", "stride"), [(12, 8), (100, 8), (160, 16), (320, 32), (2000, 128)])
def test_size_of_an_object_decides_its_feature_map(model, side, stride):
    """The farthest side is at most 64 pixels away at stride 8, 64 to 128 at 16, ... and 512 or more at 128."""
    low, high = 64 - side / 2, 64 + side / 2
    labels, _, anchors = label(model, [[low, low, high, high]], [2])
    sizes = (anchors.tensor[:, 2] - anchors.tensor[:, 0])[labels == 2]
    assert sizes.unique().tolist() == [stride]


def test_of_overlapping_objects_the_smallest_is_learned(model):
    labels, _, _ = label(model, [[30, 30, 98, 98], [40, 40, 88, 88]], [0, 1])
    assert (labels == 1).sum() == 4
    assert (labels == 0).sum() == 0


def test_image_without_objects_is_all_background(model):
    labels, boxes, anchors = label(model, [], [])
    assert (labels == 3).all()
    assert boxes.shape == (len(anchors), 4)


def test_centerness_is_the_root_of_near_over_far(model):
    """From (4, 4) to the sides of the boxes: 4, 4, 4, 4; then 4, 2, 12, 8; then outside."""
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]] * 3))]
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 2.0, 16.0, 12.0], [5.0, 0.0, 8.0, 8.0]])
    targets = model.compute_ctrness_targets(anchors, [boxes])
    torch.testing.assert_close(targets, torch.tensor([[1.0, math.sqrt(4 / 12 * 2 / 8), 0.0]]))


def test_score_is_the_geometric_mean_of_class_and_centerness(model):
    logits, deltas, centerness = torch.full((1, 3, 1, 1), -9.0), torch.full((1, 4, 1, 1), 0.5), torch.zeros(1, 1, 1, 1)
    logits[0, 1] = 0.0
    model.anchor_generator = type(model.anchor_generator)(sizes=[[8]], aspect_ratios=[1.0], strides=[8])
    images = model.preprocess_image([{"image": torch.zeros(3, 64, 64)}])
    (result,) = model.forward_inference(images, grids(1), [[logits], [deltas], [centerness]])
    torch.testing.assert_close(result.scores, torch.tensor([0.5]))  # the root of 1/2 times 1/2
    assert result.pred_classes.tolist() == [1]
    assert result.pred_boxes.tensor.tolist() == [[0, 0, 8, 8]]  # half a stride around (4, 4)


def test_untrained_model_detects_nothing_and_keeps_the_contract(model):
    model.eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 64, 96), "height": 128, "width": 192}])
    assert output["instances"].image_size == (128, 192)
    assert len(output["instances"]) == 0


def test_learns_to_detect_one_object(model, sample):
    batch = [sample(64, 64, [[16, 16, 48, 48]], [1])]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sums = []
    for _ in range(20):
        loss = sum(model(copy.deepcopy(batch)).values())
        sums.append(float(loss.detach() * model.loss_normalizer))  # the normaliser falls from 300 to the 4 cells
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sums[-1] < 0.6 * sums[0]


def test_head_has_one_anchor_and_a_centerness():
    head = FCOSHead(input_shape=[ShapeSpec(channels=8, stride=8)], conv_dims=[8], num_classes=3, norm="")
    logits, deltas, centerness = head([torch.zeros(2, 8, 5, 6)])
    assert [x.shape for x in (logits[0], deltas[0], centerness[0])] == [(2, 3, 5, 6), (2, 4, 5, 6), (2, 1, 5, 6)]
