import pytest
import torch

from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.modeling.matcher import Matcher
from detlib.modeling.roi_heads import CascadeROIHeads, build_roi_heads
from detlib.structures import BitMasks, Boxes, Instances
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

K = 3
SHAPES = {name: ShapeSpec(channels=16, stride=stride) for name, stride in (("p3", 8), ("p4", 16))}


@pytest.fixture
def cfg(tiny_rcnn_cfg):
    tiny_rcnn_cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    tiny_rcnn_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    tiny_rcnn_cfg.MODEL.MASK_ON = True
    return tiny_rcnn_cfg


def with_masks(sample):
    instances = sample["instances"]
    instances.gt_masks = BitMasks(torch.ones(len(instances), *instances.image_size, dtype=torch.bool))
    return sample


def proposals(*xyxy):
    return Instances((64, 64), proposal_boxes=Boxes(torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4)))


def targets(*xyxy):
    boxes = Boxes(torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4))
    return Instances((64, 64), gt_boxes=boxes, gt_classes=torch.ones(len(boxes), dtype=torch.int64))


def test_each_stage_has_losses_and_every_parameter_learns(cfg, sample):
    model = build_model(cfg).train()
    batch = [with_masks(sample(64, 64, [[4, 4, 30, 40], [20, 20, 60, 60]], [0, 2])), with_masks(sample(48, 72))]
    with EventStorage() as storage:
        losses = model(batch)
        names = set(storage.latest())
    of_stages = {f"{name}_stage{i}" for name in ("loss_cls", "loss_box_reg") for i in range(3)}
    assert set(losses) == {*of_stages, "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert {f"stage{i}/fast_rcnn/cls_accuracy" for i in range(3)} <= names
    assert {"roi_head/num_fg_samples", "stage1/roi_head/num_fg_samples", "stage2/roi_head/num_bg_samples"} <= names
    # The first proposals are far from objects, so later stages may have nothing to regress.
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_image_without_objects_has_no_box_loss_in_any_stage(cfg, sample):
    losses = build_model(cfg).train()([with_masks(sample(64, 64))])
    assert all(losses[f"loss_box_reg_stage{i}"] == 0 for i in range(3))
    assert losses["loss_mask"] == 0
    assert all(loss.isfinite() for loss in losses.values())


def test_matchers_ask_for_more_overlap_from_stage_to_stage(cfg):
    heads = build_roi_heads(cfg, SHAPES)
    given = [proposals([0, 0, 10, 6.5], [0, 0, 10, 9])]  # IoU 0.65 and 0.9
    for stage, classes in enumerate([[1, 1], [1, 1], [K, 1]]):
        (labelled,) = heads._match_and_label_boxes(given, stage, [targets([0, 0, 10, 10])])
        assert labelled.gt_classes.tolist() == classes
        assert labelled.gt_boxes.tensor.tolist() == [[0, 0, 10, 10]] * 2


def test_without_objects_or_proposals_matching_gives_background(cfg):
    heads = build_roi_heads(cfg, SHAPES)
    labelled = heads._match_and_label_boxes([proposals([0, 0, 9, 9]), proposals()], 1, [targets(), targets()])
    assert [x.gt_classes.tolist() for x in labelled] == [[K], []]
    assert [len(x.gt_boxes) for x in labelled] == [1, 0]


def test_boxes_go_from_stage_to_stage_and_scores_are_averaged(cfg):
    cfg.MODEL.MASK_ON = False
    heads = build_roi_heads(cfg, SHAPES).eval()
    # Probabilities of class 0: 1/2, 1/2 and almost 1; each stage moves the box by a tenth, a twentieth and a thirtieth
    # of its width.
    for predictor, logit in zip(heads.box_predictor, (0.0, 0.0, 50.0)):
        for layer in (predictor.cls_score, predictor.bbox_pred):
            torch.nn.init.zeros_(layer.weight)
        predictor.cls_score.bias.data = torch.tensor([logit, -50.0, -50.0, 0.0])
        predictor.bbox_pred.bias.data = torch.tensor([1.0, 0, 0, 0])
    features = {"p3": torch.rand(2, 16, 8, 8), "p4": torch.rand(2, 16, 4, 4)}
    with torch.no_grad():
        (found, none), losses = heads(None, features, [proposals([0, 0, 10, 20]), proposals()])
    assert losses == {} and len(none) == 0
    assert found.pred_classes.tolist() == [0]
    assert found.scores.item() == pytest.approx(2 / 3)
    moved = 10 * (1 / 10 + 1 / 20 + 1 / 30)
    assert found.pred_boxes.tensor[0].tolist() == pytest.approx([moved, 0, 10 + moved, 20], abs=1e-4)


def test_features_get_the_mean_of_the_gradients_of_the_stages(cfg):
    class Ones(torch.nn.Module):
        def forward(self, maps, boxes):
            return maps[0]

    class Sum(torch.nn.Module):
        def forward(self, x):
            return x.sum(), x.sum()

    heads = CascadeROIHeads(
        box_in_features=["p3"],
        box_pooler=Ones(),
        box_heads=[torch.nn.Identity()] * 4,
        box_predictors=[Sum()] * 4,
        proposal_matchers=[Matcher([0.5], [0, 1])] * 4,
        num_classes=K,
        batch_size_per_image=4,
        positive_fraction=0.5,
    )
    features = torch.ones(2, requires_grad=True)
    logits, _ = heads._run_stage([features], [proposals()], 0)
    logits.backward()
    assert logits == 2
    assert features.grad.tolist() == [0.25, 0.25]


def test_empty_boxes_are_trained_on_no_further(cfg):
    heads = build_roi_heads(cfg, SHAPES)
    boxes = [torch.tensor([[-9.0, 0, -1, 9], [-9, 0, 9, 99]])]
    (refined,) = heads.train()._refined_proposals(boxes, [proposals([0, 0, 1, 1], [0, 0, 1, 1])])
    assert refined.proposal_boxes.tensor.tolist() == [[0, 0, 9, 64]]
    (refined,) = heads.eval()._refined_proposals(boxes, [proposals([0, 0, 1, 1], [0, 0, 1, 1])])
    assert len(refined) == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "CLS_AGNOSTIC_BBOX_REG: True"),
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6), "IOUS has 2 stages and BBOX_REG_WEIGHTS has 3"),
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.4], r"IOU_THRESHOLDS is \[0.4\] and the first"),
        ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "TRAIN_ON_PRED_BOXES: False"),
    ],
)
def test_configs_that_no_cascade_can_follow_are_refused(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=message):
        build_roi_heads(cfg, SHAPES)


def test_training_needs_targets(cfg):
    with pytest.raises(ValueError, match="needs targets"):
        build_roi_heads(cfg, SHAPES).train()(None, {}, [proposals()])


def test_parts_must_be_as_many_as_stages():
    with pytest.raises(ValueError, match="got 2, 1 and 1"):
        CascadeROIHeads(
            box_in_features=["p3"],
            box_pooler=None,
            box_heads=[torch.nn.Identity()] * 2,
            box_predictors=[torch.nn.Identity()],
            proposal_matchers=[Matcher([0.5], [0, 1])],
        )
