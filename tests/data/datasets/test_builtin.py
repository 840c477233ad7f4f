import pytest

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import builtin, cityscapes_panoptic
from detlib.data.datasets.builtin_meta import (
    ADE20K_SEM_SEG_CATEGORIES,
    CITYSCAPES_CATEGORIES,
    COCO_CATEGORIES,
    COCO_PERSON_KEYPOINT_FLIP_MAP,
    COCO_PERSON_KEYPOINT_NAMES,
    KEYPOINT_CONNECTION_RULES,
)
from detlib.utils.errors import MissingFileError

KNOWN_NAMES = """
ade20k_sem_seg_train ade20k_sem_seg_val cifar100_test cifar100_train cifar10_test cifar10_train
cityscapes_fine_instance_seg_test cityscapes_fine_instance_seg_train cityscapes_fine_instance_seg_val
cityscapes_fine_panoptic_train cityscapes_fine_panoptic_val cityscapes_fine_sem_seg_test cityscapes_fine_sem_seg_train
cityscapes_fine_sem_seg_val coco_2014_minival coco_2014_train coco_2014_val coco_2014_valminusminival coco_2017_test
coco_2017_test-dev coco_2017_train coco_2017_train_panoptic coco_2017_train_panoptic_separated
coco_2017_train_panoptic_stuffonly coco_2017_val coco_2017_val_100 coco_2017_val_100_panoptic
coco_2017_val_100_panoptic_separated coco_2017_val_100_panoptic_stuffonly coco_2017_val_panoptic
coco_2017_val_panoptic_separated coco_2017_val_panoptic_stuffonly imagenet_1k_train imagenet_1k_val
keypoints_coco_2014_minival keypoints_coco_2014_train keypoints_coco_2014_val keypoints_coco_2014_valminusminival
keypoints_coco_2017_train keypoints_coco_2017_val keypoints_coco_2017_val_100 lvis_v0.5_test lvis_v0.5_train
lvis_v0.5_train_cocofied lvis_v0.5_val lvis_v0.5_val_cocofied lvis_v0.5_val_rand_100 lvis_v1_test_challenge
lvis_v1_test_dev lvis_v1_train lvis_v1_val voc_2007_test voc_2007_train voc_2007_trainval voc_2007_val voc_2012_train
voc_2012_trainval voc_2012_val
"""


def test_coco_has_80_things_and_53_kinds_of_stuff():
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    assert (len(things), len(COCO_CATEGORIES)) == (80, 133)
    assert len({category["id"] for category in COCO_CATEGORIES}) == 133
    assert {c["id"]: c["name"] for c in things}[90] == "toothbrush"


def test_cityscapes_has_19_classes_in_the_order_of_train_ids():
    assert [category["trainId"] for category in CITYSCAPES_CATEGORIES] == list(range(19))
    assert [c["name"] for c in CITYSCAPES_CATEGORIES if c["isthing"]][:3] == ["person", "rider", "car"]
    assert {c["name"]: c["id"] for c in CITYSCAPES_CATEGORIES}["bicycle"] == 33


def test_ade20k_has_150_classes():
    assert len(ADE20K_SEM_SEG_CATEGORIES) == len(set(ADE20K_SEM_SEG_CATEGORIES)) == 150
    assert (ADE20K_SEM_SEG_CATEGORIES[12], ADE20K_SEM_SEG_CATEGORIES[149]) == ("person", "flag")


def test_all_known_names_are_registered():
    public = [name for name in DatasetCatalog.list() if not name.startswith("shapes")]
    assert sorted(public) == sorted(KNOWN_NAMES.split())


@pytest.mark.parametrize(
    ("name", "evaluator_type"),
    [
        ("coco_2017_val", "coco"),
        ("keypoints_coco_2017_val", "coco"),
        ("coco_2017_val_panoptic", "coco_panoptic_seg"),
        ("coco_2017_val_panoptic_separated", "coco_panoptic_seg"),
        ("coco_2017_val_panoptic_stuffonly", "sem_seg"),
        ("lvis_v1_val", "lvis"),
        ("cityscapes_fine_instance_seg_val", "cityscapes_instance"),
        ("cityscapes_fine_sem_seg_val", "cityscapes_sem_seg"),
        ("cityscapes_fine_panoptic_val", "cityscapes_panoptic_seg"),
        ("voc_2007_test", "pascal_voc"),
        ("ade20k_sem_seg_val", "sem_seg"),
        ("cifar10_test", "image_classification"),
        ("imagenet_1k_val", "image_classification"),
    ],
)
def test_evaluator_of_each_kind_is_known(name, evaluator_type):
    assert MetadataCatalog.get(name).evaluator_type == evaluator_type


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
        ("lvis_v1_val", "lvis/lvis_v1_val.json"),
        ("lvis_v0.5_val_cocofied", "lvis/lvis_v0.5_val_cocofied.json"),
        ("cityscapes_fine_instance_seg_train", "cityscapes/leftImg8bit/train, cityscapes/gtFine/train"),
        ("voc_2012_trainval", "VOC2012/ImageSets/Main/trainval.txt"),
        ("ade20k_sem_seg_val", "ADEChallengeData2016/annotations_detectron2/validation"),
        ("cifar100_test", "cifar-100-python/test, cifar-100-python/meta"),
        ("imagenet_1k_train", "imagenet/train"),
    ],
)
def test_missing_files_name_the_variable_and_the_expected_tree(name, path, tmp_path, monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})
    for group in ("coco", "lvis", "cityscapes", "pascal_voc", "ade20k", "cifar", "imagenet"):
        getattr(builtin, f"register_all_{group}")(str(tmp_path))
    with pytest.raises(MissingFileError, match=rf"'{name}' lacks .*DETLIB_DATASETS.*{path}.*builtin_datasets\.md"):
        DatasetCatalog.get(name)


def test_registering_reads_no_file(monkeypatch):
    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})

    def read(*args, **kwargs):
        raise AssertionError(f"{args} was read")

    for module, name in (("builtins", "open"), ("os", "stat"), ("os", "listdir"), ("os", "scandir")):
        monkeypatch.setattr(f"{module}.{name}", read)
    for group in ("coco", "lvis", "cityscapes", "pascal_voc", "ade20k", "cifar", "imagenet"):
        getattr(builtin, f"register_all_{group}")("anywhere")
    cityscapes_panoptic.register_all_cityscapes_panoptic("anywhere")
    names = len(DatasetCatalog)
    monkeypatch.undo()
    assert names == 58


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
