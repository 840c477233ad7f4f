import copy
import math

import pytest
import torch

from detlib.modeling import build_model
from detlib.structures import Boxes, Instances
from detlib.utils.errors import ConfigError, DatasetError
from detlib.utils.events import EventStorage


@pytest.fixture
def model(tiny_cfg):
    torch.manual_seed(0)
    return build_model(tiny_cfg)


def test_losses_are_finite_and_reach_every_weight(model, sample):
    losses = model([sample(64, 96, [[8, 8, 40, 40]], [1]), sample(96, 64, [[0, 0, 60, 60], [5, 5, 20, 25]], [0, 2])])
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_image_without_objects_has_zero_box_loss(model, sample):
    losses = model([sample(64, 64)])
    assert losses["loss_box_reg"] == 0
    assert losses["loss_cls"] > 0


def test_image_without_objects_beside_one_with_objects(model, sample):
    losses = model([sample(64, 64), sample(64, 64, [[8, 8, 40, 40]], [1])])
    assert all(x.isfinite() for x in losses.values())


def test_first_scores_are_the_prior(model, sample):
    with torch.no_grad():
        features = model.backbone(model.preprocess_image([sample(64, 64)]).tensor)
        logits, _ = model.head([features[name] for name in model.head_in_features])
    assert torch.cat([x.flatten() for x in logits]).sigmoid().mean() == pytest.approx(0.01, abs=0.003)


def test_classification_loss_is_the_focal_loss_over_the_normaliser(model):
    """One anchor of class 1, one of background, one ignored; logits of 0, where p = 1/2, gamma = 2 and alpha = 1/4."""
    anchors = [Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]] * 3))]
    losses = model.losses(
        anchors,
        pred_logits=[torch.zeros(1, 3, 3)],
        gt_labels=[torch.tensor([1, 3, -1])],
        pred_anchor_deltas=[torch.zeros(1, 3, 4)],
        gt_boxes=[anchors[0].tensor],
    )
    one_positive_five_negative = 0.5**2 * math.log(2) * (0.25 + 5 * 0.75)
    normaliser = 0.9 * 100 + 0.1 * 1
    assert float(losses["loss_cls"]) == pytest.approx(one_positive_five_negative / normaliser)
    assert losses["loss_box_reg"] == 0


def test_normaliser_is_training_state_and_not_in_the_state_dict(model, sample):
    before = float(model.loss_normalizer)
    model([sample(64, 64)])  # no foreground counts as one anchor
    assert float(model.loss_normalizer) == pytest.approx(0.9 * before + 0.1)
    assert model.training_state_buffers == ("loss_normalizer",)
    assert "loss_normalizer" not in model.state_dict()


def test_two_forwards_before_one_backward(model, sample):
    batch = [sample(64, 64, [[8, 8, 40, 40]], [1])]
    (sum(model(batch).values()) + sum(model(batch).values())).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_number_of_positive_anchors_is_logged(model, sample):
    with EventStorage() as storage:
        model([sample(64, 64, [[8, 8, 40, 40]], [1])])
    assert storage.latest()["num_pos_anchors"][0] > 0


def label(model, anchors, boxes_xyxy, classes):
    gt = Instances((100, 100))
    gt.gt_boxes = Boxes(torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4))
    gt.gt_classes = torch.tensor(classes, dtype=torch.int64)
    (labels,), (boxes,) = model.label_anchors([Boxes(torch.tensor(anchors))], [gt])
    return labels, boxes


def test_anchors_get_class_background_or_nothing_by_their_iou(model):
    anchors = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.5], [50.0, 50.0, 60.0, 60.0]]
    labels, boxes = label(model, anchors, [[0, 0, 10, 10]], [2])
    assert labels.tolist() == [2, 2, -1, 3]  # IoU 1, 0.5, 0.45 and 0
    assert boxes[0].tolist() == [0, 0, 10, 10]


def test_every_object_has_an_anchor_however_bad(model):
    labels, _ = label(model, [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0]], [[0, 0, 2, 2]], [1])
    assert labels.tolist() == [1, 3]


