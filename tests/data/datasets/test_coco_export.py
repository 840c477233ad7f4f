import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import convert_to_coco_json, load_coco_json
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError

NAME = "export_test"


def instance(**kwargs):
    return {"bbox": [1, 2, 4, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, **kwargs}


@pytest.fixture
def export(tmp_path):
    """Registers the instances as one image and returns the written file's content."""

    def write(*instances, **metadata):
        sample = {
            "file_name": "a.jpg",
            "height": 10,
            "width": 12,
            "image_id": np.int64(5),
            "annotations": list(instances),
        }
        DatasetCatalog.register(NAME, lambda: [sample])
        MetadataCatalog.get(NAME).set(**(metadata or {"thing_classes": ["disc", "ring"]}))
        convert_to_coco_json(NAME, str(tmp_path / "folder" / "out.json"))
        return json.loads((tmp_path / "folder" / "out.json").read_text())

    return write


def test_box_is_written_as_xywh_with_its_area(export):
    content = export(instance())
    annotation = {"id": 1, "image_id": 5, "bbox": [1, 2, 3, 6], "area": 18, "iscrowd": 0, "category_id": 1}
    assert content["annotations"] == [annotation]
    assert content["images"] == [{"id": 5, "width": 12, "height": 10, "file_name": "a.jpg"}]
    assert content["categories"] == [{"id": 0, "name": "disc"}, {"id": 1, "name": "ring"}]


def test_rotated_box_stays_as_it_is(export):
    content = export(instance(bbox=[3.0, 2.0, 4.0, 2.0, -30.5], bbox_mode=BoxMode.XYWHA_ABS))
    assert content["annotations"][0]["bbox"] == [3, 2, 4, 2, -30.5]
    assert content["annotations"][0]["area"] == 8


def test_original_category_ids_come_back(export):
    mapping = {3: 0, 8: 1}
    content = export(instance(), thing_classes=["disc", "ring"], thing_dataset_id_to_contiguous_id=mapping)
    assert content["annotations"][0]["category_id"] == 8
    assert [category["id"] for category in content["categories"]] == [3, 8]


def test_area_is_that_of_the_polygons(export):
    triangle = [1, 2, 4, 2, 4, 8]
    annotation = export(instance(segmentation=[triangle]))["annotations"][0]
    assert annotation["area"] == 9
    assert annotation["segmentation"] == [triangle]


def test_compressed_rle_becomes_text_and_gives_the_area(export):
    rle = coco_mask.encode(np.asfortranarray(np.eye(10, 12, dtype=np.uint8)))
    annotation = export(instance(segmentation=rle, iscrowd=1))["annotations"][0]
    assert annotation["area"] == 10 and annotation["iscrowd"] == 1
    np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), np.eye(10, 12))


def test_keypoints_go_back_to_pixel_indices(export):
    annotation = export(instance(keypoints=[1.5, 2.5, 2, 0.5, 0.5, 0]))["annotations"][0]
    assert annotation["keypoints"] == [1, 2, 2, 0, 0, 0]
    assert annotation["num_keypoints"] == 1


def test_numbers_of_numpy_are_written_as_numbers(export):
    annotation = export(instance(bbox=np.array([1.0, 2.0, 4.0, 8.0]), category_id=np.int64(1)))["annotations"][0]
    assert annotation["bbox"] == [1, 2, 3, 6] and annotation["category_id"] == 1


def test_image_without_objects_is_listed(export):
    content = export()
    assert len(content["images"]) == 1 and content["annotations"] == []


def test_export_is_read_by_pycocotools_and_by_load_coco_json(export, tmp_path):
    export(instance(), instance(category_id=0))
    path = str(tmp_path / "folder" / "out.json")
    assert len(COCO(path).loadAnns(COCO(path).getAnnIds([5]))) == 2
    assert [a["category_id"] for a in load_coco_json(path, "")[0]["annotations"]] == [1, 0]


def test_existing_file_is_kept_unless_caching_is_refused(export, tmp_path):
    export(instance())
    path = tmp_path / "folder" / "out.json"
    path.write_text("{}")
    convert_to_coco_json(NAME, str(path))
    assert path.read_text() == "{}"
    convert_to_coco_json(NAME, str(path), allow_cached=False)
    assert json.loads(path.read_text())["images"]


def test_missing_class_names_are_an_error(export):
    with pytest.raises(DatasetError, match="thing_classes"):
        export(instance(), note="no classes")
