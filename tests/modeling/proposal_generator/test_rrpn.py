import pytest
import torch

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling.proposal_generator import RRPN, build_proposal_generator
from detlib.modeling.proposal_generator.rrpn import find_top_rrpn_proposals
from detlib.structures import ImageList, Instances, RotatedBoxes
from detlib.utils.errors import ConfigError, NonFiniteError

SHAPES = {"p3": ShapeSpec(channels=6, stride=8), "p4": ShapeSpec(channels=6, stride=16)}
WIDE = [30.0, 30, 20, 4, 0]


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RRPN"
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    cfg.MODEL.ANCHOR_GENERATOR.ANGLES = [[-60, 0, 60]]
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0)
    return cfg


@pytest.fixture
def rrpn(cfg):
    torch.manual_seed(0)
    return build_proposal_generator(cfg, SHAPES)


def batch(boxes_of_images):
    generator = torch.Generator().manual_seed(0)
    N = len(boxes_of_images)
    features = {
        "p3": torch.randn(N, 6, 8, 12, generator=generator),
        "p4": torch.randn(N, 6, 4, 6, generator=generator),
    }
    gt = [Instances((64, 96), gt_boxes=RotatedBoxes(torch.tensor(boxes))) for boxes in boxes_of_images]
    return ImageList(torch.zeros(N, 3, 64, 96), [(64, 96)] * N), features, gt


def test_losses_reach_every_weight_and_proposals_are_rotated(rrpn):
    assert isinstance(rrpn, RRPN)
    proposals, losses = rrpn(*batch([[WIDE], [[50.0, 20, 30, 10, 45], [20, 20, 10, 10, -80]]]))
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in rrpn.parameters())
    assert [isinstance(x.proposal_boxes, RotatedBoxes) and len(x) > 0 for x in proposals] == [True, True]


def test_images_without_objects(rrpn):
    _, losses = rrpn(*batch([[], []]))
    assert losses["loss_rpn_loc"] == 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in rrpn.parameters())


def label(rrpn, anchors, boxes):
    gt = Instances((60, 60), gt_boxes=RotatedBoxes(torch.tensor(boxes)))
    (labels,), (gt_boxes,) = rrpn.label_and_sample_anchors([RotatedBoxes(torch.tensor(anchors))], [gt])
    return labels.tolist(), gt_boxes


def test_anchors_are_matched_by_the_overlap_of_rotated_boxes(rrpn):
    """Across, the box shares 4 x 4 of 2 x 80 - 16 square pixels with the object; turned by 180 degrees, all of it."""
    anchors = [WIDE, [30.0, 30, 20, 4, 90], [30.0, 30, 20, 4, 180]]
    labels, gt_boxes = label(rrpn, anchors, [WIDE])
    assert labels == [1, 0, 1]
    assert gt_boxes[0].tolist() == WIDE
    labels, gt_boxes = label(rrpn, anchors, [])
    assert labels == [0, 0, 0]
    assert gt_boxes.shape == (3, 5)


def test_anchors_with_a_corner_outside_the_image_do_not_count(cfg):
    cfg.MODEL.RPN.BOUNDARY_THRESH = 0
    rrpn = build_proposal_generator(cfg, SHAPES)
    labels, _ = label(rrpn, [[30.0, 3, 20, 4, 0], [30.0, 3, 20, 4, 90]], [])
    assert labels == [0, -1]


def find(boxes, logits, training=False):
    (found,) = find_top_rrpn_proposals(
        [torch.tensor([boxes])], [torch.tensor([logits])], [(60, 60)], 0.5, 10, 10, 0.0, training
    )
    return found


def test_only_boxes_of_like_angle_suppress_one_another():
    across, turned_over, near = [30.0, 30, 20, 4, 90], [30.0, 30, 20, 4, 180], [30.0, 30, 20, 4, 2]
    found = find([WIDE, across, turned_over, near], [4.0, 3.0, 2.0, 1.0])
    assert found.objectness_logits.tolist() == [4.0, 3.0]
    assert found.proposal_boxes.tensor.tolist() == [WIDE, across]


def test_upright_proposals_are_clipped_and_those_without_area_dropped():
    found = find([[0.0, 30, 20, 4, 0], [30.0, 30, 0, 4, 30]], [1.0, 2.0])
    assert found.proposal_boxes.tensor.tolist() == [[5, 30, 10, 4, 0]]


def test_boxes_that_are_not_finite_end_the_training():
    bad = [30.0, 30, 20, 4, float("nan")]
    assert len(find([bad], [1.0])) == 0
    with pytest.raises(NonFiniteError):
        find([bad], [1.0], training=True)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("RPN.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0), "5 weights"),
        ("PROPOSAL_GENERATOR.NAME", "RPN", "RRPN"),
        ("ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator", "RotatedAnchorGenerator"),
        ("RPN.BBOX_REG_LOSS_TYPE", "giou", "smooth_l1"),
    ],
)
def test_parts_that_do_not_fit_rotated_boxes_are_named(cfg, key, value, message):
    if key == "PROPOSAL_GENERATOR.NAME":
        cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
    section, name = key.split(".")
    cfg.MODEL[section][name] = value
    with pytest.raises(ConfigError, match=message):
        build_proposal_generator(cfg, SHAPES)