def test_image_without_objects_is_all_background(model):
    labels, boxes = label(model, [[0.0, 0.0, 10.0, 10.0]], [], [])
    assert labels.tolist() == [3]
    assert boxes.shape == (1, 4)


def infer(model, scores, anchors):
    """Detections of one feature map with zero deltas."""
    return model.inference_single_image(
        [Boxes(torch.tensor(anchors))], [torch.tensor(scores)], [torch.zeros(len(anchors), 4)], (100, 100)
    )


def test_overlapping_boxes_of_one_class_are_one_detection(model):
    result = infer(model, [[0.9, 0.0, 0.0], [0.8, 0.0, 0.0]], [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    torch.testing.assert_close(result.scores, torch.tensor([0.9]))


def test_overlapping_boxes_of_two_classes_are_two_detections(model):
    result = infer(model, [[0.6, 0.9, 0.0]], [[0.0, 0.0, 10.0, 10.0]])
    torch.testing.assert_close(result.scores, torch.tensor([0.9, 0.6]))
    assert result.pred_classes.tolist() == [1, 0]


def test_scores_up_to_the_threshold_are_dropped(model):
    model.test_score_thresh = 0.25
    result = infer(model, [[0.25, 0.5, 0.0]], [[0.0, 0.0, 10.0, 10.0]])
    assert result.pred_classes.tolist() == [1]


def test_candidates_and_detections_are_limited_to_the_best(model):
    anchors = [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(5)]
    scores = [[0.1 * (i + 1), 0.0, 0.0] for i in range(5)]
    model.test_topk_candidates = 3
    assert len(infer(model, scores, anchors)) == 3
    model.max_detections_per_image = 2
    torch.testing.assert_close(infer(model, scores, anchors).scores, torch.tensor([0.5, 0.4]))


def test_nothing_above_the_threshold_is_an_empty_result(model):
    assert len(infer(model, [[0.0, 0.0, 0.0]], [[0.0, 0.0, 10.0, 10.0]])) == 0


def test_detections_are_in_the_size_that_the_sample_asks_for(model, sample):
    model.eval()
    model.test_score_thresh = 0.0
    one, two = sample(64, 96), sample(48, 64)
    one["height"], one["width"] = 640, 960
    del two["height"], two["width"], two["instances"]
    with torch.no_grad():
        first, second = model([one, two])
    assert first["instances"].image_size == (640, 960)
    assert second["instances"].image_size == (48, 64)
    assert len(first["instances"]) > 0
    assert first["instances"].pred_boxes.tensor[:, 2].max() <= 960


def test_the_batch_does_not_change_the_detections(model, sample):
    model.eval()
    model.test_score_thresh = 0.0
    batch = [sample(64, 64), sample(64, 64)]
    batch[0]["image"] = 255 - batch[0]["image"]
    with torch.no_grad():
        together, alone = model(batch)[1]["instances"], model(batch[1:])[0]["instances"]
    torch.testing.assert_close(together.scores[:10], alone.scores[:10], atol=1e-4, rtol=1e-3)


def test_batch_norm_keeps_statistics_for_each_feature_map(tiny_cfg):
    tiny_cfg.MODEL.RETINANET.NORM = "BN"
    head = build_model(tiny_cfg).head
    assert len(head.cls_subnet[1]) == 5
    assert head.cls_subnet[1][0].running_mean is not head.cls_subnet[1][1].running_mean


def test_group_norm_is_shared_by_the_feature_maps(tiny_cfg):
    tiny_cfg.MODEL.RETINANET.NORM = "GN"
    tiny_cfg.MODEL.FPN.OUT_CHANNELS = 32
    assert isinstance(build_model(tiny_cfg).head.bbox_subnet[1], torch.nn.GroupNorm)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
def test_a_few_steps_lower_every_kind_of_loss(tiny_cfg, sample, loss_type):
    torch.manual_seed(0)
    tiny_cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE = loss_type
    model = build_model(tiny_cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batch = [sample(64, 64, [[8, 8, 40, 40], [30, 20, 60, 50]], [1, 0])]
    history = []
    for _ in range(25):
        loss = sum(model(copy.deepcopy(batch)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # Without the drift of the moving average.
        history.append(float(loss.detach() * model.loss_normalizer))
    assert history[-1] < 0.8 * history[0]


CHANGES = {
    "NUM_CLASSES": (7, lambda m: m.num_classes),
    "FOCAL_LOSS_ALPHA": (0.5, lambda m: m.focal_loss_alpha),
    "FOCAL_LOSS_GAMMA": (1.5, lambda m: m.focal_loss_gamma),
    "SMOOTH_L1_LOSS_BETA": (0.3, lambda m: m.smooth_l1_beta),
    "BBOX_REG_LOSS_TYPE": ("giou", lambda m: m.box_reg_loss_type),
    "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), lambda m: m.box2box_transform.weights),
    "SCORE_THRESH_TEST": (0.2, lambda m: m.test_score_thresh),
    "TOPK_CANDIDATES_TEST": (10, lambda m: m.test_topk_candidates),
    "NMS_THRESH_TEST": (0.6, lambda m: m.test_nms_thresh),
    "NUM_CONVS": (2, lambda m: sum(isinstance(x, torch.nn.Conv2d) for x in m.head.cls_subnet)),
    "IN_FEATURES": (["p4", "p5"], lambda m: m.head_in_features),
    "IOU_THRESHOLDS": ([0.3, 0.6], lambda m: m.anchor_matcher.thresholds[1:-1]),
    "IOU_LABELS": ([0, 0, 1], lambda m: m.anchor_matcher.labels),
    "NORM": ("BN", lambda m: "BN" if len(m.head.cls_subnet) == 3 else ""),
    "LOSS_CLS": ({"NAME": "FocalLoss", "GAMMA": 1.5}, lambda m: {"NAME": "FocalLoss", "GAMMA": m.loss_cls.gamma}),
    "LOSS_BBOX": ({"NAME": "L1Loss"}, lambda m: {"NAME": type(m.loss_bbox).__name__}),
    "HEAD": (
        {"NAME": "RetinaNetHead", "PRIOR_PROB": 0.5},
        lambda m: {"NAME": type(m.head).__name__, "PRIOR_PROB": m.head.cls_score.bias[0].sigmoid().item()},
    ),
    "PRIOR_PROB": (0.2, lambda m: pytest.approx(m.head.cls_score.bias[0].sigmoid().item())),
}


@pytest.mark.parametrize("key", CHANGES)
def test_every_key_of_the_config_has_an_effect(tiny_cfg, key):
    value, read = CHANGES[key]
    tiny_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 48]]
    tiny_cfg.MODEL.RETINANET[key] = value
    assert read(build_model(tiny_cfg)) == value


def test_every_key_of_the_config_is_tested(tiny_cfg):
    assert set(CHANGES) == set(tiny_cfg.MODEL.RETINANET)


def test_uneven_numbers_of_anchors_are_refused(tiny_cfg):
    tiny_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32, 48], [64], [128], [256]]
    with pytest.raises(ConfigError, match=r"as many anchors, got \[3, 6, 3, 3, 3\]"):
        build_model(tiny_cfg)


def test_unknown_feature_map_lists_those_of_the_backbone(tiny_cfg):
    tiny_cfg.MODEL.RETINANET.IN_FEATURES = ["p2"]
    with pytest.raises(ConfigError, match=r"\['p2'\], but the backbone gives p3, p4, p5, p6, p7"):
        build_model(tiny_cfg)


def test_training_without_ground_truth_says_so(model, sample):
    batch = [sample(64, 64)]
    del batch[0]["instances"]
    with pytest.raises(DatasetError, match="training needs 'instances'"):
        model(batch)


def test_training_picture_shows_both_sides(model, sample):
    batch = [sample(64, 64, [[8, 8, 40, 40]], [1])]
    with EventStorage() as storage:
        model.visualize_training(batch, [Instances((64, 64), pred_boxes=Boxes(torch.zeros(0, 4)))])
    assert storage._images[0][1].shape == (3, 64, 128)
