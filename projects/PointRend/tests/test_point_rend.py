import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.projects.point_rend import PointRendSemSegHead, StandardPointHead, add_config, add_pointrend_config
from detlib.projects.point_rend.mask_head import ConvFCHead, PointRendMaskHead
from detlib.projects.point_rend.point_features import generate_regular_grid_point_coords
from detlib.projects.point_rend.point_head import roi_mask_point_loss
from detlib.projects.point_rend.point_selection import Subdivision
from detlib.structures import BitMasks, Boxes, Instances, PolygonMasks
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

CONFIGS = Path(__file__).parents[1] / "configs"
IGNORE = 255

# What makes the published configs small enough for a test.
SMALL = {
    "DEVICE": "cpu",
    "WEIGHTS": "",
    "BACKBONE": {"FREEZE_AT": 0},
    "RESNETS": {"DEPTH": 18, "NORM": "BN", "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8},
    "FPN": {"OUT_CHANNELS": 16},
    "RPN": {"POST_NMS_TOPK_TRAIN": 20, "POST_NMS_TOPK_TEST": 20},
    "ROI_HEADS": {"NUM_CLASSES": 3, "BATCH_SIZE_PER_IMAGE": 16},
    "ROI_BOX_HEAD": {"FC_DIM": 16},
    "ROI_MASK_HEAD": {"CONV_DIM": 8, "FC_DIM": 16},
    "SEM_SEG_HEAD": {"NUM_CLASSES": 3, "CONVS_DIM": 32},
    "POINT_HEAD": {
        "NUM_CLASSES": 3,
        "FC_DIM": 8,
        "TRAIN_NUM_POINTS": 20,
        "SUBDIVISION_STEPS": 2,
        "SUBDIVISION_NUM_POINTS": 50,
    },
}


def config(name, *overrides):
    cfg = get_cfg()
    cfg.merge_from_file(CONFIGS / f"{name}.yaml")
    cfg.merge_from_other_cfg({"MODEL": SMALL})
    cfg.merge_from_list(overrides)
    return cfg


@pytest.fixture
def rcnn():
    torch.manual_seed(0)
    return build_model(config("pointrend_rcnn_R_50_FPN_1x_coco"))


@pytest.fixture
def semantic():
    torch.manual_seed(0)
    return build_model(config("pointrend_semantic_R_101_FPN_1x_cityscapes"))


def instance_sample(height, width, boxes=(), polygons=False):
    """An image whose objects are squares from (low, low) to (high, high)."""
    masks = PolygonMasks([[[low, low, high, low, high, high, low, high]] for low, high in boxes])
    instances = Instances(
        (height, width),
        gt_boxes=Boxes(torch.tensor([[low, low, high, high] for low, high in boxes]).float().reshape(-1, 4)),
        gt_classes=torch.arange(len(boxes)) % 3,
        gt_masks=masks if polygons else BitMasks.from_polygon_masks(masks, height, width),
    )
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "instances": instances}


def semantic_sample(height, width, label=1):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "sem_seg": torch.full((height, width), label), "height": height, "width": width}


def assert_trains_every_parameter(model, losses):
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert {name for name, grad in grads.items() if grad is None} == set()
    assert all(grad.isfinite().all() for grad in grads.values())


# Heads


def test_point_loss_is_the_mean_over_points_of_the_true_class():
    logits = torch.zeros(2, 3, 4)
    logits[0, 0] = 50  # another class
    instances = [Instances((4, 4), gt_classes=torch.tensor([c])) for c in (1, 2)]
    with EventStorage() as storage:
        loss = roi_mask_point_loss(logits, instances, torch.zeros(2, 4))
        assert storage.latest()["point/accuracy"][0] == 1
    assert loss.item() == pytest.approx(math.log(2))
    logits[0, 1] = -50
    assert roi_mask_point_loss(logits, instances, torch.zeros(2, 4)).item() == pytest.approx(math.log(2) / 2)


