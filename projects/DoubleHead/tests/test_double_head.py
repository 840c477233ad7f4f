"""Double-Head R-CNN: the two branches, what each of them gets, and the lines of a config that ask for them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.modeling.box_regression import Box2BoxTransform
from detlib.projects.double_head import DoubleConvFCBBoxHead, DoubleHeadOutputLayers, add_config
from detlib.structures import Boxes, Instances
from detlib.utils.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
COCO = CONFIGS / "double_head_rcnn_R_50_FPN_1x.yaml"
FASTER_RCNN = Path(__file__).parents[3] / "configs/Base-RCNN-FPN.yaml"

# What the config of the paper's model says about the head, over a small Faster R-CNN.
TEN_LINES = """
_BASE_: {base}
CUSTOM_IMPORTS: {{IMPORTS: ["detlib.projects.double_head"]}}
MODEL:
  ROI_HEADS: {{NAME: DoubleHeadRoIHeads, REG_ROI_SCALE_FACTOR: 1.5}}
  ROI_BOX_HEAD:
    NAME: DoubleConvFCBBoxHead
    NUM_CONV: 1
    NUM_FC: 2
    LOSS_CLS: {{_DELETE_: true, NAME: CrossEntropyLoss, LOSS_WEIGHT: 2}}
    LOSS_BBOX: {{_DELETE_: true, NAME: SmoothL1Loss, BETA: 1, LOSS_WEIGHT: 2}}
