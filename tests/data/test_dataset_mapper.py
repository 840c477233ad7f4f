import copy

import numpy as np
import pytest
import torch
from PIL import Image

from detlib.data import DatasetMapper
from detlib.data import transforms as T
from detlib.structures import BitMasks, BoxMode
from detlib.utils.errors import ConfigError, MissingFileError


def box(x, y, w, h, **values):
    return {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, **values}


@pytest.fixture
def training_sample(image_file):
    return {
        "file_name": image_file("a.png", 20, 40),
        "image_id": 7,
        "annotations": [
            box(2, 2, 10, 4, segmentation=[[2.0, 2, 12, 2, 12, 6, 2, 6]]),
            box(0, 0, 40, 20, iscrowd=1),
            box(20, 10, 0, 5, segmentation=[[20.0, 10, 20, 15, 20, 10]]),
        ],
    }


def mapper(is_train=True, augmentations=(), image_format="BGR", **values):
    return DatasetMapper(is_train, augmentations=list(augmentations), image_format=image_format, **values)


def test_sample_becomes_image_and_instances(training_sample):
    mapped = mapper(augmentations=[T.HFlipTransform(40), T.Resize((40, 80))])(training_sample)
    assert mapped["image"].shape == (3, 40, 80)
    assert mapped["image"].dtype == torch.uint8
    assert (mapped["height"], mapped["width"], mapped["image_id"]) == (20, 40, 7)
    assert mapped["instances"].image_size == (40, 80)
    assert "annotations" not in mapped


def test_crowd_regions_and_empty_boxes_are_left_out(training_sample):
    instances = mapper(augmentations=[T.HFlipTransform(40)])(training_sample)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[28, 2, 38, 6]]


def test_channels_are_in_the_order_of_the_format(training_sample):
    rgb = mapper(image_format="RGB")(training_sample)["image"]
    bgr = mapper(image_format="BGR")(training_sample)["image"]
    assert torch.equal(rgb, bgr.flip(0))


def test_given_sample_is_not_changed(training_sample):
    before = copy.deepcopy(training_sample)
    mapper(augmentations=[T.HFlipTransform(40)], use_instance_mask=True)(training_sample)
    assert training_sample == before


def test_evaluation_drops_the_annotations(training_sample):
    mapped = mapper(is_train=False)(training_sample)
    assert mapped.keys() == {"file_name", "image_id", "image", "height", "width"}


def test_image_without_objects_has_zero_instances(training_sample):
    training_sample["annotations"] = []
    instances = mapper(augmentations=[T.HFlipTransform(40)], use_instance_mask=True)(training_sample)["instances"]
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)


def test_masks_are_kept_on_request_only(training_sample):
    assert not mapper()(training_sample)["instances"].has("gt_masks")
    bitmasks = mapper(use_instance_mask=True, instance_mask_format="bitmask")(training_sample)["instances"].gt_masks
    assert isinstance(bitmasks, BitMasks)
    assert bitmasks.tensor.sum() == 40


def test_boxes_are_made_tight_again_after_a_crop(training_sample):
    triangle = box(0, 0, 20, 20, segmentation=[[0.0, 0, 20, 0, 0, 20]])
    training_sample["annotations"] = [triangle]
    crop = T.CropTransform(0, 10, 40, 10)  # Leaves the lower half, whose triangle is 10 wide.
    loose = mapper(augmentations=[crop], use_instance_mask=True)(training_sample)["instances"]
    tight = mapper(augmentations=[crop], use_instance_mask=True, recompute_boxes=True)(training_sample)["instances"]
    assert loose.gt_boxes.tensor.tolist() == [[0, 0, 20, 10]]
    assert tight.gt_boxes.tensor.tolist() == [[0, 0, 10, 10]]
    with pytest.raises(ConfigError, match=r"MODEL.MASK_ON"):
        mapper(recompute_boxes=True)


def test_augmentations_see_the_boxes(training_sample):
    class ByBoxes(T.Augmentation):
        def get_transform(self, image, boxes):
            seen.append(boxes)
            return T.NoOpTransform()

    seen = []
    mapper(augmentations=[T.HFlipTransform(40), ByBoxes()])(training_sample)
    assert seen[0][0].tolist() == [28, 2, 38, 6]