def test_point_head_sees_the_coarse_prediction_in_every_layer_or_in_the_first():
    options = {"num_classes": 2, "fc_dim": 5, "num_fc": 2}
    every = StandardPointHead(ShapeSpec(channels=3), cls_agnostic_mask=False, coarse_pred_each_layer=True, **options)
    first = StandardPointHead(ShapeSpec(channels=3), cls_agnostic_mask=True, coarse_pred_each_layer=False, **options)
    assert [x.in_channels for x in (every.fc1, every.fc2, every.predictor)] == [5, 7, 7]
    assert [x.in_channels for x in (first.fc1, first.fc2, first.predictor)] == [5, 5, 5]
    for count in (4, 0):
        assert every(torch.rand(count, 3, 6), torch.rand(count, 2, 6)).shape == (count, 2, 6)
        assert first(torch.rand(count, 3, 6), torch.rand(count, 2, 6)).shape == (count, 1, 6)


def test_coarse_head_reduces_channels_only_if_there_are_more():
    narrow = ConvFCHead(ShapeSpec(4, 6, 6), conv_dim=8, fc_dims=[5], output_shape=(2, 3, 3))
    assert [name for name, _ in narrow.named_children()] == ["reduce_spatial_dim_conv", "fc1", "prediction"]
    wide = ConvFCHead(ShapeSpec(9, 6, 6), conv_dim=8, fc_dims=[5], output_shape=(2, 3, 3))
    assert wide.reduce_channel_dim_conv.kernel_size == (1, 1) and wide.fc1.in_features == 8 * 3 * 3
    assert wide(torch.rand(4, 9, 6, 6)).shape == (4, 2, 3, 3) and wide(torch.rand(0, 9, 6, 6)).shape == (0, 2, 3, 3)


def test_mask_head_has_the_names_that_checkpoints_use(rcnn):
    names = [name for name in rcnn.state_dict() if "mask_head" in name and name.endswith("weight")]
    coarse = ["reduce_channel_dim_conv", "reduce_spatial_dim_conv", "fc1", "fc2", "prediction"]
    points = ["fc1", "fc2", "fc3", "predictor"]
    assert names == [
        *(f"roi_heads.mask_head.coarse_head.{name}.weight" for name in coarse),
        *(f"roi_heads.mask_head.point_head.{name}.weight" for name in points),
    ]


def test_weights_with_older_names_are_loaded(rcnn):
    state = rcnn.state_dict()
    old = {
        name.replace("mask_head.coarse_head.fc", "mask_coarse_head.coarse_mask_fc")
        .replace("mask_head.coarse_head.", "mask_coarse_head.")
        .replace("mask_head.point_head.", "mask_point_head."): value
        for name, value in state.items()
    }
    assert "roi_heads.mask_coarse_head.coarse_mask_fc2.bias" in old and "roi_heads.mask_point_head.fc3.bias" in old
    rcnn.load_state_dict(old)


# Models


@pytest.mark.parametrize("polygons", [False, True])
def test_instance_model_has_finite_losses_that_reach_every_parameter(rcnn, polygons):
    losses = rcnn(
        [instance_sample(64, 96, [(5, 40), (20, 60)], polygons), instance_sample(80, 64, [(8, 50)], polygons)]
    )
    assert {"loss_mask", "loss_mask_point"} < set(losses)
    assert losses["loss_mask_point"].item() == pytest.approx(math.log(2), abs=0.2)
    assert_trains_every_parameter(rcnn, losses)


def test_images_without_objects_have_zero_mask_losses_that_reach_every_parameter(rcnn):
    losses = rcnn([instance_sample(64, 64), instance_sample(64, 96)])
    assert losses["loss_mask"] == 0 and losses["loss_mask_point"] == 0
    assert_trains_every_parameter(rcnn, losses)


