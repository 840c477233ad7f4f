import logging
import pickle

import numpy as np
import pytest

from detlib.data import load_proposals_into_dataset, print_instances_class_histogram
from detlib.data.build import filter_images_with_few_keypoints, filter_images_with_only_crowd_annotations
from detlib.data.preparation import print_label_histogram
from detlib.structures import BoxMode
from detlib.utils.errors import CheckpointError, DatasetError, MissingFileError


def image(*annotations, **values):
    return {"annotations": list(annotations), **values}


def test_images_without_objects_are_dropped():
    samples = [image({"category_id": 0}), image(), image({"category_id": 0, "iscrowd": 1}), {"file_name": "a.jpg"}]
    assert filter_images_with_only_crowd_annotations(samples) == samples[:1]


def test_images_with_few_visible_keypoints_are_dropped():
    visible = {"keypoints": [1, 1, 2, 5, 5, 1]}
    hidden = {"keypoints": [1, 1, 2, 0, 0, 0]}
    samples = [image(visible), image(hidden), image(hidden, hidden), image({})]
    assert filter_images_with_few_keypoints(samples, 2) == [samples[0], samples[2]]


def write(tmp_path, content):
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(content))
    return str(path)


BOXES = [np.array([[0, 0, 1, 1], [2, 2, 3, 3]], dtype=np.float32), np.zeros((0, 4), dtype=np.float32)]
LOGITS = [np.array([0.1, 0.9], dtype=np.float32), np.zeros(0, dtype=np.float32)]


@pytest.mark.parametrize("names", [("ids", "objectness_logits"), ("indexes", "scores")])
def test_proposals_are_added_by_image_id_sorted_by_score(tmp_path, names):
    path = write(tmp_path, {names[0]: ["7", "8"], "boxes": BOXES, names[1]: LOGITS})
    samples = load_proposals_into_dataset([{"image_id": 8}, {"image_id": 7}], path)
    assert samples[1]["proposal_boxes"].tolist() == [[2, 2, 3, 3], [0, 0, 1, 1]]
    assert samples[1]["proposal_objectness_logits"].tolist() == pytest.approx([0.9, 0.1])
    assert samples[1]["proposal_bbox_mode"] == BoxMode.XYXY_ABS
    assert samples[0]["proposal_boxes"].shape == (0, 4)


def test_proposals_may_state_their_box_mode(tmp_path):
    path = write(tmp_path, {"ids": [7], "boxes": BOXES[:1], "objectness_logits": LOGITS[:1], "bbox_mode": BoxMode(1)})
    (sample,) = load_proposals_into_dataset([{"image_id": 7}], path)
    assert sample["proposal_bbox_mode"] == BoxMode.XYWH_ABS


def test_image_without_proposals_is_named(tmp_path):
    path = write(tmp_path, {"ids": [7], "boxes": BOXES[:1], "objectness_logits": LOGITS[:1]})
    with pytest.raises(DatasetError, match=r"no proposals for image 9 \(nine\.jpg\)"):
        load_proposals_into_dataset([{"image_id": 9, "file_name": "nine.jpg"}], path)


def test_image_without_an_id_is_named(tmp_path):
    path = write(tmp_path, {"ids": [7], "boxes": BOXES[:1], "objectness_logits": LOGITS[:1]})
    with pytest.raises(DatasetError, match=r"nine\.jpg has only"):
        load_proposals_into_dataset([{"file_name": "nine.jpg"}], path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"ids": [7]}, r"lacks \['boxes', 'objectness_logits'\]"),
        ({"ids": [7], "boxes": [], "objectness_logits": LOGITS[:1]}, "unequal length.*'boxes': 0"),
        ({"ids": [7], "boxes": BOXES[:1], "objectness_logits": LOGITS[:1], "bbox_mode": 9}, "bbox_mode 9.*XYWH_ABS"),
        ({"ids": [7], "boxes": BOXES[:1], "objectness_logits": LOGITS[1:]}, r"image 7 .*\(2, 4\).*\(0,\)"),
        ({"ids": [7], "boxes": [np.zeros((2, 5))], "objectness_logits": LOGITS[:1]}, r"\(2, 5\).*\(N, 4\)"),
    ],
)
def test_proposal_file_of_another_form_is_explained(tmp_path, content, message):
    with pytest.raises(DatasetError, match=rf"proposals\.pkl.*{message}"):
        load_proposals_into_dataset([{"image_id": 7}], write(tmp_path, content))


def test_proposal_file_that_is_missing_names_its_key(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.pkl.*PROPOSAL_FILES_TRAIN"):
        load_proposals_into_dataset([{"image_id": 7}], str(tmp_path / "none.pkl"))


def test_proposals_may_be_empty_lists(tmp_path):
    path = write(tmp_path, {"ids": [7], "boxes": [[]], "objectness_logits": [[]], "bbox_mode": 1})
    (sample,) = load_proposals_into_dataset([{"image_id": 7}], path)
    assert sample["proposal_boxes"].shape == (0, 4)


def test_proposal_file_with_code_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"proposals\.pkl .*print"):
        load_proposals_into_dataset([], write(tmp_path, {"ids": print}))


def test_histogram_counts_objects_of_each_class(caplog):
    samples = [
        image({"category_id": 0}, {"category_id": 1}),
        image({"category_id": 1}, {"category_id": 0, "iscrowd": 1}),
    ]
    with caplog.at_level(logging.INFO):
        print_instances_class_histogram(samples, ["cat", "dog", "cow", "emu"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in caplog.text.splitlines() if "|" in line]
    assert rows[2:] == [["cat", "1", "dog", "2", "cow", "0"], ["emu", "0", "total", "3", "", ""]]


@pytest.mark.parametrize("category_id", [-1, 2])
def test_category_that_is_none_of_the_classes_names_the_image(category_id):
    with pytest.raises(DatasetError, match=rf"a\.jpg has category_id {category_id}, but there are 2 classes"):
        print_instances_class_histogram([image({"category_id": category_id}, file_name="a.jpg")], ["cat", "dog"])


def test_histogram_counts_images_of_each_label(caplog):
    samples = [{"label": 1}, {"label": 1}, {"labels": [0, 1]}, {"labels": []}]
    with caplog.at_level(logging.INFO):
        print_label_histogram(samples, ("cat", "dog"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in caplog.text.splitlines() if "|" in line]
    assert rows[0] == ["class", "images"] * 3
    assert rows[2:] == [["cat", "1", "dog", "3", "total", "4"]]
    assert "of 4 in all" in caplog.text


@pytest.mark.parametrize("label", [{"label": 2}, {"labels": [0, -1]}])
def test_label_that_is_none_of_the_classes_names_the_image(label):
    with pytest.raises(DatasetError, match=r"a\.jpg has the label (2|-1), but there are 2 classes, .*: cat, dog"):
        print_label_histogram([{"file_name": "a.jpg", **label}], ("cat", "dog"))
