import math

import pytest
import torch
from torch import nn

from detlib.layers import ShapeSpec
from detlib.modeling.roi_heads.mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    MaskRCNNConvUpsampleHead,
    build_mask_head,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detlib.structures import BitMasks, Boxes, Instances, PolygonMasks
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

SURE = 50.0  # A logit whose probability is 1 to all digits
SHAPE = ShapeSpec(channels=4, height=3, width=3)


def proposals(classes, masks=None):
    """Regions of 4 x 4 pixels whose left half is the object."""
    count = len(classes)
    if masks is None:
        bitmap = torch.zeros(count, 4, 4, dtype=torch.bool)
        bitmap[:, :, :2] = True
        masks = BitMasks(bitmap)
    boxes = Boxes(torch.tensor([[0.0, 0, 4, 4]] * count).reshape(-1, 4))
    return Instances((4, 4), proposal_boxes=boxes, gt_classes=torch.tensor(classes).long(), gt_masks=masks)


def left_half(num_classes, value):
    """Logits (1, K, 2, 2) that are right about the object of `proposals`, for each class."""
    return torch.tensor([[value, -value], [value, -value]]).expand(1, num_classes, 2, 2).clone()


def test_only_the_mask_of_the_true_class_counts():
    logits = left_half(3, -SURE)
    logits[:, 1] = 0
    assert mask_rcnn_loss(logits, [proposals([1])]).item() == pytest.approx(math.log(2))
    logits[:, 1] = left_half(1, SURE)[:, 0]
    assert mask_rcnn_loss(logits, [proposals([1])]).item() == pytest.approx(0)
    assert mask_rcnn_loss(logits, [proposals([2])]).item() == pytest.approx(SURE)


def test_one_mask_may_serve_all_classes():
    assert mask_rcnn_loss(left_half(1, SURE), [proposals([2])]).item() == pytest.approx(0)


def test_polygons_and_bitmaps_give_the_same_target():
    polygon = PolygonMasks([[[0, 0, 2, 0, 2, 4, 0, 4]]])
    assert mask_rcnn_loss(left_half(1, SURE), [proposals([0], polygon)]).item() == pytest.approx(0)


def test_regions_of_several_images_are_taken_in_order_and_images_without_any_are_left_out():
    empty = Instances((4, 4), proposal_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.int64))
    logits = left_half(2, -SURE).repeat(2, 1, 1, 1)
    logits[0, 1] = logits[1, 0] = left_half(1, SURE)[0, 0]
    assert mask_rcnn_loss(logits, [proposals([1]), empty, proposals([0])]).item() == pytest.approx(0)


def test_without_regions_the_loss_is_zero_and_has_a_gradient():
    logits = torch.zeros(0, 3, 2, 2, requires_grad=True)
    loss = mask_rcnn_loss(logits, [proposals([]), proposals([])])
    loss.backward()
    assert loss == 0 and logits.grad.shape == logits.shape


def test_scalars_are_parts_of_all_cells_of_the_background_and_of_the_object():
    logits = left_half(1, SURE)
    logits[0, 0, 0] = SURE  # The upper right cell is wrong: 1 of 4, and 1 of the 2 of the background.
    with EventStorage() as storage:
        mask_rcnn_loss(logits, [proposals([0])])
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest == {
        "mask_rcnn/accuracy": 0.75,
        "mask_rcnn/false_positive": 0.5,
        "mask_rcnn/false_negative": 0,
    }


def test_inference_gives_each_image_the_probabilities_of_its_predicted_classes():
    logits = torch.zeros(2, 3, 1, 1)
    logits[0, 2], logits[1, 0] = SURE, -SURE
    images = [Instances((4, 4), pred_classes=torch.tensor(classes).long()) for classes in ([2], [], [0])]
    mask_rcnn_inference(logits, images)
    assert [x.pred_masks.shape for x in images] == [(1, 1, 1, 1), (0, 1, 1, 1), (1, 1, 1, 1)]
    assert images[0].pred_masks.item() == pytest.approx(1)
    assert images[2].pred_masks.item() == pytest.approx(0)


def test_head_doubles_the_size_and_weighs_its_loss():
    class Fixed(BaseMaskRCNNHead):
        def layers(self, x):
            return x

    loss = Fixed(loss_weight=3.0)(torch.zeros(1, 3, 2, 2), [proposals([1])])["loss_mask"]
    assert loss.item() == pytest.approx(3 * math.log(2))
    head = MaskRCNNConvUpsampleHead(SHAPE, num_classes=5, conv_dims=[8, 6])
    assert head.layers(torch.zeros(2, 4, 3, 3)).shape == (2, 5, 6, 6)
    assert head.layers(torch.zeros(0, 4, 3, 3)).shape == (0, 5, 6, 6)


def test_layers_have_the_names_that_checkpoints_use():
    plain = MaskRCNNConvUpsampleHead(SHAPE, num_classes=5, conv_dims=[8, 6])
    names = ["mask_fcn1.weight", "mask_fcn1.bias", "deconv.weight", "deconv.bias", "predictor.weight", "predictor.bias"]
    assert list(plain.state_dict()) == names
    normed = MaskRCNNConvUpsampleHead(SHAPE, num_classes=5, conv_dims=[32, 6], conv_norm="GN")
    assert list(normed.state_dict())[:3] == ["mask_fcn1.weight", "mask_fcn1.norm.weight", "mask_fcn1.norm.bias"]
    assert len(plain.conv_norm_relus) == len(normed.conv_norm_relus) == 1


def test_first_masks_are_undecided():
    probabilities = MaskRCNNConvUpsampleHead(SHAPE, num_classes=5, conv_dims=[8]).layers(torch.rand(1, 4, 3, 3))
    assert (probabilities.sigmoid() - 0.5).abs().max() < 0.05


def test_config_chooses_head_and_masks_per_class(tiny_rcnn_cfg):
    head = build_mask_head(tiny_rcnn_cfg, SHAPE)
    assert isinstance(head, MaskRCNNConvUpsampleHead)
    assert head.predictor.out_channels == 3 and isinstance(head.mask_fcn1, nn.Conv2d)
    tiny_rcnn_cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    assert build_mask_head(tiny_rcnn_cfg, SHAPE).predictor.out_channels == 1
    assert ROI_MASK_HEAD_REGISTRY.get("MaskRCNNConvUpsampleHead") is MaskRCNNConvUpsampleHead


def test_a_head_without_channels_is_a_config_error():
    with pytest.raises(ConfigError, match="conv_dims must not be empty"):
        MaskRCNNConvUpsampleHead(SHAPE, num_classes=5, conv_dims=[])
