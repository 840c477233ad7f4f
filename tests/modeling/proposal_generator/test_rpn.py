import math

import pytest
import torch
from torch import nn

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling.proposal_generator import RPN, StandardRPNHead, build_proposal_generator, build_rpn_head
from detlib.structures import Boxes, ImageList, Instances
from detlib.utils.errors import ConfigError, DatasetError, NonFiniteError, UnknownNameError
from detlib.utils.events import EventStorage

SHAPES = {"p3": ShapeSpec(channels=6, stride=8), "p4": ShapeSpec(channels=6, stride=16)}


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    return cfg


@pytest.fixture
def rpn(cfg):
    torch.manual_seed(0)
    return build_proposal_generator(cfg, SHAPES)


def batch(boxes_of_images, channels=6):
    """Images of 64 x 96, their features and true boxes."""
    generator = torch.Generator().manual_seed(0)
    N = len(boxes_of_images)
    features = {
        "p3": torch.randn(N, channels, 8, 12, generator=generator),
        "p4": torch.randn(N, channels, 4, 6, generator=generator),
    }
    gt = [
        Instances((64, 96), gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)))
        for boxes in boxes_of_images
    ]
    return ImageList(torch.zeros(N, 3, 64, 96), [(64, 96)] * N), features, gt


def test_losses_reach_every_weight(rpn):
    proposals, losses = rpn(*batch([[[10, 10, 40, 40]], [[0, 0, 20, 20], [50, 5, 80, 40]]]))
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in rpn.parameters())
    for of_image in proposals:
        assert not of_image.proposal_boxes.tensor.requires_grad
        assert not of_image.objectness_logits.requires_grad
        assert of_image.proposal_boxes.inside_box((64, 96), boundary_threshold=1).all()
        assert of_image.objectness_logits.diff().max() <= 0


@pytest.mark.parametrize("boxes", [[[]], [[], [[10, 10, 40, 40]]]])
def test_images_without_objects(rpn, boxes):
    _, losses = rpn(*batch(boxes))
    assert losses["loss_rpn_cls"] > 0
    assert (losses["loss_rpn_loc"] == 0) == (boxes == [[]])
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in rpn.parameters())


def test_prediction_needs_no_ground_truth_and_gives_no_losses(rpn):
    rpn.eval()
    images, features, _ = batch([[], []])
    proposals, losses = rpn(images, features)
    assert losses == {}
    assert [len(x) > 0 for x in proposals] == [True, True]


def test_training_without_ground_truth_is_an_error(rpn):
    images, features, _ = batch([[]])
    with pytest.raises(DatasetError, match="gt_instances"):
        rpn(images, features)


def test_predictions_that_are_not_finite_end_the_training(rpn):
    images, features, gt = batch([[[10, 10, 40, 40]]])
    features["p3"][0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError):
        rpn(images, features, gt)


def test_numbers_of_proposals_depend_on_the_mode(cfg):
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 7, 3
    rpn = build_proposal_generator(cfg, SHAPES)
    proposals, _ = rpn(*batch([[[10, 10, 40, 40]]]))
    assert [len(x) for x in proposals] == [7]
    proposals, _ = rpn.eval()(*batch([[]]))
    assert [len(x) for x in proposals] == [3]


def test_losses_are_divided_by_the_size_of_a_full_sample(cfg):
    """An object, a background and an ignored anchor with logits of 0, where -log(1/2) = log 2; deltas are off by 1."""
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 10
    cfg.MODEL.RPN.LOSS_WEIGHT, cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 2.0, 3.0
    rpn = build_proposal_generator(cfg, SHAPES)
    anchors = [Boxes(torch.tensor([[0.0, 0, 8, 8]] * 3))]
    with EventStorage() as storage:
        losses = rpn.losses(
            anchors,
            pred_objectness_logits=[torch.zeros(2, 3)],
            gt_labels=[torch.tensor([1, 0, -1]), torch.tensor([0, 0, -1])],
            pred_anchor_deltas=[torch.ones(2, 3, 4)],
            gt_boxes=[anchors[0].tensor] * 2,
        )
    assert float(losses["loss_rpn_cls"]) == pytest.approx(2 * 4 * math.log(2) / (10 * 2))
    assert float(losses["loss_rpn_loc"]) == pytest.approx(2 * 3 * 4 / (10 * 2))
    assert storage.latest()["rpn/num_pos_anchors"][0] == 0.5
    assert storage.latest()["rpn/num_neg_anchors"][0] == 1.5


def label(rpn, anchors, boxes):
    gt = Instances((100, 100), gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)))
    (labels,), (gt_boxes,) = rpn.label_and_sample_anchors([Boxes(torch.tensor(anchors))], [gt])
    return labels, gt_boxes


