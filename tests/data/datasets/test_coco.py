import json
import logging

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import load_coco_json, load_sem_seg, register_coco_instances
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError, MissingFileError

NAME = "coco_format_test"


@pytest.fixture
def content():
    """Two images, three categories whose ids have gaps, one box."""
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "height": 4, "width": 6},
            {"id": 3, "file_name": "a.jpg", "height": 8, "width": 5},
        ],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 1, 2, 3]}],
        "categories": [{"id": 9, "name": "ring"}, {"id": 2, "name": "disc"}, {"id": 4, "name": "bar"}],
    }


@pytest.fixture
def load(tmp_path, content):
    """Writes ``content`` and loads it."""

    def write_and_load(**kwargs):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(content))
        return load_coco_json(str(path), "photos", **kwargs)

    return write_and_load


def test_samples_come_in_the_order_of_image_ids(load):
    first, second = load()
    assert first == {"file_name": "photos/a.jpg", "height": 8, "width": 5, "image_id": 3, "annotations": []}
    assert second["annotations"] == [
        {"iscrowd": 0, "bbox": [1, 1, 2, 3], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 9}
    ]


def test_box_of_five_numbers_is_a_rotated_one(load, content):
    content["annotations"][0]["bbox"] = [3, 2, 4, 2, -30.5]
    (annotation,) = load()[1]["annotations"]
    assert annotation["bbox"] == [3, 2, 4, 2, -30.5]
    assert annotation["bbox_mode"] == BoxMode.XYWHA_ABS


def test_category_ids_with_gaps_become_contiguous(load):
    assert load(dataset_name=NAME)[1]["annotations"][0]["category_id"] == 2
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == ["disc", "bar", "ring"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 4: 1, 9: 2}


def test_declared_classes_that_differ_from_the_file_are_refused(load):
    MetadataCatalog.get(NAME).thing_classes = ["disc", "ring"]
    with pytest.raises(DatasetError, match=r"coco_format_test.*\['disc', 'ring'\].*labels.json"):
        load(dataset_name=NAME)


def test_extra_annotation_keys_are_carried_over(load, content):
    content["annotations"][0]["score"] = 0.5
    assert load(extra_annotation_keys=["score", "id", "absent"])[1]["annotations"][0]["score"] == 0.5
    assert "score" not in load()[1]["annotations"][0]


def test_file_without_annotations_gives_unlabelled_images(load, content, caplog):
    del content["annotations"]
    assert [sample["annotations"] for sample in load()] == [[], []]
    assert "unlabelled" in caplog.text


def test_polygons_with_fewer_than_three_points_are_dropped(load, content):
    content["annotations"][0]["segmentation"] = [[0, 0, 1, 1], [1, 1, 3, 1, 3, 4]]
    assert load()[1]["annotations"][0]["segmentation"] == [[1, 1, 3, 1, 3, 4]]


def test_annotation_without_usable_polygon_is_left_out_with_a_warning(load, content, caplog):
    content["annotations"][0]["segmentation"] = [[0, 0, 1, 1]]
    assert load()[1]["annotations"] == []
    assert "left out 1 annotations" in caplog.text and "ids 1" in caplog.text


def test_empty_segmentation_keeps_the_box(load, content):
    content["annotations"][0]["segmentation"] = []
    assert "segmentation" not in load()[1]["annotations"][0]


def test_uncompressed_rle_is_compressed(load, content):
    content["annotations"][0]["segmentation"] = {"counts": [5, 2, 17], "size": [4, 6]}  # Pixels 5 and 6, by column.
    mask = coco_mask.decode(load()[1]["annotations"][0]["segmentation"])
    assert mask.T.reshape(-1).nonzero()[0].tolist() == [5, 6]


def test_compressed_rle_is_kept(load, content):
    rle = coco_mask.encode(np.asfortranarray(np.eye(4, 6, dtype=np.uint8)))
    content["annotations"][0]["segmentation"] = {"counts": rle["counts"].decode(), "size": [4, 6]}
    np.testing.assert_array_equal(coco_mask.decode(load()[1]["annotations"][0]["segmentation"]), np.eye(4, 6))


def test_keypoints_move_to_the_center_of_their_pixel(load, content):
    content["annotations"][0]["keypoints"] = [1, 2, 2, 0, 3, 1]
    assert load()[1]["annotations"][0]["keypoints"] == [1.5, 2.5, 2, 0.5, 3.5, 1]


def test_missing_file_is_named():
    with pytest.raises(MissingFileError, match=r"nowhere\.json"):
        load_coco_json("nowhere.json", "photos")


