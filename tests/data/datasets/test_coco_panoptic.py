import json

import pytest
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import register_coco_panoptic, register_coco_panoptic_separated
from detlib.data.datasets.builtin_meta import categories_with_colors, panoptic_metadata, separated_metadata
from detlib.utils.errors import DatasetError, MissingFileError

NAME = "panoptic_test"
CATEGORIES = categories_with_colors([(3, "disc", True), (6, "sky", False), (8, "bar", True), (9, "sea", False)])


@pytest.fixture
def paths(tmp_path):
    """Two images with a disc, a bar or sea in them."""
    names = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    segments = {1: [{"id": 10, "category_id": 8}, {"id": 11, "category_id": 9}], 2: [{"id": 12, "category_id": 3}]}
    annotations = [
        {"image_id": image["id"], "file_name": image["file_name"][0] + ".png", "segments_info": segments[image["id"]]}
        for image in names
    ]
    panoptic_json = tmp_path / "panoptic.json"
    panoptic_json.write_text(json.dumps({"images": names, "annotations": annotations}))
    instances = {
        "images": [{**image, "height": 2, "width": 2} for image in names],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 8, "bbox": [0, 0, 1, 1]}],
        "categories": [{"id": c["id"], "name": c["name"]} for c in CATEGORIES if c["isthing"]],
    }
    instances_json = tmp_path / "instances.json"
    instances_json.write_text(json.dumps(instances))
    for folder, extension in (("images", "jpg"), ("stuff", "png")):
        (tmp_path / folder).mkdir()
        for image in names:
            Image.new("L", (2, 2)).save(tmp_path / folder / f"{image['file_name'][0]}.{extension}")
    return {
        "image_root": str(tmp_path / "images"),
        "panoptic_root": str(tmp_path / "panoptic"),
        "panoptic_json": str(panoptic_json),
        "instances_json": str(instances_json),
    }


def test_things_and_stuff_share_one_range_of_ids(paths):
    register_coco_panoptic(NAME, panoptic_metadata(CATEGORIES), **paths)
    first, second = DatasetCatalog.get(NAME)
    assert first["file_name"] == f"{paths['image_root']}/a.jpg"
    assert first["pan_seg_file_name"] == f"{paths['panoptic_root']}/a.png"
    assert first["segments_info"] == [
        {"id": 10, "category_id": 2, "isthing": True},
        {"id": 11, "category_id": 3, "isthing": False},
    ]
    assert second["segments_info"] == [{"id": 12, "category_id": 0, "isthing": True}]
    assert MetadataCatalog.get(NAME).evaluator_type == "coco_panoptic_seg"


def test_separated_form_has_instances_and_label_maps(paths, tmp_path):
    stuff = str(tmp_path / "stuff")
    register_coco_panoptic_separated(NAME, separated_metadata(CATEGORIES), sem_seg_root=stuff, **paths)
    first, second = DatasetCatalog.get(f"{NAME}_separated")
    assert first["sem_seg_file_name"] == f"{stuff}/a.png"
    assert [instance["category_id"] for instance in first["annotations"]] == [1]
    assert second["annotations"] == []
    assert [sample["sem_seg_file_name"] for sample in DatasetCatalog.get(f"{NAME}_stuffonly")] == [
        f"{stuff}/a.png",
        f"{stuff}/b.png",
    ]


def test_separated_metadata_counts_stuff_after_one_class_for_things():
    metadata = separated_metadata(CATEGORIES)
    assert metadata["thing_dataset_id_to_contiguous_id"] == {3: 0, 8: 1}
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {0: 0, 6: 1, 9: 2}
    assert metadata["stuff_classes"] == ["things", "sky", "sea"]


def test_image_without_label_map_is_named(paths, tmp_path):
    (tmp_path / "stuff" / "b.png").unlink()
    metadata = separated_metadata(CATEGORIES)
    register_coco_panoptic_separated(NAME, metadata, sem_seg_root=str(tmp_path / "stuff"), **paths)
    with pytest.raises(DatasetError, match=r"1 images have instances but no label map.*b\.jpg"):
        DatasetCatalog.get(f"{NAME}_separated")


def test_unknown_category_names_segment_and_image(paths):
    register_coco_panoptic(NAME, panoptic_metadata(CATEGORIES[:3]), **paths)
    with pytest.raises(DatasetError, match="segment 11 of image 1 has category 9"):
        DatasetCatalog.get(NAME)


def test_missing_panoptic_file_is_named(paths):
    register_coco_panoptic(NAME, panoptic_metadata(CATEGORIES), **{**paths, "panoptic_json": "nowhere.json"})
    with pytest.raises(MissingFileError, match=r"nowhere\.json"):
        DatasetCatalog.get(NAME)


def test_file_of_another_format_is_refused(paths):
    register_coco_panoptic(NAME, panoptic_metadata(CATEGORIES), **{**paths, "panoptic_json": paths["instances_json"]})
    with pytest.raises(DatasetError, match="panoptic format"):
        DatasetCatalog.get(NAME)
