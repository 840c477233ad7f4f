import pytest

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import builtin
from detlib.data.datasets.builtin_meta import (
    COCO_CATEGORIES,
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
    KEYPOINT_CONNECTION_RULES,
)
from detlib.utils.errors import MissingFileError


def test_coco_has_80_things_and_53_kinds_of_stuff():
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    assert (len(things), len(COCO_CATEGORIES)) == (80, 133)
    assert len({category["id"] for category in COCO_CATEGORIES}) == 133
    assert {c["id"]: c["name"] for c in things}[90] == "toothbrush"


def test_person_keypoints_have_names_flips_and_lines():
    assert len(COCO_PERSON_KEYPOINT_NAMES) == 17
    assert {name for pair in COCO_PERSON_KEYPOINT_FLIP_MAP for name in pair} == set(COCO_PERSON_KEYPOINT_NAMES[1:])
    assert len(KEYPOINT_CONNECTION_RULES) == 14
    assert {name for a, b, _ in KEYPOINT_CONNECTION_RULES for name in (a, b)} == set(COCO_PERSON_KEYPOINT_NAMES)


def test_class_names_are_known_without_files():
    assert MetadataCatalog.get("coco_2017_val").thing_classes[:2] == ["person", "bicycle"]
    assert MetadataCatalog.get("keypoints_coco_2017_val").thing_classes == ["person"]
    assert len(MetadataCatalog.get("coco_2017_val_panoptic_separated").stuff_classes) == 54


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("coco_2014_minival", "coco/annotations/instances_minival2014.json"),
        ("coco_2017_test-dev", "coco/annotations/image_info_test-dev2017.json"),
        ("keypoints_coco_2017_val_100", "coco/annotations/person_keypoints_val2017_100.json"),
        ("coco_2017_val_100_panoptic", "coco/annotations/panoptic_val2017_100.json"),
        ("coco_2017_train_panoptic_stuffonly", "coco/panoptic_stuff_train2017"),
    ],
)
def test_missing_files_name_the_variable_and_the_expected_tree(name, path, tmp_path, monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})
    builtin.register_all_coco(str(tmp_path))
    with pytest.raises(MissingFileError, match=rf"'{name}' lacks .*DETLIB_DATASETS.*{path}"):
        DatasetCatalog.get(name)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "datasets"),
        ({"DETECTRON2_DATASETS": "/old"}, "/old"),
        ({"DETECTRON2_DATASETS": "/old", "DETLIB_DATASETS": "/new"}, "/new"),
    ],
)
def test_folder_of_datasets_comes_from_the_environment(monkeypatch, variables, expected):
    for variable in ("DETLIB_DATASETS", "DETECTRON2_DATASETS"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert builtin.datasets_root() == expected
