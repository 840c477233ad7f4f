import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from detlib.data import detection_utils as utils
from detlib.data import transforms as T
from detlib.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, RotatedBoxes
from detlib.utils.errors import ConfigError, DatasetError

SQUARE = [2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]


def annotation(**values):
    return {"bbox": [2, 2, 4, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, **values}


def transformed(transform, size=(10, 10), flip_indices=None, **values):
    return utils.transform_instance_annotations(
        annotation(**values), transform, size, keypoint_hflip_indices=flip_indices
    )


def test_box_becomes_xyxy_and_is_transformed():
    result = transformed(T.ResizeTransform(10, 10, 20, 30), (20, 30))
    assert result["bbox"].tolist() == [6, 4, 18, 12]
    assert result["bbox_mode"] == BoxMode.XYXY_ABS


def test_box_is_clipped_to_the_image():
    result = transformed([T.CropTransform(4, 0, 6, 3)], (3, 6))
    assert result["bbox"].tolist() == [0, 2, 2, 3]


def test_polygons_stay_polygons():
    result = transformed(T.HFlipTransform(10), segmentation=[SQUARE])
    assert [p.tolist() for p in result["segmentation"]] == [[8, 2, 4, 2, 4, 6, 8, 6]]


@pytest.mark.parametrize("compressed", [True, False])
def test_rle_becomes_a_transformed_bitmap(compressed):
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[1, :2] = 1
    rle = mask_util.encode(np.asfortranarray(mask)) if compressed else {"size": [4, 6], "counts": [1, 1, 3, 1, 18]}
    result = transformed(T.HFlipTransform(6), (4, 6), segmentation=rle)
    np.testing.assert_array_equal(result["segmentation"], mask[:, ::-1])


def test_rle_of_another_image_size_is_refused():
    rle = mask_util.encode(np.asfortranarray(np.zeros((4, 6), dtype=np.uint8)))
    with pytest.raises(DatasetError, match=r"\(4, 6\)"):
        transformed(T.NoOpTransform(), (10, 10), segmentation=rle)


def test_segmentation_of_another_kind_is_refused():
    with pytest.raises(DatasetError, match="segmentation is str"):
        transformed(T.NoOpTransform(), segmentation="mask.png")


def test_annotation_without_box_is_refused():
    with pytest.raises(DatasetError, match="lacks bbox_mode; it has bbox, category_id"):
        utils.transform_instance_annotations({"bbox": [0, 0, 1, 1], "category_id": 0}, T.NoOpTransform(), (4, 4))


def test_flip_exchanges_left_and_right_keypoints():
    keypoints = [1, 1, 2, 3, 1, 2]  # left, right
    result = transformed(T.HFlipTransform(10), keypoints=keypoints, flip_indices=[1, 0])
    assert result["keypoints"].tolist() == [[7, 1, 2], [9, 1, 2]]


def test_two_flips_do_not_exchange_keypoints_even_when_nested():
    flips = T.TransformList([T.TransformList([T.HFlipTransform(10)]), T.HFlipTransform(10)])
    result = transformed(flips, keypoints=[1, 1, 2, 3, 1, 2], flip_indices=[1, 0])
    assert result["keypoints"].tolist() == [[1, 1, 2], [3, 1, 2]]


def test_keypoints_outside_of_the_image_become_unlabelled():
    result = transformed(T.CropTransform(2, 0, 8, 10), (10, 8), keypoints=[1, 1, 2, 3, 1, 2, 5, 5, 0])
    assert result["keypoints"].tolist() == [[0, 0, 0], [1, 1, 2], [0, 0, 0]]


def test_flipped_keypoints_without_flip_map_are_refused():
    with pytest.raises(DatasetError, match="keypoint_flip_map"):
        transformed(T.HFlipTransform(10), keypoints=[1, 1, 2])


def test_wrong_number_of_keypoints_is_refused():
    with pytest.raises(DatasetError, match="has 1 keypoints, but the metadata of its dataset names 2"):
        transformed(T.NoOpTransform(), keypoints=[1, 1, 2], flip_indices=[1, 0])


def test_annotations_become_instances():
    annotations = [annotation(), annotation(bbox=[0, 0, 1, 3], category_id=0)]
    instances = utils.annotations_to_instances(annotations, (10, 12))
    assert instances.image_size == (10, 12)
    assert instances.gt_boxes.tensor.tolist() == [[2, 2, 6, 6], [0, 0, 1, 3]]
    assert instances.gt_classes.tolist() == [1, 0]
    assert not instances.has("gt_masks")


def test_no_annotations_become_zero_instances():
    instances = utils.annotations_to_instances([], (10, 12))
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64


def test_polygons_become_either_kind_of_mask():
    annotations = [annotation(segmentation=[np.array(SQUARE)])]
    polygons = utils.annotations_to_instances(annotations, (10, 10)).gt_masks
    assert isinstance(polygons, PolygonMasks)
    assert polygons.area().tolist() == [16]
    bitmasks = utils.annotations_to_instances(annotations, (10, 10), mask_format="bitmask").gt_masks
    assert isinstance(bitmasks, BitMasks)
    assert bitmasks.tensor.sum() == 16
    assert bitmasks.tensor[0, 2:6, 2:6].all()


def test_bitmap_as_polygon_names_the_config_key():
    with pytest.raises(DatasetError, match=r"INPUT.MASK_FORMAT: bitmask"):
        utils.annotations_to_instances([annotation(segmentation=np.zeros((10, 10), np.uint8))], (10, 10))
    with pytest.raises(ConfigError, match="'mask'"):
        utils.annotations_to_instances([annotation(segmentation=[SQUARE])], (10, 10), mask_format="mask")


def test_masks_for_some_objects_only_are_refused():
    with pytest.raises(DatasetError, match="1 of 2 objects of an image have no segmentation"):
        utils.annotations_to_instances([annotation(segmentation=[SQUARE]), annotation()], (10, 10))


def test_keypoints_become_a_tensor():
    instances = utils.annotations_to_instances([annotation(keypoints=np.array([[1.0, 2, 2], [0, 0, 0]]))], (10, 10))
    assert instances.gt_keypoints.tensor.tolist() == [[[1, 2, 2], [0, 0, 0]]]


def test_empty_boxes_and_masks_are_dropped():
    instances = Instances((10, 10))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0, 5, 5], [3, 3, 3, 9], [0, 0, 4, 4]]))
    instances.gt_masks = PolygonMasks([[np.array(SQUARE)], [np.array(SQUARE)], []])
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False, False]
    assert len(kept) == 1
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 2


