import pytest
import torch

from detlib.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_basic_c2_names,
    convert_c2_detectron_names,
)
from detlib.utils.errors import CheckpointError


@pytest.mark.parametrize(
    ("caffe2", "ours"),
    [
        ("conv1_w", "stem.conv1.weight"),
        ("res_conv1_bn_s", "stem.conv1.norm.weight"),
        ("conv1_gn_b", "stem.conv1.norm.bias"),
        ("res2_0_branch1_w", "res2.0.shortcut.weight"),
        ("res2_0_branch1_bn_b", "res2.0.shortcut.norm.bias"),
        ("res4_22_branch2a_w", "res4.22.conv1.weight"),
        ("res5_2_branch2c_bn_s", "res5.2.conv3.norm.weight"),
        ("res3_1_branch2b_bn_rm", "res3.1.conv2.norm.running_mean"),
        ("res3_1_branch2b_bn_riv", "res3.1.conv2.norm.running_var"),
        ("pred_w", "linear.weight"),
        ("fc1000_b", "linear.bias"),
    ],
)
def test_backbone_name_is_converted(caffe2, ours):
    assert convert_basic_c2_names([caffe2]) == [ours]


@pytest.mark.parametrize(
    ("caffe2", "ours"),
    [
        ("conv_rpn_fpn2_w", "proposal_generator.rpn_head.conv.weight"),
        ("rpn_bbox_pred_b", "proposal_generator.rpn_head.anchor_deltas.bias"),
        ("rpn_cls_logits_fpn2_w", "proposal_generator.rpn_head.objectness_logits.weight"),
        ("fc6_w", "box_head.fc1.weight"),
        ("head_conv3_gn_s", "box_head.conv3.norm.weight"),
        ("fpn_inner_res5_2_sum_w", "fpn_lateral5.weight"),
        ("fpn_inner_res4_22_sum_lateral_b", "fpn_lateral4.bias"),
        ("fpn_res2_2_sum_w", "fpn_output2.weight"),
        ("_[mask]_fcn4_w", "mask_head.mask_fcn4.weight"),
        ("conv5_mask_b", "mask_head.deconv.bias"),
        ("conv_fcn8_w", "keypoint_head.conv_fcn8.weight"),
        ("kps_score_lowres_w", "keypoint_head.score_lowres.weight"),
    ],
)
def test_detector_name_is_converted_and_the_original_kept(caffe2, ours):
    weights, originals = convert_c2_detectron_names({caffe2: torch.zeros(1)})
    assert list(weights) == [ours]
    assert originals == {ours: caffe2}


def test_background_goes_from_first_to_last_class_and_out_of_boxes_and_masks():
    weights, _ = convert_c2_detectron_names(
        {"cls_score_b": torch.arange(3.0), "bbox_pred_b": torch.arange(12.0), "mask_fcn_logits_b": torch.arange(3.0)}
    )
    assert weights["box_predictor.cls_score.bias"].tolist() == [1, 2, 0]
    assert weights["box_predictor.bbox_pred.bias"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert weights["mask_head.predictor.bias"].tolist() == [1, 2]


def test_weight_goes_to_the_name_that_ends_with_the_longest_of_its_candidates():
    model = {"backbone.res2.conv1.weight": torch.zeros(1), "backbone.conv1.weight": torch.zeros(1)}
    checkpoint = {"res2.conv1.weight": torch.tensor([2.0]), "conv1.weight": torch.tensor([1.0])}
    aligned = align_and_update_state_dicts(model, checkpoint, c2_conversion=False)
    assert {name: weight.item() for name, weight in aligned.items()} == {
        "backbone.res2.conv1.weight": 2,
        "backbone.conv1.weight": 1,
    }


def test_only_whole_parts_of_a_name_match():
    aligned = align_and_update_state_dicts({"my_conv1.weight": torch.zeros(1)}, {"conv1.weight": torch.ones(1)}, False)
    assert list(aligned) == ["conv1.weight"]


def test_weight_goes_to_the_place_of_its_shape_and_to_none_if_all_differ():
    model = {f"{name}.norm.weight": torch.zeros(size) for name, size in (("a", 3), ("b", 2), ("c", 3))}
    aligned = align_and_update_state_dicts(model, {"norm.weight": torch.ones(2)}, c2_conversion=False)
    assert list(aligned) == ["b.norm.weight"]
    aligned = align_and_update_state_dicts(model, {"norm.weight": torch.ones(5)}, c2_conversion=False)
    assert list(aligned) == ["norm.weight"]


def test_weight_that_fits_two_places_is_refused_with_all_names():
    model = {"rgb.conv1.weight": torch.zeros(1), "depth.conv1.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"'conv1.weight'.*'rgb.conv1.weight'.*'depth.conv1.weight'"):
        align_and_update_state_dicts(model, {"conv1.weight": torch.ones(1)}, c2_conversion=False)
