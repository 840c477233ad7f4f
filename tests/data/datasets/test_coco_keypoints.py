import pytest

from detlib.data.datasets.coco_keypoints import keypoint_metadata_of
from detlib.utils.errors import DatasetError

DOG = {
    "id": 2,
    "name": "dog",
    "keypoints": ["nose", "left_ear", "right_ear", "left_tail"],
    "skeleton": [[1, 2], [2, 3]],
}


def test_names_pairs_and_limbs_come_from_the_first_category_with_keypoints():
    metadata = keypoint_metadata_of([{"id": 1, "name": "car"}, DOG], "a.json")
    assert metadata["keypoint_names"] == ["nose", "left_ear", "right_ear", "left_tail"]
    # left_tail has no counterpart.
    assert metadata["keypoint_flip_map"] == [("left_ear", "right_ear")]
    assert [rule[:2] for rule in metadata["keypoint_connection_rules"]] == [
        ("nose", "left_ear"),
        ("left_ear", "right_ear"),
    ]


def test_categories_without_keypoints_give_nothing():
    assert keypoint_metadata_of([{"id": 1, "name": "car"}, {"id": 2, "name": "cat", "keypoints": []}], "a.json") == {}


def test_a_line_to_a_keypoint_that_does_not_exist_is_named():
    with pytest.raises(DatasetError, match=r"a.json: the 'skeleton' of category 'dog' is \[\[1, 5\]\].*from 1 to 4"):
        keypoint_metadata_of([{**DOG, "skeleton": [[1, 5]]}], "a.json")