def test_filter_takes_an_image_without_objects():
    empty = utils.annotations_to_instances([], (10, 10))
    assert len(utils.filter_empty_instances(empty)) == 0


@pytest.mark.parametrize(
    ("mode", "boxes", "expected"),
    [
        (BoxMode.XYWHA_ABS, [[3, 3, 4, 2, 90], [9, 9, 0, 4, 30]], [[18, 6, 8, 4, -90]]),
        (BoxMode.XYXY_ABS, [[1, 2, 5, 4], [6, 0, 6, 1]], [[18, 6, 8, 4, 0]]),
        (BoxMode.XYWH_ABS, [], []),
    ],
)
def test_rotated_proposals_are_transformed_and_empty_ones_dropped(mode, boxes, expected):
    """Twice the size, then mirrored in a width of 24."""
    given = np.array(boxes, dtype=np.float32).reshape(-1, 5 if mode == BoxMode.XYWHA_ABS else 4)
    logits = np.arange(len(boxes), dtype=np.float32)
    sample = {"proposal_boxes": given.copy(), "proposal_bbox_mode": mode, "proposal_objectness_logits": logits}
    transforms = T.TransformList([T.ResizeTransform(12, 12, 24, 24), T.HFlipTransform(24)])
    used = dict(sample)
    utils.transform_proposals_rotated(used, (24, 24), transforms, proposal_topk=2)
    found = used["proposals"].proposal_boxes
    assert isinstance(found, RotatedBoxes)
    torch.testing.assert_close(found.tensor, torch.tensor(expected, dtype=torch.float32).reshape(-1, 5))
    assert used["proposals"].objectness_logits.tolist() == [0.0][: len(expected)]
    np.testing.assert_array_equal(sample["proposal_boxes"], given)


def test_proposals_are_transformed_clipped_and_cut_to_the_best():
    sample = {
        "proposal_boxes": np.array([[0, 0, 4, 4], [5, 5, 9, 9], [20, 20, 30, 30], [1, 1, 2, 2]], dtype=np.float32),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
        "proposal_objectness_logits": np.array([3.0, 2.0, 1.0, 0.0]),
    }
    utils.transform_proposals(sample, (12, 12), T.ResizeTransform(6, 6, 12, 12), proposal_topk=2)
    assert sample.keys() == {"proposals"}
    assert sample["proposals"].proposal_boxes.tensor.tolist() == [[0, 0, 8, 8], [10, 10, 12, 12]]
    assert sample["proposals"].objectness_logits.tolist() == [3, 2]


def test_flip_indices_follow_from_the_names(metadata):
    metadata("faces", keypoint_names=("nose", "left_eye", "right_eye"), keypoint_flip_map=(("left_eye", "right_eye"),))
    assert utils.create_keypoint_hflip_indices("faces") == [0, 2, 1]
    assert utils.create_keypoint_hflip_indices(["faces"]) == [0, 2, 1]


def test_missing_keypoint_names_are_refused(metadata):
    metadata("faces", thing_classes=["face"])
    with pytest.raises(DatasetError, match="'faces' has no keypoint_names"):
        utils.create_keypoint_hflip_indices("faces")


def test_datasets_with_other_classes_cannot_be_joined(metadata):
    metadata("cats", thing_classes=["cat"])
    metadata("dogs", thing_classes=["dog"])
    metadata("bare")
    with pytest.raises(DatasetError, match=r"'cats' and 'dogs' .*thing_classes differ, \['cat'\] and \['dog'\]"):
        utils.check_metadata_consistency("thing_classes", ["cats", "dogs"])
    utils.check_metadata_consistency("thing_classes", ["bare", "cats"])  # Who says nothing does not contradict.
    utils.check_metadata_consistency("stuff_classes", ["cats", "bare"])


def test_federated_loss_weights_are_image_counts_in_the_order_of_ids(metadata):
    metadata("rare", class_image_count=[{"id": 2, "image_count": 9}, {"id": 1, "image_count": 4}])
    assert utils.get_fed_loss_cls_weights("rare", 0.5).tolist() == [2, 3]


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_padding_is_no_part_of_a_mask(dtype):
    mask = np.array([[0, 1], [0, 0]], dtype=dtype)
    annotation = {"bbox": [1, 0, 1, 1], "bbox_mode": BoxMode.XYWH_ABS, "segmentation": mask}
    pad = T.PadTransform(0, 0, 1, 1, seg_pad_value=255)
    result = utils.transform_instance_annotations(annotation, pad, (3, 3))
    assert result["segmentation"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
