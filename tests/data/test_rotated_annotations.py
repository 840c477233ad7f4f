import pytest
import torch

from detlib.config import get_cfg
from detlib.data import DatasetMapper
from detlib.data import detection_utils as utils
from detlib.data import transforms as T
from detlib.structures import Boxes, BoxMode, RotatedBoxes
from detlib.utils.errors import ConfigError, DatasetError

TILTED = {"bbox": [20.0, 10.0, 8.0, 4.0, 30.0], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 1}
UPRIGHT = {"bbox": [0, 0, 10, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}


def mapped(image_file, annotations, augmentations=(), **values):
    sample = {"file_name": image_file("a.png", 20, 40), "annotations": annotations}
    values = {"use_rotated_boxes": True, **values}
    return DatasetMapper(True, augmentations=list(augmentations), image_format="BGR", **values)(sample)["instances"]


def assert_boxes(instances, expected):
    assert isinstance(instances.gt_boxes, RotatedBoxes)
    torch.testing.assert_close(instances.gt_boxes.tensor, torch.tensor(expected))


def test_rotated_box_is_transformed_and_keeps_its_mode():
    result = utils.transform_instance_annotations_rotated(dict(TILTED), T.HFlipTransform(40))
    assert result["bbox"] == pytest.approx([20, 10, 8, 4, -30])
    assert result["bbox_mode"] == BoxMode.XYWHA_ABS


@pytest.mark.parametrize(("mode", "box"), [(BoxMode.XYWH_ABS, [2, 4, 6, 2]), (BoxMode.XYXY_ABS, [2, 4, 8, 6])])
def test_upright_box_becomes_one_at_angle_0(mode, box):
    result = utils.transform_instance_annotations_rotated({"bbox": box, "bbox_mode": mode}, T.NoOpTransform())
    assert result["bbox"].tolist() == [5, 5, 6, 2, 0]


def test_instances_have_rotated_boxes_and_classes():
    instances = utils.annotations_to_instances_rotated([TILTED, {"bbox": [1, 2, 3, 4, 5], "category_id": 0}], (20, 40))
    assert instances.image_size == (20, 40)
    assert_boxes(instances, [TILTED["bbox"], [1.0, 2.0, 3.0, 4.0, 5.0]])
    assert instances.gt_classes.tolist() == [1, 0]


def test_upright_boxes_are_clipped_to_the_image():
    instances = utils.annotations_to_instances_rotated([{"bbox": [0, 4, 6, 2, 0], "category_id": 0}], (20, 40))
    assert_boxes(instances, [[1.5, 4.0, 3.0, 2.0, 0.0]])


def test_no_annotations_give_no_instances():
    instances = utils.annotations_to_instances_rotated([], (20, 40))
    assert instances.gt_boxes.tensor.shape == (0, 5)
    assert instances.gt_classes.dtype == torch.int64


@pytest.mark.parametrize("box", [{"bbox": [1, 2, 3, 4]}, {"bbox": [1, 2, 3, 4, 5], "bbox_mode": BoxMode.XYWH_ABS}])
def test_box_that_does_not_fit_its_mode_is_refused(box):
    with pytest.raises(DatasetError, match="five numbers"):
        utils.annotations_to_instances_rotated([{"category_id": 0, **box}], (20, 40))


def test_annotation_without_box_is_refused():
    with pytest.raises(DatasetError, match="lacks bbox"):
        utils.annotations_to_instances_rotated([{"category_id": 0}], (20, 40))


def test_mapper_makes_rotated_boxes_of_all_annotations_but_crowds(image_file):
    crowd = {**TILTED, "iscrowd": 1}
    instances = mapped(image_file, [TILTED, crowd, UPRIGHT], [T.HFlipTransform(40), T.Resize((40, 80))])
    assert_boxes(instances, [[40.0, 20.0, 16.0, 8.0, -30.0], [70.0, 4.0, 20.0, 8.0, 0.0]])
    assert instances.gt_classes.tolist() == [1, 0]


def test_mapper_drops_boxes_that_are_empty_or_outside_of_the_crop(image_file):
    empty = {**TILTED, "bbox": [30, 10, 0, 4, 30]}
    # Beyond a corner of the crop, though the upright box around it is not.
    cuts_the_corner = {**TILTED, "bbox": [16, 4, 2, 12, -45]}
    annotations = [TILTED, empty, UPRIGHT, cuts_the_corner]
    assert_boxes(mapped(image_file, annotations, [T.CropTransform(20, 8, 20, 12)]), [[0.0, 2.0, 8.0, 4.0, 30.0]])


def test_mapper_of_an_image_without_objects_gives_no_rotated_boxes(image_file):
    instances = mapped(image_file, [])
    assert instances.gt_boxes.tensor.shape == (0, 5)


def test_mapper_for_upright_boxes_takes_the_box_around_a_rotated_one(image_file):
    instances = mapped(image_file, [{**TILTED, "bbox": [20, 10, 8, 4, 90]}], use_rotated_boxes=False)
    assert isinstance(instances.gt_boxes, Boxes)
    torch.testing.assert_close(instances.gt_boxes.tensor, torch.tensor([[18.0, 6.0, 22.0, 14.0]]))


def test_config_with_rotated_anchors_asks_for_rotated_boxes():
    cfg = get_cfg()
    assert not DatasetMapper(cfg, True).use_rotated_boxes
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    assert DatasetMapper(cfg, True).use_rotated_boxes
    cfg.MODEL.MASK_ON = True
    with pytest.raises(ConfigError, match="upright"):
        DatasetMapper(cfg, True)
