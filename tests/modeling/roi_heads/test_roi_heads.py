import pytest
import torch
from torch import nn

from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.modeling.matcher import Matcher
from detlib.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY
from detlib.modeling.roi_heads.roi_heads import (
    ROI_HEADS_REGISTRY,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
    build_roi_heads,
    select_foreground_proposals,
    select_proposals_with_visible_keypoints,
)
from detlib.structures import Boxes, Instances, Keypoints
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

K = 3


def heads(**kwargs):
    options = {"num_classes": K, "batch_size_per_image": 4, "positive_fraction": 0.5, "proposal_append_gt": False}
    return ROIHeads(proposal_matcher=Matcher([0.5], [0, 1]), **{**options, **kwargs})


def proposals(*xyxy):
    boxes = Boxes(torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4))
    return Instances((64, 64), proposal_boxes=boxes, objectness_logits=torch.zeros(len(boxes)))


def targets(xyxy, classes):
    boxes = Boxes(torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4))
    names = [f"object {i}" for i in range(len(classes))]
    return Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor(classes, dtype=torch.int64), gt_name=names)


def test_proposals_get_the_class_box_and_every_field_of_their_object():
    (sampled,) = heads().label_and_sample_proposals(
        [proposals([0, 0, 10, 10], [30, 30, 40, 41], [50, 50, 60, 60])],
        [targets([[30, 30, 40, 40], [0, 0, 10, 10]], [2, 1])],
    )
    by_left = {
        box[0]: (c, n)
        for box, c, n in zip(sampled.proposal_boxes.tensor.tolist(), sampled.gt_classes.tolist(), sampled.gt_name)
    }
    assert by_left[0] == (1, "object 1")
    assert by_left[30] == (2, "object 0")
    assert by_left[50][0] == K
    assert sampled.gt_boxes.tensor[sampled.gt_classes == 2].tolist() == [[30, 30, 40, 40]]


def test_the_sample_has_the_size_and_the_part_of_objects_wanted():
    given = proposals(*[[0, 0, 10, 10 + i / 10] for i in range(6)], *[[40, 40, 50, 50]] * 6)
    with EventStorage() as storage:
        (sampled,) = heads().label_and_sample_proposals([given], [targets([[0, 0, 10, 10]], [0])])
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert sorted(sampled.gt_classes.tolist()) == [0, 0, K, K]
    assert latest == {"roi_head/num_fg_samples": 2, "roi_head/num_bg_samples": 2}


def test_true_boxes_join_the_proposals():
    (sampled,) = heads(proposal_append_gt=True).label_and_sample_proposals(
        [proposals()], [targets([[5, 5, 9, 9]], [1])]
    )
    assert sampled.gt_classes.tolist() == [1]
    assert sampled.proposal_boxes.tensor.tolist() == [[5, 5, 9, 9]]


def test_without_objects_all_is_background_and_without_proposals_there_is_none():
    sampled = heads().label_and_sample_proposals(
        [proposals([0, 0, 9, 9]), proposals()], [targets([], []), targets([], [])]
    )
    assert [x.gt_classes.tolist() for x in sampled] == [[K], []]
    assert not sampled[0].has("gt_boxes")


def test_foreground_is_what_is_neither_background_nor_ignored():
    given = proposals(*[[0, 0, 9, 9]] * 4)
    given.gt_classes = torch.tensor([0, K, -1, 2])
    (selected,), (mask,) = select_foreground_proposals([given], K)
    assert selected.gt_classes.tolist() == [0, 2]
    assert mask.tolist() == [True, False, False, True]


def test_keypoints_count_if_visible_and_inside_the_proposal():
    given = proposals(*[[0, 0, 10, 10]] * 3)
    given.gt_keypoints = Keypoints([[[5, 5, 2], [50, 5, 2]], [[50, 5, 2], [5, 50, 2]], [[5, 5, 0], [5, 50, 1]]])
    first, second = select_proposals_with_visible_keypoints([given, proposals()])
    assert first.gt_keypoints.tensor[:, 0, 0].tolist() == [5]
    assert len(first) == 1 and len(second) == 0


def test_registry_has_the_known_heads_under_their_old_path():
    assert ROI_HEADS_REGISTRY.get("StandardROIHeads") is StandardROIHeads
    assert ROI_HEADS_REGISTRY.get("Res5ROIHeads") is Res5ROIHeads


def test_a_feature_map_that_is_not_there_is_a_config_error(tiny_rcnn_cfg):
    tiny_rcnn_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "p9"]
    with pytest.raises(ConfigError, match=r"MODEL.ROI_HEADS.IN_FEATURES is \['p3', 'p9'\], but the backbone gives p3"):
        build_roi_heads(tiny_rcnn_cfg, {"p3": ShapeSpec(channels=16, stride=8)})


def test_feature_maps_of_different_widths_are_a_config_error(tiny_rcnn_cfg):
    shapes = {"p3": ShapeSpec(channels=16, stride=8), "p4": ShapeSpec(channels=32, stride=16)}
    with pytest.raises(ConfigError, match=r"\[16, 32\] channels"):
        build_roi_heads(tiny_rcnn_cfg, shapes)


def test_a_subclass_may_build_its_own_box_head(tiny_rcnn_cfg):
    class Plain(StandardROIHeads):
        @classmethod
        def _init_box_head(cls, cfg, input_shape):
            return {**super()._init_box_head(cfg, input_shape), "box_head": nn.Flatten()}

    shapes = {name: ShapeSpec(channels=16, stride=stride) for name, stride in (("p3", 8), ("p4", 16))}
    assert isinstance(Plain(tiny_rcnn_cfg, shapes).box_head, nn.Flatten)


def test_masks_and_keypoints_of_given_boxes_are_for_prediction_only(tiny_rcnn_cfg):
    shapes = {name: ShapeSpec(channels=16, stride=stride) for name, stride in (("p3", 8), ("p4", 16))}
    with pytest.raises(RuntimeError, match="eval"):
        build_roi_heads(tiny_rcnn_cfg, shapes).forward_with_given_boxes({}, [])


def test_training_needs_targets(tiny_rcnn_cfg):
    shapes = {name: ShapeSpec(channels=16, stride=stride) for name, stride in (("p3", 8), ("p4", 16))}
    with pytest.raises(ValueError, match="needs targets"):
        build_roi_heads(tiny_rcnn_cfg, shapes)(None, {}, [proposals()])


def test_mask_head_without_pooler_gets_the_whole_maps(tiny_rcnn_cfg):
    seen = []

    @ROI_MASK_HEAD_REGISTRY.register("WholeMaps")
    def whole_maps(cfg, input_shape):
        seen.append(input_shape)
        return torch.nn.Identity()

    tiny_rcnn_cfg.MODEL.MASK_ON = True
    tiny_rcnn_cfg.MODEL.ROI_MASK_HEAD.NAME = "WholeMaps"
    tiny_rcnn_cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    heads = build_model(tiny_rcnn_cfg).roi_heads
    assert heads.mask_pooler is None
    assert list(seen[0]) == tiny_rcnn_cfg.MODEL.ROI_HEADS.IN_FEATURES