def test_semantic_labels_follow_the_image(training_sample, tmp_path):
    labels = np.zeros((20, 40), dtype=np.uint8)
    labels[:, :10] = 3
    Image.fromarray(labels).save(tmp_path / "labels.png")
    training_sample["sem_seg_file_name"] = str(tmp_path / "labels.png")
    mapped = mapper(augmentations=[T.HFlipTransform(40), T.Resize((40, 80))])(training_sample)
    assert mapped["sem_seg"].dtype == torch.int64
    assert (mapped["sem_seg"][:, 60:] == 3).all()
    assert (mapped["sem_seg"][:, :60] == 0).all()


def test_proposals_become_instances(training_sample):
    training_sample.update(
        proposal_boxes=np.array([[0, 0, 4, 4.0]]),
        proposal_objectness_logits=np.array([1.0]),
        proposal_bbox_mode=BoxMode.XYXY_ABS,
    )
    mapped = mapper(augmentations=[T.HFlipTransform(40)], precomputed_proposal_topk=10)(training_sample)
    assert mapped["proposals"].proposal_boxes.tensor.tolist() == [[36, 0, 40, 4]]


def test_missing_image_is_named(training_sample):
    training_sample["file_name"] += ".missing"
    with pytest.raises(MissingFileError, match=r"a\.png\.missing"):
        mapper()(training_sample)


def test_config_decides_on_augmentations(tiny_cfg, training_sample):
    tiny_cfg.INPUT.CROP.ENABLED = True
    train, test = DatasetMapper(tiny_cfg), DatasetMapper(tiny_cfg, is_train=False)
    assert [type(a) for a in train.augmentations.augs] == [T.RandomCrop, T.ResizeShortestEdge, T.RandomFlip]
    assert [type(a) for a in test.augmentations.augs] == [T.ResizeShortestEdge]
    assert test(training_sample)["image"].shape == (3, 64, 128)


def test_large_scale_jitter_recomputes_boxes_from_masks_in_training(tiny_cfg, training_sample):
    tiny_cfg.MODEL.MASK_ON = True
    assert not DatasetMapper(tiny_cfg).recompute_boxes
    tiny_cfg.INPUT.LARGE_SCALE_JITTER.merge_from_list(["ENABLED", True, "SIZE", [32, 48]])
    train, test = DatasetMapper(tiny_cfg), DatasetMapper(tiny_cfg, is_train=False)
    assert (train.recompute_boxes, test.recompute_boxes) == (True, False)
    assert train(training_sample)["image"].shape == (3, 32, 48)
    assert test(training_sample)["image"].shape == (3, 64, 128)


def test_config_with_keypoints_takes_the_flip_map_of_the_dataset(tiny_cfg, metadata):
    metadata("faces", keypoint_names=("left", "right"), keypoint_flip_map=(("left", "right"),))
    tiny_cfg.DATASETS.TRAIN = ("faces",)
    tiny_cfg.MODEL.KEYPOINT_ON = True
    assert DatasetMapper(tiny_cfg).keypoint_hflip_indices == [1, 0]


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(("key", "value"), [("label", 3), ("labels", [1, 2]), ("score", np.array([0.5, 0.5]))])
def test_labels_of_the_image_are_passed_on(image_file, is_train, key, value):
    mapped = mapper(is_train, [T.RandomResizedCrop(8)])({"file_name": image_file("a.png", 20, 40), key: value})
    assert mapped["image"].shape == (3, 8, 8)
    assert mapped[key] is value
    assert mapped.keys() == {"file_name", "image", "height", "width", key}


def test_image_in_memory_is_taken_as_rgb():
    image = np.zeros((2, 4, 3), dtype=np.uint8)
    image[..., 0] = 9
    sample = {"image": image, "label": 1}
    mapped = mapper(image_format="BGR", augmentations=[T.Resize((4, 8))])(sample)
    assert mapped["image"][:, 0, 0].tolist() == [0, 0, 9]
    assert (mapped["height"], mapped["width"], mapped["image"].shape) == (2, 4, (3, 4, 8))
    assert sample["image"] is image