ANCHORS = [[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [50, 50, 60, 60], [-5, 0, 5, 10]]


def test_anchors_are_objects_ignored_or_background_by_their_overlap(rpn):
    """Overlaps with the object: 1, 0.8, 0.5, 0 and 1/3; background is below 0.3, objects are from 0.7 on."""
    labels, gt_boxes = label(rpn, ANCHORS, [[0, 0, 10, 10]])
    assert labels.tolist() == [1, 1, -1, 0, -1]
    assert gt_boxes[:2].tolist() == [[0, 0, 10, 10]] * 2


def test_every_object_has_an_anchor(rpn):
    labels, gt_boxes = label(rpn, ANCHORS, [[50, 50, 51, 60]])
    assert labels.tolist() == [0, 0, 0, 1, 0]
    assert gt_boxes[3].tolist() == [50, 50, 51, 60]


def test_without_objects_all_anchors_are_background(rpn):
    labels, gt_boxes = label(rpn, ANCHORS, [])
    assert labels.tolist() == [0] * 5
    assert gt_boxes.shape == (5, 4)


def test_anchors_outside_the_image_do_not_count(cfg):
    cfg.MODEL.RPN.BOUNDARY_THRESH = 0
    labels, _ = label(build_proposal_generator(cfg, SHAPES), ANCHORS, [[0, 0, 10, 10]])
    assert labels.tolist() == [1, 1, -1, 0, -1]
    labels, _ = label(build_proposal_generator(cfg, SHAPES), ANCHORS, [])
    assert labels.tolist() == [0, 0, 0, 0, -1]


def test_sample_has_the_given_size_and_part_of_objects(cfg):
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 4
    labels, _ = label(build_proposal_generator(cfg, SHAPES), ANCHORS[:1] * 9 + ANCHORS[3:4] * 9, [[0, 0, 10, 10]])
    assert [(labels == value).sum().item() for value in (1, 0, -1)] == [2, 2, 14]


class ConstantHead(nn.Module):
    """Gives each element of the deltas and logits its own number: those of cell x, anchor a and coordinate k."""

    def forward(self, features):
        (x,) = features
        _, _, H, W = x.shape
        cell = torch.arange(H * W, dtype=torch.float32).view(1, 1, H, W)
        logits = torch.cat([cell * 10 + a for a in range(2)], dim=1)
        deltas = torch.cat([cell + a * 0.1 + k * 0.01 for a in range(2) for k in range(4)], dim=1)
        return [logits], [deltas]


def test_logits_and_deltas_are_in_the_order_of_the_anchors(cfg):
    cfg.MODEL.RPN.IN_FEATURES = ["p3"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[16]], [[1.0, 2.0]]
    rpn = RPN(cfg, SHAPES).eval()
    rpn.rpn_head = ConstantHead()
    seen = {}

    def predict_proposals(anchors, logits, deltas, image_sizes):
        seen.update(anchors=anchors, logits=logits[0], deltas=deltas[0])

    rpn.predict_proposals = predict_proposals
    rpn(ImageList(torch.zeros(1, 3, 8, 16), [(8, 16)]), {"p3": torch.zeros(1, 6, 1, 2)})
    assert len(seen["anchors"][0]) == 4
    torch.testing.assert_close(seen["logits"], torch.tensor([[0.0, 1.0, 10.0, 11.0]]))
    first = torch.tensor([[0.0, 0.1, 1.0, 1.1]])
    torch.testing.assert_close(seen["deltas"], first[..., None] + torch.tensor([0.0, 0.01, 0.02, 0.03]))


@pytest.mark.parametrize(
    "conv_dims, keys",
    [
        ([-1], {"conv.weight": (6, 6, 3, 3)}),
        ([5], {"conv.weight": (5, 6, 3, 3)}),
        ([-1, 4], {"conv.conv0.weight": (6, 6, 3, 3), "conv.conv1.weight": (4, 6, 3, 3)}),
    ],
)
def test_keys_of_the_head_are_those_of_published_checkpoints(cfg, conv_dims, keys):
    cfg.MODEL.RPN.CONV_DIMS = conv_dims
    state = build_rpn_head(cfg, list(SHAPES.values())).state_dict()
    width = list(keys.values())[-1][0]
    expected = {**keys, "objectness_logits.weight": (3, width, 1, 1), "anchor_deltas.weight": (12, width, 1, 1)}
    assert {k: tuple(v.shape) for k, v in state.items() if k.endswith("weight")} == expected


def test_head_applies_a_relu_between_its_convolutions():
    head = StandardRPNHead(in_channels=1, num_anchors=1, conv_dims=(1,))
    nn.init.constant_(head.conv.bias, -100.0)
    (logits,), (deltas,) = head([torch.ones(1, 1, 2, 2)])
    assert logits.tolist() == [[[[0.0] * 2] * 2]]
    assert deltas.shape == (1, 4, 2, 2)


def test_precomputed_proposals_need_no_generator(cfg):
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert build_proposal_generator(cfg, SHAPES) is None


def test_mistakes_in_the_config_are_named(cfg):
    cfg.MODEL.RPN.CONV_DIMS = []
    with pytest.raises(ConfigError, match="CONV_DIMS"):
        build_proposal_generator(cfg, SHAPES)
    cfg.MODEL.RPN.CONV_DIMS = [-1]
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p7"]
    with pytest.raises(ConfigError, match=r"p7.*the backbone gives p3, p4"):
        build_proposal_generator(cfg, SHAPES)
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4"]
    with pytest.raises(ConfigError, match=r"channels, got \[6, 7\]"):
        build_proposal_generator(cfg, {"p3": SHAPES["p3"], "p4": ShapeSpec(channels=7, stride=16)})
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPNN"
    with pytest.raises(UnknownNameError, match="did you mean 'RPN'"):
        build_proposal_generator(cfg, SHAPES)