"""

SMALL = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.NORM": "BN",
}


def read(path, **changes):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.merge_from_list([x for pair in changes.items() for x in pair])
    return cfg


def small_cfg(**changes):
    return read(CONFIGS / "double_head_rcnn_r18_bccd.yaml", **{**SMALL, **changes})


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def coco_head_and_predictor():
    cfg = read(COCO)
    with torch.device("meta"):
        head = DoubleConvFCBBoxHead(cfg, ShapeSpec(channels=256, height=7, width=7))
        return head, DoubleHeadOutputLayers(cfg, head.output_shape)


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def tiny_head(**changes):
    torch.manual_seed(0)
    options = {"num_convs": 1, "num_fcs": 1, "conv_dim": 8, "fc_dim": 6, "norm": "BN", **changes}
    return DoubleConvFCBBoxHead(ShapeSpec(channels=4, height=3, width=3), **options)


def output_layers(num_classes=1, **changes):
    options = {"box2box_transform": Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), "num_classes": num_classes, **changes}
    return DoubleHeadOutputLayers((ShapeSpec(channels=6), ShapeSpec(channels=8)), **options)


def sample(height, width, boxes_xyxy=(), classes=()):
    boxes = Boxes(torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4))
    instances = Instances((height, width), gt_boxes=boxes, gt_classes=torch.tensor(classes, dtype=torch.int64))
    image = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances}


# The head


def test_parameters_of_the_published_head_and_output_layers():
    head, predictor = coco_head_and_predictor()
    assert count(head.convs[0]) == 1_118_720
    assert [count(block) for block in head.convs[1:]] == [1_117_184] * 4
    assert count(head.fcs) == 13_895_680
    assert count(predictor.cls_score) == 83_025
    assert count(predictor.bbox_pred) == 328_000
    assert count(head, predictor) == 19_894_161


def test_class_features_come_from_the_first_input_and_box_features_from_the_second():
    head = tiny_head().eval()
    x_cls, x_reg, other = torch.randn(3, 2, 4, 3, 3)
    for_class, for_box = head(x_cls, x_reg)
    assert for_class.shape == (2, 6) and for_box.shape == (2, 8)
    for_class_2, for_box_2 = head(x_cls, other)
    assert for_class_2.equal(for_class) and not for_box_2.equal(for_box)
    for_class_3, for_box_3 = head(other, x_reg)
    assert for_box_3.equal(for_box) and not for_class_3.equal(for_class)


def test_scores_do_not_depend_on_box_features_nor_boxes_on_class_features():
    predictor = output_layers()
    x_cls, x_reg = torch.randn(2, 6), torch.randn(2, 8)
    logits, deltas = predictor((x_cls, x_reg))
    assert logits.shape == (2, 2) and deltas.shape == (2, 4)
    assert predictor((x_cls, x_reg + 1))[0].equal(logits)
    assert predictor((x_cls + 1, x_reg))[1].equal(deltas)


def test_box_features_are_the_mean_over_the_region():
    head = tiny_head(conv_dim=8).eval()
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(head(x, x)[1], nn.AdaptiveAvgPool2d(1)(head.convs(x)).flatten(1))


def test_residual_block_adds_its_projection():
    block = tiny_head(norm="").convs[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(block(x), block.shortcut(x).relu())


@pytest.mark.parametrize(("norm", "kind"), [("BN", nn.BatchNorm2d), ("LN", None), ("", None)])
def test_norm_is_passed_on_to_every_convolution(norm, kind):
    convs = [m for m in tiny_head(norm=norm).convs.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 3 + 3  # the residual block and one bottleneck
    found = {type(conv.norm) for conv in convs}
    assert len(found) == 1
    assert kind is None or found == {kind}
    assert (found == {type(None)}) == (norm == "")


@pytest.mark.parametrize("missing", ["num_convs", "num_fcs"])
def test_a_head_without_one_of_its_branches_is_refused(missing):
    with pytest.raises(AssertionError, match=r"set MODEL\.ROI_BOX_HEAD\.NUM_CONV and NUM_FC above 0") as caught:
        tiny_head(**{missing: 0})
    assert isinstance(caught.value, ConfigError)  # The tools print it as one line.


def test_initial_weights_of_the_output_layers():
    torch.manual_seed(0)
    shapes = (ShapeSpec(channels=1000), ShapeSpec(channels=1000))
    predictor = DoubleHeadOutputLayers(shapes, box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)), num_classes=20)
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert predictor.cls_score.bias.abs().sum() == predictor.bbox_pred.bias.abs().sum() == 0


def test_one_box_for_all_classes_has_four_numbers():
    _, deltas = output_layers(num_classes=5, cls_agnostic_bbox_reg=True)((torch.randn(2, 6), torch.randn(2, 8)))
    assert deltas.shape == (2, 4)


# The losses


def coco_predictor_for(num_classes):
    cfg = read(COCO, **{"MODEL.ROI_HEADS.NUM_CLASSES": num_classes})
    return DoubleHeadOutputLayers(cfg, (ShapeSpec(channels=6), ShapeSpec(channels=8)))


def four_regions(gt_classes):
    boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 4))
    gt_boxes = Boxes(torch.tensor([[1.0, 0.0, 11.0, 10.0]] * 4))
    return Instances((20, 20), proposal_boxes=boxes, gt_boxes=gt_boxes, gt_classes=torch.tensor(gt_classes))


def test_losses_have_weight_2_and_are_divided_by_all_regions():
    predictions = (torch.zeros(4, 2), torch.zeros(4, 4))
    losses = coco_predictor_for(1).losses(predictions, [four_regions([0, 1, 1, 1])])
    assert losses["loss_cls"].item() == pytest.approx(2 * 0.693147)  # log 2
    # dx = 1 / 10, times the weight of 10, is 1: smooth L1 of beta 1 gives 0.5 for the one object of four regions.
    assert losses["loss_box_reg"].item() == pytest.approx(2 * 0.5 / 4)


def test_box_loss_is_of_the_own_class_only():
    deltas = torch.zeros(4, 3 * 4, requires_grad=True)
    losses = coco_predictor_for(3).losses((torch.zeros(4, 4), deltas), [four_regions([2, 3, 3, 3])])
    losses["loss_box_reg"].backward()
    assert deltas.grad.nonzero().tolist() == [[0, 8]]  # dx of class 2


def test_without_objects_the_box_loss_is_zero_with_a_gradient():
    deltas = torch.ones(4, 4, requires_grad=True)
    losses = coco_predictor_for(1).losses((torch.zeros(4, 2), deltas), [four_regions([1, 1, 1, 1])])
    losses["loss_box_reg"].backward()
    assert losses["loss_box_reg"] == 0 and deltas.grad.abs().sum() == 0


# The two poolings


class Recorder(nn.Module):
    """A box head that keeps what it gets."""

    def forward(self, x_cls, x_reg):
        self.seen = x_cls, x_reg
        return x_cls, x_reg


def pooled(factor, *boxes):
    """What the two branches get of a random feature map."""
    roi_heads = build(small_cfg(**{"MODEL.ROI_HEADS.REG_ROI_SCALE_FACTOR": factor})).roi_heads
    roi_heads.box_head = Recorder()
    maps = [torch.randn(1, 16, 64 // stride, 64 // stride) for stride in (1, 2)]
    roi_heads._box_features(maps, [Boxes(torch.tensor(boxes))])
    return roi_heads, maps, roi_heads.box_head.seen


def test_box_branch_sees_the_proposal_enlarged_about_its_centre():
    roi_heads, maps, (x_cls, x_reg) = pooled(1.3, [10.0, 20.0, 50.0, 60.0])
    torch.testing.assert_close(x_cls, roi_heads.box_pooler(maps, [Boxes(torch.tensor([[10.0, 20.0, 50.0, 60.0]]))]))
    torch.testing.assert_close(x_reg, roi_heads.box_pooler(maps, [Boxes(torch.tensor([[4.0, 14.0, 56.0, 66.0]]))]))


def test_factor_1_gives_both_branches_the_same_features():
    _, _, (x_cls, x_reg) = pooled(1.0, [10.0, 20.0, 50.0, 60.0], [0.0, 0.0, 9.0, 5.0])
    torch.testing.assert_close(x_cls, x_reg)


# The detector


def test_one_step_gives_the_losses_of_faster_rcnn_and_gradients_in_both_branches():
    model = build(small_cfg())
    losses = model([sample(64, 64, [[8, 8, 40, 40]], [1]), sample(64, 96)])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    heads = model.roi_heads
    for branch in (heads.box_head.convs, heads.box_head.fcs, heads.box_predictor):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in branch.parameters())
        assert any(p.grad.abs().sum() > 0 for p in branch.parameters())


def test_class_loss_teaches_only_the_fully_connected_branch():
    model = build(small_cfg())
    model([sample(64, 64, [[8, 8, 40, 40]], [1])])["loss_cls"].backward()
    assert all(p.grad is None for p in model.roi_heads.box_head.convs.parameters())
    assert all(p.grad is not None for p in model.roi_heads.box_head.fcs.parameters())


def test_images_without_objects_give_zero_box_loss():
    losses = build(small_cfg())([sample(64, 64), sample(64, 96)])
    assert losses["loss_box_reg"] == 0 and losses["loss_box_reg"].requires_grad


def no_regions(prefix, **fields):
    return Instances((64, 64), **{f"{prefix}_boxes": Boxes(torch.zeros(0, 4))}, **fields)


def test_no_proposals_give_no_detections():
    heads = build(small_cfg()).roi_heads.eval()
    features = {"p2": torch.randn(1, 16, 16, 16), "p3": torch.randn(1, 16, 8, 8)}
    (result,), _ = heads(None, features, [no_regions("proposal")])
    assert len(result) == 0 and result.pred_boxes.tensor.shape == (0, 4)


def test_no_proposals_and_no_objects_give_zero_losses_with_a_gradient():
    heads = build(small_cfg()).roi_heads
    features = {"p2": torch.randn(1, 16, 16, 16), "p3": torch.randn(1, 16, 8, 8)}
    proposals = [no_regions("proposal", objectness_logits=torch.zeros(0))]
    _, losses = heads(None, features, proposals, [no_regions("gt", gt_classes=torch.zeros(0, dtype=torch.int64))])
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_cls": 0, "loss_box_reg": 0}
    assert all(loss.requires_grad for loss in losses.values())


def test_detections_of_an_image_have_boxes_scores_and_classes():
    cfg = small_cfg(**{"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0})
    (output,) = build(cfg).eval()([sample(64, 96)])
    assert set(output["instances"].get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    assert len(output["instances"]) > 0


def test_a_box_head_of_one_input_is_refused():
    with pytest.raises(ConfigError, match="FastRCNNConvFCHead takes one; set MODEL"):
        build(small_cfg(**{"MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead"}))


# The configs


def test_ten_lines_turn_faster_rcnn_into_double_head(tmp_path):
    base = CONFIGS / "faster_rcnn_r18_bccd.yaml"
    (tmp_path / "double_head.yaml").write_text(TEN_LINES.format(base=base))
    model = build(read(tmp_path / "double_head.yaml", **SMALL))
    assert model.roi_heads.reg_roi_scale_factor == 1.5
    names, faster = set(model.state_dict()), set(build(read(base, **SMALL)).state_dict())
    assert {name.split(".")[1] for name in names ^ faster} == {"box_head"}


def test_config_for_coco_differs_from_faster_rcnn_in_the_head_alone():
    def flat(node, prefix=""):
        for key, value in node.items():
            yield from flat(value, f"{prefix}{key}.") if hasattr(value, "items") else [(prefix + key, value)]

    double, faster = dict(flat(read(COCO))), dict(flat(read(FASTER_RCNN)))
    changed = {key for key in double if double[key] != faster.get(key)} - {"CUSTOM_IMPORTS.IMPORTS", "MODEL.WEIGHTS"}
    assert all(key.startswith(("MODEL.ROI_HEADS.", "MODEL.ROI_BOX_HEAD.")) for key in changed)
    assert double["MODEL.ROI_HEADS.REG_ROI_SCALE_FACTOR"] == 1.3


def test_scale_factor_has_the_default_of_the_paper():
    cfg = get_cfg()
    add_config(cfg)
    assert cfg.MODEL.ROI_HEADS.REG_ROI_SCALE_FACTOR == 1.3


def test_config_for_coco_builds():
    with torch.device("meta"):
        model = build_model(read(COCO, **{"MODEL.DEVICE": "meta"}))
    roi_heads = model.roi_heads
    assert count(roi_heads) == 19_894_161
    assert roi_heads.box_predictor.box2box_transform.weights == (10.0, 10.0, 5.0, 5.0)