def test_invalid_json_is_located(tmp_path):
    path = tmp_path / "cut.json"
    path.write_text('{"images": [')
    with pytest.raises(DatasetError, match=r"cut\.json is not valid JSON.*line 1"):
        load_coco_json(str(path), "photos")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "'images' is missing"),
        (lambda c: c.update(categories={}), "'categories' is dict"),
        (lambda c: c["images"][1].pop("height"), r"images\[1\] \(id 3\) lacks height"),
        (lambda c: c["annotations"][0].pop("bbox"), r"annotations\[0\] \(id 1\) lacks bbox"),
        (lambda c: c["annotations"][0].update(image_id=5), "annotation 1 of image 5: image 5 is not in 'images'"),
        (lambda c: c["annotations"][0].update(category_id=1), r"annotation 1 of image 7: category 1.*\[2, 4, 9\]"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "1 annotation ids come twice: 1"),
        (lambda c: c["images"].append(c["images"][0]), "1 image ids come twice: 7"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, float("nan"), 3]), r"annotation 1 of image 7: \[1, 1, nan"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, 2]), r"annotation 1 of image 7: \[1, 1, 2\]"),
        (lambda c: c["annotations"][0].update(bbox=[1] * 6), r"annotation 1 of image 7: \[1, 1, 1, 1, 1, 1\]"),
        (lambda c: c["annotations"][0].update(bbox=None), "annotation 1 of image 7: None"),
        (lambda c: c["annotations"][0].update(segmentation=[1, 1, 3, 1, 3, 4]), "annotation 1 .*polygons"),
        (lambda c: c["annotations"][0].update(segmentation={"counts": [5]}), "annotation 1 .*'size'"),
        (
            lambda c: c["annotations"][0].update(segmentation={"counts": [5], "size": [4, 6]}),
            "annotation 1 .*sum to 5, not to 4 x 6",
        ),
        (lambda c: c["annotations"][0].update(keypoints=[1, 2]), "annotation 1 .*'keypoints'"),
        (lambda c: c["annotations"][0].update(ignore=1), "annotation 1 .*'iscrowd'"),
    ],
)
def test_damaged_entry_is_named(load, content, change, message):
    change(content)
    with pytest.raises(DatasetError, match=message) as caught:
        load()
    assert "labels.json" in str(caught.value)


def test_box_without_area_is_kept_with_a_warning(load, content, caplog):
    content["annotations"][0]["bbox"] = [1, 1, 0, 3]
    assert len(load()[1]["annotations"]) == 1
    assert "1 boxes have no area" in caplog.text and "annotation ids 1" in caplog.text


def test_known_duplicates_of_minival_are_only_warned_about(tmp_path, content, caplog):
    path = tmp_path / "instances_minival2014.json"
    path.write_text(json.dumps({**content, "annotations": content["annotations"] * 2}))
    assert len(load_coco_json(str(path), "photos")[1]["annotations"]) == 2
    assert "come twice" in caplog.text


def test_registering_reads_no_file_and_loading_does(tmp_path, content, caplog):
    path = tmp_path / "labels.json"
    register_coco_instances(NAME, {"note": "x"}, str(path), "photos")
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.json_file, metadata.image_root, metadata.note) == (str(path), "photos", "x")
    assert metadata.evaluator_type == "coco"
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.INFO, logger="detlib"):
        assert len(DatasetCatalog.get(NAME)) == 2
    assert "Read 2 images and 1 annotations" in caplog.text


def write_images(folder, names):
    folder.mkdir()
    for name in names:
        Image.new("L", (2, 2)).save(folder / name)


def test_images_and_label_maps_are_paired_by_name(tmp_path, caplog):
    images, labels = tmp_path / "images", tmp_path / "labels"
    write_images(images, ["b.jpg", "a.jpg", "c.jpg"])
    write_images(labels, ["a.png", "b.png"])
    assert load_sem_seg(str(labels), str(images)) == [
        {"file_name": f"{images}/{name}.jpg", "sem_seg_file_name": f"{labels}/{name}.png"} for name in "ab"
    ]
    assert "Left out 1 files" in caplog.text


def test_no_common_name_is_an_error_that_counts_the_files(tmp_path):
    write_images(tmp_path / "images", ["a.png"])
    write_images(tmp_path / "labels", ["a.png"])
    with pytest.raises(DatasetError, match=r"0 \*\.jpg files.*1 \*\.png files"):
        load_sem_seg(str(tmp_path / "labels"), str(tmp_path / "images"))


def test_missing_label_folder_is_named(tmp_path):
    write_images(tmp_path / "images", ["a.jpg"])
    with pytest.raises(MissingFileError, match="nowhere"):
        load_sem_seg(str(tmp_path / "nowhere"), str(tmp_path / "images"))
