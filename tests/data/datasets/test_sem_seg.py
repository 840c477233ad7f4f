import json

import numpy as np
import pytest
from PIL import Image

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import register_datasets
from detlib.data.label_maps import semantic_labels_of
from detlib.utils.errors import ConfigError, DatasetError, MissingFileError

NAME = "declared_test"  # The fixture of conftest.py removes it.
CATEGORIES = [{"id": 1, "name": "land"}, {"id": 0, "name": "water", "color": [0, 0, 200]}]


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Registers one declaration, with ``tmp_path`` as the current directory."""
    monkeypatch.chdir(tmp_path)

    def run(**declaration):
        cfg = get_cfg()
        cfg.DATASETS.REGISTER = [{"NAME": NAME, **declaration}]
        register_datasets(cfg)

    return run


def write_images(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(folder / name)


def write_json(path, categories=CATEGORIES, **image):
    entry = {"id": 5, "file_name": "a.jpg", "sem_seg_file_name": "a.png", "height": 4, "width": 6, **image}
    path.write_text(json.dumps({"categories": categories, "images": [entry]}))


# JSON


@pytest.fixture
def json_dataset(declare, tmp_path):
    write_images(tmp_path / "photos", "a.jpg")
    write_images(tmp_path / "masks", "a.png")
    write_json(tmp_path / "labels.json")
    declare(TYPE="sem_seg", JSON="labels.json", IMAGES="photos", LABELS="masks")
    return tmp_path


def test_pairs_and_classes_come_from_the_json_file(json_dataset):
    (sample,) = DatasetCatalog.get(NAME)
    assert sample == {
        "file_name": str(json_dataset / "photos/a.jpg"),
        "sem_seg_file_name": str(json_dataset / "masks/a.png"),
        "height": 4,
        "width": 6,
        "image_id": 5,
    }
    metadata = MetadataCatalog.get(NAME)
    assert metadata.stuff_classes == ["water", "land"]
    assert metadata.stuff_colors[0] == [0, 0, 200]
    assert (metadata.evaluator_type, metadata.ignore_label) == ("sem_seg", 255)
    assert metadata.sem_seg_root == str(json_dataset / "masks")


def test_categories_that_are_no_pixel_values_are_refused(json_dataset):
    write_json(json_dataset / "labels.json", [{"id": 1, "name": "land"}, {"id": 2, "name": "water"}])
    with pytest.raises(DatasetError, match=r"labels\.json has categories with the ids \[1, 2\].*0 to 1"):
        DatasetCatalog.get(NAME)


def test_entry_without_label_map_is_named(json_dataset):
    content = json.loads((json_dataset / "labels.json").read_text())
    del content["images"][0]["sem_seg_file_name"]
    (json_dataset / "labels.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"images\[0\] .* lacks sem_seg_file_name"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_json_file_is_named(json_dataset, text):
    (json_dataset / "labels.json").write_text(text)
    with pytest.raises(DatasetError, match=r"labels\.json"):
        DatasetCatalog.get(NAME)


# Folders


def test_folders_are_paired_by_name_whatever_the_ending_of_images(declare, tmp_path):
    write_images(tmp_path / "photos", "b.png", "a.png")
    write_images(tmp_path / "masks", "a.png", "b.png")
    declare(TYPE="sem_seg_folders", IMAGES="photos", LABELS="masks", CLASSES=["x", "y"], IGNORE_LABEL=0)
    first, second = DatasetCatalog.get(NAME)
    assert first["sem_seg_file_name"] == str(tmp_path / "masks/a.png")
    assert second["file_name"] == str(tmp_path / "photos/b.png")
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.stuff_classes, metadata.ignore_label) == (["x", "y"], 0)
    assert len(metadata.stuff_colors) == 2


def test_images_of_several_formats_are_refused(declare, tmp_path):
    write_images(tmp_path / "photos", "a.jpg", "b.png")
    write_images(tmp_path / "masks", "a.png", "b.png")
    declare(TYPE="sem_seg_folders", IMAGES="photos", LABELS="masks", CLASSES=["x"])
    with pytest.raises(DatasetError, match="photos has images that end in jpg, png"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"CLASSES": "road"}, r"REGISTER\[0\]\.CLASSES is 'road'"),
        ({"CLASSES": []}, r"CLASSES is \[\]"),
        ({"CLASSES": ["x"], "IGNORE_LABEL": "none"}, r"IGNORE_LABEL is 'none'"),
        ({}, r"lacks CLASSES"),
        ({"CLASSES": ["x"], "LABEL": "masks"}, r"unknown key 'LABEL'; did you mean 'LABELS'"),
    ],
)
def test_wrong_declaration_of_folders_says_what_is_expected(declare, changes, message):
    with pytest.raises(ConfigError, match=message):
        declare(TYPE="sem_seg_folders", IMAGES="photos", LABELS="masks", **changes)


# Panoptic files


@pytest.fixture
def panoptic_dataset(declare, tmp_path):
    """One image: segment 1 is the stuff 30, segment 2 the thing 20, and a pixel has none."""
    write_images(tmp_path / "photos", "a.jpg")
    (tmp_path / "panoptic").mkdir()
    ids = np.zeros((4, 6, 3), dtype=np.uint8)
    ids[..., 0] = 1
    ids[1:3, 1:3, 0] = 2
    ids[0, 0, 0] = 0
    Image.fromarray(ids).save(tmp_path / "panoptic/a.png")
    segments = [{"id": 1, "category_id": 30, "iscrowd": 0}, {"id": 2, "category_id": 20, "iscrowd": 0}]
    thing, stuff = {"id": 20, "name": "cell", "isthing": 1}, {"id": 30, "name": "glass", "isthing": 0}
    images = [{"id": 9, "file_name": "a.jpg", "height": 4, "width": 6}]
    panoptic = [{"image_id": 9, "file_name": "a.png", "segments_info": segments}]
    write = {"images": images, "annotations": panoptic, "categories": [stuff, thing]}
    (tmp_path / "panoptic.json").write_text(json.dumps(write))
    annotation = {"id": 1, "image_id": 9, "category_id": 20, "bbox": [1, 1, 2, 2], "iscrowd": 0, "area": 4}
    write = {"images": images, "annotations": [annotation], "categories": [{"id": 20, "name": "cell"}]}
    (tmp_path / "instances.json").write_text(json.dumps(write))
    declare(
        TYPE="coco_panoptic", JSON="panoptic.json", IMAGES="photos", PANOPTIC="panoptic", INSTANCES="instances.json"
    )
    return tmp_path


def test_panoptic_sample_has_instances_segments_and_labels(panoptic_dataset):
    (sample,) = DatasetCatalog.get(NAME)
    assert sample["annotations"][0]["category_id"] == 0
    assert sample["pan_seg_file_name"] == str(panoptic_dataset / "panoptic/a.png")
    assert [segment["sem_seg_label"] for segment in sample["segments_info"]] == [1, 0]
    labels = semantic_labels_of(sample)
    assert labels[0].tolist() == [255, 1, 1, 1, 1, 1]
    assert labels[1].tolist() == [1, 0, 0, 1, 1, 1]


def test_panoptic_metadata_is_what_evaluators_and_drawings_read(panoptic_dataset):
    DatasetCatalog.get(NAME)
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.thing_classes, metadata.stuff_classes) == (["cell"], ["things", "glass"])
    assert metadata.thing_dataset_id_to_contiguous_id == {20: 0}
    assert metadata.stuff_dataset_id_to_contiguous_id == {0: 0, 30: 1}
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.panoptic_json == str(panoptic_dataset / "panoptic.json")
    assert len(metadata.stuff_colors) == 2


def test_things_that_differ_between_the_two_files_are_shown(panoptic_dataset):
    content = json.loads((panoptic_dataset / "instances.json").read_text())
    content["categories"] = [{"id": 20, "name": "nucleus"}]
    (panoptic_dataset / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"instances\.json has the categories {20: 'nucleus'}, but .*{20: 'cell'}"):
        DatasetCatalog.get(NAME)


def test_image_without_panoptic_entry_is_named(panoptic_dataset):
    content = json.loads((panoptic_dataset / "instances.json").read_text())
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = 8
    (panoptic_dataset / "instances.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"1 images of .*instances\.json are not in .*panoptic\.json, .*a\.jpg"):
        DatasetCatalog.get(NAME)


def test_missing_folder_of_a_declaration_is_named(panoptic_dataset):
    (panoptic_dataset / "panoptic/a.png").unlink()
    (panoptic_dataset / "panoptic").rmdir()
    with pytest.raises(MissingFileError, match=r"REGISTER\[0\]\.PANOPTIC is '.*panoptic'"):
        DatasetCatalog.get(NAME)