def test_detections_get_refined_masks_and_images_without_any_get_none(rcnn):
    rcnn.eval()
    features = {name: torch.rand(2, 16, 64 // s, 64 // s) for name, s in [("p2", 4), ("p3", 8), ("p4", 16)]}
    found = Instances((64, 64), pred_boxes=Boxes(torch.tensor([[0.0, 0, 30, 40]])), pred_classes=torch.tensor([2]))
    none = Instances((60, 50), pred_boxes=Boxes(torch.zeros(0, 4)), pred_classes=torch.zeros(0, dtype=torch.int64))
    results = rcnn.roi_heads.mask_head(features, [found, none])
    assert [x.pred_masks.shape for x in results] == [(1, 1, 28, 28), (0, 1, 28, 28)]
    assert results[0].pred_masks.min() > 0 and results[0].pred_masks.max() < 1
    results = rcnn.roi_heads.mask_head(features, [none, none])
    assert [x.pred_masks.shape for x in results] == [(0, 1, 28, 28)] * 2


def test_instance_model_predicts_masks_of_the_image_and_nothing_above_a_high_threshold():
    model = build_model(config("Base-PointRend-RCNN-FPN", "MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.0")).eval()
    samples = [{**instance_sample(64, 96), "height": 128, "width": 192}, instance_sample(80, 64)]
    with torch.no_grad():
        first, second = (x["instances"].pred_masks for x in model(samples))
        assert first.shape[1:] == (128, 192) and second.shape[1:] == (80, 64) and len(first) > 0
        model.roi_heads.box_predictor.test_score_thresh = 2.0
        assert model(samples)[0]["instances"].pred_masks.shape == (0, 128, 192)


def test_points_that_know_the_object_sharpen_its_mask(rcnn):
    """The object is a disc; the coarse head knows its 7 x 7 cells, the point head every point."""
    head = rcnn.eval().roi_heads.mask_head

    def disc(points):
        return 5 * (0.35 - (points - 0.5).norm(dim=-1)).sign()

    coarse = disc(generate_regular_grid_point_coords(1, 7, "cpu")).view(1, 1, 7, 7).expand(1, 3, 7, 7)
    head.coarse_head.forward = lambda regions: coarse
    head._predict_points = lambda features, boxes, logits, points: disc(points)[:, None].expand(-1, 3, -1)
    head.subdivision = Subdivision(2, 400)
    whole = Instances((64, 64), pred_boxes=Boxes(torch.tensor([[0.0, 0, 64, 64]])), pred_classes=torch.tensor([1]))
    mask = head({"p2": torch.zeros(1, 16, 16, 16)}, [whole])[0].pred_masks[0, 0] > 0.5
    truth = disc(generate_regular_grid_point_coords(1, 28, "cpu")).view(28, 28) > 0
    assert torch.equal(mask, truth)
    upsampled = F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)[0, 0] > 0
    assert not torch.equal(upsampled, truth)


def test_masks_of_points_may_serve_all_classes_and_points_may_be_off():
    agnostic = build_model(config("Base-PointRend-RCNN-FPN", "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK=True"))
    losses = agnostic([instance_sample(64, 64, [(5, 40)])])
    assert losses["loss_mask_point"] > 0 and agnostic.roi_heads.mask_head.point_head.predictor.out_channels == 1
    coarse = build_model(config("Base-PointRend-RCNN-FPN", "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON=False"))
    assert "loss_mask_point" not in coarse([instance_sample(64, 64, [(5, 40)])])
    detections = Instances((64, 64), pred_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9]])), pred_classes=torch.tensor([0]))
    features = {"p2": torch.rand(1, 16, 16, 16)}
    assert coarse.eval().roi_heads.mask_head(features, [detections])[0].pred_masks.shape == (1, 1, 7, 7)
    assert agnostic.eval().roi_heads.mask_head(features, [detections])[0].pred_masks.shape == (1, 1, 28, 28)


