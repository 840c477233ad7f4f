import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from detlib.data import MetadataCatalog
from detlib.evaluation.test_time_augmentation import (
    DatasetMapperTTA,
    GeneralizedRCNNWithTTA,
    SemanticSegmentorWithTTA,
    with_test_time_augmentation,
)
from detlib.modeling import GeneralizedRCNN, build_model
from detlib.structures import Boxes, Instances
from detlib.utils.errors import ConfigError

BOX = [8.0, 12, 32, 36]  # x0, y0, x1, y1 of the object in the image
HEIGHT, WIDTH = 48, 64


@pytest.fixture
def scene():
    """A bright square whose left half is marked in the second channel."""
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    image[0, 12:36, 8:32] = 200
    image[1, 12:36, 8:20] = 200
    return {"image": image, "height": HEIGHT, "width": WIDTH, "image_id": 7}


class Heads(nn.Module):
    def __init__(self, mask_on, keypoint_on):
        super().__init__()
        self.mask_on, self.keypoint_on = mask_on, keypoint_on
        self.keypoint_head = nn.Module()
        self.keypoint_head.num_keypoints = 2


class FindsTheSquare(GeneralizedRCNN):
    """Its box is that of the bright pixels, its mask what is marked, its keypoints the middle of either half."""

    def __init__(self, mask_on=False, keypoint_on=False):
        nn.Module.__init__(self)
        self.roi_heads = Heads(mask_on, keypoint_on)
        self.proposal_generator = nn.Identity()
        self.batch_sizes = []

    def inference(self, batched_inputs, detected_instances=None, do_postprocess=True):
        assert not do_postprocess
        self.batch_sizes.append(len(batched_inputs))
        if detected_instances is None:
            assert not self.roi_heads.mask_on and not self.roi_heads.keypoint_on
            return [self.find(sample["image"]) for sample in batched_inputs]
        return [self.describe(*pair) for pair in zip(batched_inputs, detected_instances)]

    def find(self, image):
        size = image.shape[1:]
        y, x = (image[0] > 100).nonzero(as_tuple=True)
        if len(x) == 0:
            boxes = Boxes(torch.zeros(0, 4))
            return Instances(size, pred_boxes=boxes, scores=torch.zeros(0), pred_classes=torch.zeros(0).long())
        boxes = Boxes(torch.tensor([[x.min(), y.min(), x.max() + 1.0, y.max() + 1]]))
        # The larger the image, the surer.
        return Instances(size, pred_boxes=boxes, scores=torch.tensor([size[1] / 1000]), pred_classes=torch.tensor([3]))

    def describe(self, sample, given):
        assert given.image_size == tuple(sample["image"].shape[1:]) and given.pred_classes.tolist() == [3]
        x0, y0, x1, y1 = given.pred_boxes.tensor[0].round().int().tolist()
        inside = sample["image"][None, 1:2, y0:y1, x0:x1].float() / 200
        given.pred_masks = F.interpolate(inside, (4, 4), mode="area").clamp(0, 1)
        given.pred_keypoint_heatmaps = torch.zeros(1, 2, 8, 8)
        given.pred_keypoint_heatmaps[0, 0, 5, 2] = given.pred_keypoint_heatmaps[0, 1, 5, 5] = 9  # left, right
        return given


@pytest.fixture
def cfg(tiny_rcnn_cfg):
    tiny_rcnn_cfg.TEST.AUG.MIN_SIZES = (48, 96)
    tiny_rcnn_cfg.TEST.AUG.MAX_SIZE = 120
    return tiny_rcnn_cfg


def test_mapper_makes_each_size_plain_and_flipped(cfg, scene):
    copies = DatasetMapperTTA(cfg)(scene)
    # 96 x 128 is more than 120 wide.
    assert [tuple(x["image"].shape) for x in copies] == [(3, 48, 64)] * 2 + [(3, 90, 120)] * 2
    assert torch.equal(copies[0]["image"], scene["image"])
    assert torch.equal(copies[1]["image"], scene["image"].flip(2))
    assert all(x["image_id"] == 7 and (x["height"], x["width"]) == (HEIGHT, WIDTH) for x in copies)
    assert "transforms" not in scene
    assert len(DatasetMapperTTA(min_sizes=[48], max_size=100, flip=False)(scene)) == 1


