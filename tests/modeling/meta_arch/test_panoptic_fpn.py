import pytest
import torch

from detlib.modeling import build_model
from detlib.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detlib.structures import BitMasks, Boxes, Instances
from detlib.utils.errors import DatasetError


@pytest.fixture
def cfg(tiny_rcnn_cfg, tiny_semantic_cfg):
    """Both fixtures change the one ``tiny_cfg``."""
    tiny_rcnn_cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    tiny_rcnn_cfg.MODEL.MASK_ON = True
    return tiny_rcnn_cfg


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.fixture
def labelled(sample):
    """A sample with the masks of its boxes, 0 where there are things and 2 elsewhere."""

    def make(height, width, boxes_xyxy=(), classes=()):
        made = sample(height, width, boxes_xyxy, classes)
        masks = torch.zeros(len(classes), height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes_xyxy):
            mask[y0:y1, x0:x1] = True
        made["instances"].gt_masks = BitMasks(masks)
        made["sem_seg"] = torch.where(masks.any(dim=0), 0, 2)
        return made

    return make


def test_losses_are_those_of_mask_rcnn_and_one_more(model, labelled):
    losses = model([labelled(64, 96, [[8, 8, 40, 40]], [1]), labelled(96, 64)])
    expected = {"loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
    assert set(losses) == expected
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_images_without_objects(model, labelled):
    losses = model([labelled(64, 64), labelled(64, 64)])
    assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_loc"] == 0
    assert all(x.isfinite() for x in losses.values())
    sum(losses.values()).backward()


def test_instance_loss_weight_is_a_factor_of_the_losses_of_the_roi_heads(cfg, labelled):
    losses = []
    for weight in (1.0, 2.0):
        cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT = weight
        torch.manual_seed(0)
        losses.append(build_model(cfg)([labelled(64, 64, [[8, 8, 40, 40]], [1])]))
    for name in losses[0]:
        factor = 2 if name in ("loss_cls", "loss_box_reg", "loss_mask") else 1
        assert losses[1][name].item() == pytest.approx(factor * losses[0][name].item()), name


def test_sample_without_label_map_is_named(model, labelled):
    sample = labelled(64, 64)
    del sample["sem_seg"]
    with pytest.raises(DatasetError, match=r"needs 'sem_seg', but 'b\.jpg'"):
        model([{**sample, "file_name": "b.jpg"}])


def test_predictions_have_three_parts_in_the_size_that_is_asked_for(model):
    model.eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.zeros(3, 64, 96), "height": 32, "width": 50}])
    assert set(output) == {"instances", "sem_seg", "panoptic_seg"}
    assert output["instances"].image_size == (32, 50)
    assert output["sem_seg"].shape == (4, 32, 50)
    assert output["panoptic_seg"][0].shape == (32, 50)


def test_predictions_without_postprocessing(model):
    model.eval()
    with torch.no_grad():
        (instances,), logits = model.inference([{"image": torch.zeros(3, 60, 90)}], do_postprocess=False)
    assert instances.image_size == (60, 90)
    assert logits.shape == (1, 4, 64, 96)  # padded


def test_joining_can_be_turned_off(cfg):
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = False
    with torch.no_grad():
        (output,) = build_model(cfg).eval()([{"image": torch.zeros(3, 64, 64)}])
    assert set(output) == {"instances", "sem_seg"}


# One row of ten pixels.


def combine(spans, scores, classes, semantic, overlap=0.5, area=2, score=0.5):
    masks = torch.zeros(len(spans), 1, 10, dtype=torch.bool)
    for mask, (start, end) in zip(masks, spans):
        mask[0, start:end] = True
    instances = Instances((1, 10), pred_boxes=Boxes(torch.zeros(len(spans), 4)))
    instances.pred_masks, instances.scores = masks, torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    panoptic, segments = combine_semantic_and_instance_outputs(
        instances, torch.tensor([semantic]), overlap, area, score
    )
    assert panoptic.dtype == torch.int32
    return panoptic[0].tolist(), segments


def test_better_instances_take_pixels_first_and_stuff_the_rest():
    panoptic, segments = combine([(3, 6), (0, 4)], [0.6, 0.75], [7, 8], [1] * 6 + [2] * 4)
    assert panoptic == [1, 1, 1, 1, 2, 2, 3, 3, 3, 3]
    assert segments == [
        {"id": 1, "isthing": True, "score": 0.75, "category_id": 8, "instance_id": 1},
        {"id": 2, "isthing": True, "score": pytest.approx(0.6), "category_id": 7, "instance_id": 0},
        {"id": 3, "isthing": False, "category_id": 2, "area": 4},
    ]


def test_instance_of_which_too_much_is_taken_is_left_out():
    """Two of three pixels are taken by the first; then two of four, which is just allowed."""
    panoptic, segments = combine([(0, 4), (2, 5), (2, 6)], [0.9, 0.8, 0.7], [0, 1, 2], [0] * 10)
    assert panoptic == [1, 1, 1, 1, 2, 2, 0, 0, 0, 0]
    assert [segment["category_id"] for segment in segments] == [0, 2]


def test_instances_with_a_low_score_or_an_empty_mask_are_left_out():
    panoptic, segments = combine([(0, 4), (5, 5)], [0.4, 0.9], [0, 1], [0] * 10)
    assert panoptic == [0] * 10
    assert segments == []


def test_small_stuff_and_the_class_of_things_stay_unlabelled():
    panoptic, segments = combine([], [], [], [0, 0, 1, 2, 2, 2, 3, 3, 0, 0])
    assert panoptic == [0, 0, 0, 1, 1, 1, 2, 2, 0, 0]
    assert [(s["category_id"], s["area"]) for s in segments] == [(2, 3), (3, 2)]


def test_stuff_that_instances_cover_is_no_segment_even_without_a_limit():
    panoptic, segments = combine([(0, 10)], [0.9], [0], [1] * 10, area=0)
    assert panoptic == [1] * 10
    assert len(segments) == 1


def test_images_are_padded_to_the_coarsest_map_of_the_semantic_head(cfg):
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p3", "p6"]
    assert build_model(cfg).preprocessor.size_divisibility == 64