def test_semantic_model_has_finite_losses_that_reach_every_parameter(semantic):
    losses = semantic([semantic_sample(64, 96), semantic_sample(96, 64)])
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_point"}
    assert_trains_every_parameter(semantic, losses)


def test_semantic_image_without_labels_has_zero_loss(semantic):
    losses = semantic([semantic_sample(64, 64, IGNORE)])
    assert losses["loss_sem_seg_point"] == 0
    assert_trains_every_parameter(semantic, losses)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_semantic_predictions_have_the_size_of_the_image_for_any_number_of_steps(steps):
    name = "pointrend_semantic_R_101_FPN_1x_cityscapes"
    model = build_model(config(name, f"MODEL.POINT_HEAD.SUBDIVISION_STEPS={steps}")).eval()
    with torch.no_grad():
        first, second = (x["sem_seg"] for x in model([semantic_sample(64, 96), semantic_sample(70, 50)]))
    assert first.shape == (3, 64, 96) and second.shape == (3, 70, 50)


def test_semantic_points_are_refined_at_pixels(semantic):
    head = semantic.eval().sem_seg_head
    assert isinstance(head, PointRendSemSegHead)
    head._predict_points = lambda features, coarse, points: torch.full((1, 3, points.shape[1]), 99.0)
    head.coarse_sem_seg_head.layers = lambda features: torch.randn(1, 3, 16, 16)
    logits, losses = head({})
    assert logits.shape == (1, 3, 64, 64) and losses == {}
    assert (logits == 99).all(dim=1).sum() >= 50


# Config


def test_every_config_is_read_by_a_plain_config():
    for path in sorted(CONFIGS.glob("*.yaml")):
        cfg = get_cfg()
        cfg.merge_from_file(path)
        assert cfg.MODEL.POINT_HEAD.NAME == "StandardPointHead", path
        with torch.device("meta"):
            cfg.merge_from_list(["MODEL.DEVICE=meta", "MODEL.WEIGHTS="])
            build_model(cfg)


def test_options_are_added_by_hand_as_well():
    cfg = get_cfg()
    add_pointrend_config(cfg)
    assert add_config is add_pointrend_config
    assert cfg.MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS == 784 and cfg.MODEL.ROI_MASK_HEAD.IN_FEATURES == ("p2",)


def test_numbers_of_classes_must_agree():
    for name in ("pointrend_rcnn_R_50_FPN_1x_coco", "pointrend_semantic_R_101_FPN_1x_cityscapes"):
        with pytest.raises(ConfigError, match=r"MODEL.POINT_HEAD.NUM_CLASSES is 7 and .* is 3; set both"):
            build_model(config(name, "MODEL.POINT_HEAD.NUM_CLASSES=7"))


def test_pooled_regions_are_refused_with_the_heads_that_do_not_pool():
    with pytest.raises(ConfigError, match=r"StandardROIHeads pools regions.*PointRendROIHeads"):
        build_model(config("Base-PointRend-RCNN-FPN", "MODEL.ROI_HEADS.NAME=StandardROIHeads"))
    assert PointRendMaskHead.__name__ == config("Base-PointRend-RCNN-FPN").MODEL.ROI_MASK_HEAD.NAME


def test_subdivision_beyond_pixels_is_refused():
    with pytest.raises(ConfigError, match=r"SUBDIVISION_STEPS is 5.*stride .* 4.*set it to 2 or less"):
        build_model(config("pointrend_semantic_R_101_FPN_1x_cityscapes", "MODEL.POINT_HEAD.SUBDIVISION_STEPS=5"))


def test_maps_that_the_backbone_lacks_are_named():
    with pytest.raises(ConfigError, match=r"MODEL.POINT_HEAD.IN_FEATURES is \['p9'\], but the backbone gives p2"):
        build_model(config("Base-PointRend-RCNN-FPN", "MODEL.POINT_HEAD.IN_FEATURES=['p9']"))