def test_transforms_lead_from_the_stored_image_to_the_copy_and_back(scene):
    scene["height"], scene["width"] = 2 * HEIGHT, 2 * WIDTH  # The image of the sample was halved before.
    _, flipped = DatasetMapperTTA(min_sizes=[96], max_size=1000, flip=True)(scene)
    box = [[16.0, 24, 64, 72]]
    assert flipped["transforms"].apply_box(box).tolist() == [[64, 24, 112, 72]]
    assert flipped["transforms"].inverse().apply_box([[64.0, 24, 112, 72]]).tolist() == box


def test_boxes_of_all_copies_are_merged_and_the_surest_stays(cfg, scene):
    model = FindsTheSquare()
    (output,) = GeneralizedRCNNWithTTA(cfg, model)([scene])
    instances = output["instances"]
    assert instances.image_size == (HEIGHT, WIDTH)
    assert instances.pred_boxes.tensor[0].tolist() == pytest.approx(BOX, abs=0.6)
    assert instances.scores.tolist() == pytest.approx([0.12])
    assert instances.pred_classes.tolist() == [3]
    assert model.batch_sizes == [3, 1]
    assert set(instances.get_fields()) == {"pred_boxes", "scores", "pred_classes"}


def test_masks_are_averaged_the_same_way_round(cfg, scene):
    model = FindsTheSquare(mask_on=True)
    (output,) = GeneralizedRCNNWithTTA(cfg, model, batch_size=4)([scene])
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    expected[12:36, 8:20] = True
    wrong = (output["instances"].pred_masks[0] != expected).sum() / expected.sum()
    assert wrong < 0.15
    assert model.roi_heads.mask_on  # It was off for the boxes only.
    assert model.batch_sizes == [4, 4]


def test_keypoints_exchange_left_and_right_when_flipped(cfg, scene):
    metadata = MetadataCatalog.get("__two_keypoints")
    metadata.set(keypoint_names=["left", "right"], keypoint_flip_map=[("left", "right")])
    cfg.DATASETS.TEST = ("__two_keypoints",)
    try:
        (output,) = GeneralizedRCNNWithTTA(cfg, FindsTheSquare(keypoint_on=True))([scene])
    finally:
        MetadataCatalog.remove("__two_keypoints")
    left, right = output["instances"].pred_keypoints[0, :, :2]  # In cells of 3 pixels
    assert left.tolist() == pytest.approx([8 + 2.5 * 3, 12 + 5.5 * 3], abs=1.5)
    assert right.tolist() == pytest.approx([8 + 5.5 * 3, 12 + 5.5 * 3], abs=1.5)


def test_an_image_without_objects_gives_empty_fields(cfg, scene):
    scene["image"] = torch.zeros_like(scene["image"])
    model = FindsTheSquare(mask_on=True, keypoint_on=True)
    (output,) = GeneralizedRCNNWithTTA(cfg, model)([scene])
    instances = output["instances"]
    assert len(instances) == 0
    assert instances.pred_masks.shape == (0, HEIGHT, WIDTH)
    assert instances.pred_keypoints.shape == (0, 2, 3)


def test_no_more_detections_than_wanted(cfg, scene):
    cfg.TEST.DETECTIONS_PER_IMAGE = 2
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 1.0
    (output,) = GeneralizedRCNNWithTTA(cfg, FindsTheSquare())([scene])
    assert output["instances"].scores.tolist() == pytest.approx([0.12, 0.12])
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    (output,) = GeneralizedRCNNWithTTA(cfg, FindsTheSquare())([scene])
    assert len(output["instances"]) > 2


def test_heads_are_switched_on_again_after_an_error(cfg, scene):
    model = FindsTheSquare(mask_on=True)
    model.find = lambda image: 1 / 0
    with pytest.raises(ZeroDivisionError):
        GeneralizedRCNNWithTTA(cfg, model)([scene])
    assert model.roi_heads.mask_on


def test_an_image_may_be_read_from_its_file(cfg, scene, tmp_path):
    cfg.INPUT.FORMAT = "RGB"
    Image.fromarray(scene["image"].permute(1, 2, 0).numpy()).save(tmp_path / "scene.png")
    (output,) = GeneralizedRCNNWithTTA(cfg, FindsTheSquare())([{"file_name": str(tmp_path / "scene.png")}])
    assert output["instances"].image_size == (HEIGHT, WIDTH)
    assert output["instances"].pred_boxes.tensor[0].tolist() == pytest.approx(BOX, abs=0.6)


def test_one_plain_copy_gives_what_the_model_gives(cfg, sample):
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = (64,), False
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    augmented = with_test_time_augmentation(cfg, model)
    for image in (sample(64, 64), {**sample(64, 80), "height": 128, "width": 160}):
        wanted, found = model([image])[0]["instances"], augmented([image])[0]["instances"]
        assert len(wanted) > 0
        torch.testing.assert_close(found.scores, wanted.scores.detach(), atol=1e-5, rtol=1e-4)
        if image["height"] == 64:  # Else the peaks are looked for in boxes of another size.
            torch.testing.assert_close(found.pred_keypoints[..., :2], wanted.pred_keypoints[..., :2])
        torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor.detach(), atol=1e-3, rtol=1e-4)
        assert (found.pred_masks != wanted.pred_masks).float().mean() < 0.01


class MarksLeft(nn.Module):
    """Class 1 where the first channel is bright, in the size wanted."""

    sem_seg_head = None

    def forward(self, batched_inputs):
        outputs = []
        for sample in batched_inputs:
            bright = sample["image"][None, :1].float() / 200
            bright = F.interpolate(bright, (sample["height"], sample["width"]), mode="bilinear", align_corners=False)[0]
            outputs.append({"sem_seg": torch.cat([torch.zeros_like(bright), 4 * bright - 2])})
        return outputs


def test_probabilities_of_labels_are_averaged_the_same_way_round(cfg, scene):
    model = with_test_time_augmentation(cfg, MarksLeft())
    assert isinstance(model, SemanticSegmentorWithTTA)
    (output,) = model([scene])
    probabilities = output["sem_seg"]
    assert probabilities.shape == (2, HEIGHT, WIDTH)
    torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(HEIGHT, WIDTH))
    assert probabilities[1, 24, 20].item() == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert probabilities[1, 24, 50].item() == pytest.approx(torch.tensor(-2.0).sigmoid().item())
    wrong = (probabilities.argmax(dim=0) != (scene["image"][0] > 0)).sum()
    assert wrong < 0.1 * 24 * 24


def test_one_plain_copy_gives_the_probabilities_of_a_segmentor(cfg, sample):
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 8
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = (64,), False
    model = build_model(cfg).eval()
    batch = [{**sample(64, 80), "height": 128, "width": 160}]
    with torch.no_grad():
        wanted = model(batch)[0]["sem_seg"].softmax(dim=0)
    torch.testing.assert_close(with_test_time_augmentation(cfg, model)(batch)[0]["sem_seg"], wanted)


def test_models_that_cannot_be_averaged_are_a_config_error(cfg):
    model = FindsTheSquare()
    with pytest.raises(ConfigError, match=r"not for Linear; set TEST\.AUG\.ENABLED: False"):
        with_test_time_augmentation(cfg, nn.Linear(1, 1))
    model.sem_seg_head = nn.Identity()
    with pytest.raises(ConfigError, match="not for FindsTheSquare"):
        GeneralizedRCNNWithTTA(cfg, model)
    model = FindsTheSquare()
    model.proposal_generator = None
    with pytest.raises(ConfigError, match="needs a proposal generator"):
        GeneralizedRCNNWithTTA(cfg, model)
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    with pytest.raises(ConfigError, match="rotated"):
        GeneralizedRCNNWithTTA(cfg, FindsTheSquare())
