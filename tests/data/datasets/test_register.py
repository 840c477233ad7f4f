import json

import pytest

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import register_datasets
from detlib.utils.errors import ConfigError, MissingFileError

NAME = "declared_test"


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Registers declarations as if they stood in a config file in the current directory."""
    monkeypatch.chdir(tmp_path)

    def run(*declarations):
        cfg = get_cfg()
        cfg.DATASETS.REGISTER = list(declarations)
        register_datasets(cfg)

    return run


def declare(**changes):
    return {"NAME": NAME, "TYPE": "coco", "JSON": "labels.json", "IMAGES": "photos", **changes}


def write_dataset(folder):
    images = [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    (folder / "labels.json").write_text(json.dumps(content))
    (folder / "photos").mkdir()


def test_declared_dataset_loads_from_paths_relative_to_the_current_directory(register, tmp_path, monkeypatch):
    write_dataset(tmp_path)
    register(declare())
    monkeypatch.chdir("/")
    assert DatasetCatalog.get(NAME)[0]["file_name"] == str(tmp_path / "photos" / "a.jpg")
    assert MetadataCatalog.get(NAME).thing_classes == ["cell"]


def test_environment_variables_in_paths_are_expanded(register, tmp_path, monkeypatch):
    write_dataset(tmp_path)
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    register(declare(JSON="$MY_DATA/labels.json", IMAGES="~/photos"))
    assert len(DatasetCatalog.get(NAME)) == 1


def test_same_declaration_twice_changes_nothing(register):
    register(declare(), declare())
    register(declare())
    assert NAME in DatasetCatalog


def test_other_declaration_of_the_same_name_is_refused(register):
    register(declare())
    with pytest.raises(ConfigError, match=r"DATASETS\.REGISTER\[0\]\.NAME: 'declared_test' is already"):
        register(declare(JSON="other.json"))


def test_task_of_a_declaration_is_in_the_metadata(register):
    register(declare(TASK="det"))
    assert MetadataCatalog.get(NAME).task == "det"


def test_same_declaration_for_another_task_is_refused(register):
    register(declare(TASK="det"))
    with pytest.raises(ConfigError, match="'declared_test' is already the name of other data"):
        register(declare(TASK="cls"))


def test_task_that_is_no_string_is_refused(register):
    with pytest.raises(ConfigError, match=r"REGISTER\[0\]\.TASK is \['det'\]; expected a string"):
        register(declare(TASK=["det"]))


def test_name_of_a_built_in_dataset_is_refused(register):
    with pytest.raises(ConfigError, match="'coco_2017_val' is already"):
        register(declare(NAME="coco_2017_val"))


@pytest.mark.parametrize(("key", "value"), [("JSON", "nowhere.json"), ("IMAGES", "nowhere")])
def test_missing_file_names_dataset_key_and_path(register, tmp_path, key, value):
    write_dataset(tmp_path)
    register(declare(**{key: value}))
    with pytest.raises(MissingFileError, match=rf"declared_test.*DATASETS\.REGISTER\[0\]\.{key} is '.*{value}'"):
        DatasetCatalog.get(NAME)


def test_unknown_key_suggests_the_closest(register):
    with pytest.raises(ConfigError, match=r"unknown key 'IMAGE'; did you mean 'IMAGES'"):
        register(declare(IMAGE="photos"))


def test_missing_key_is_named(register):
    declaration = declare()
    del declaration["JSON"]
    with pytest.raises(ConfigError, match=r"DATASETS\.REGISTER\[1\] lacks JSON"):
        register(declare(), declaration)


@pytest.mark.parametrize("type_name", ["COCO", None, "voc"])
def test_unknown_type_lists_the_known_ones(register, type_name):
    with pytest.raises(ConfigError, match=r"TYPE is .*Known: coco"):
        register(declare(TYPE=type_name))


def test_entry_that_is_no_mapping_shows_the_expected_form(register):
    with pytest.raises(ConfigError, match=r"expected \{NAME: "):
        register("labels.json")


def test_path_that_is_no_string_is_refused(register):
    with pytest.raises(ConfigError, match=r"REGISTER\[0\]\.JSON is None"):
        register(declare(JSON=None))


def write_voc(folder):
    for name in ("ImageSets/Main", "Annotations"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("1\n")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>3</ymax></bndbox>"
    found = f"<object><name>robin</name>{box}</object>"
    page = f"<annotation><size><width>4</width><height>5</height></size>{found}</annotation>"
    (folder / "Annotations/1.xml").write_text(page)


def declare_voc(**changes):
    return {"NAME": NAME, "TYPE": "pascal_voc", "ROOT": "birds", "SPLIT": "train", **changes}


@pytest.mark.parametrize(("years", "year"), [({}, 2012), ({"YEAR": 2007}, 2007)])
def test_declared_voc_detects_the_classes_that_it_names(register, tmp_path, years, year):
    write_voc(tmp_path / "birds")
    register(declare_voc(CLASSES=["wren", "robin"], **years))
    assert DatasetCatalog.get(NAME)[0]["annotations"][0]["category_id"] == 1
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.thing_classes, metadata.year) == (["wren", "robin"], year)


def test_declared_voc_has_the_20_classes_by_default(register):
    register(declare_voc())
    assert len(MetadataCatalog.get(NAME).thing_classes) == 20


def test_declared_voc_classifies_with_several_labels(register, tmp_path):
    write_voc(tmp_path / "birds")
    register(declare_voc(TYPE="voc_multi_label", CLASSES=["wren", "robin"]))
    assert DatasetCatalog.get(NAME)[0]["labels"] == [1]
    assert MetadataCatalog.get(NAME).classes == ("wren", "robin")


def test_declared_image_folder_takes_its_classes_from_folders(register, tmp_path):
    (tmp_path / "leaves/oak").mkdir(parents=True)
    (tmp_path / "leaves/oak/1.jpg").touch()
    register({"NAME": NAME, "TYPE": "image_folder", "IMAGES": "leaves"})
    assert DatasetCatalog.get(NAME)[0]["label"] == 0
    assert MetadataCatalog.get(NAME).classes == ("oak",)


def test_declared_images_need_no_folders_of_classes(register, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").touch()
    register({"NAME": NAME, "TYPE": "images", "IMAGES": "photos"})
    assert DatasetCatalog.get(NAME) == [{"file_name": f"{tmp_path}/photos/1.jpg", "image_id": "1.jpg"}]


def test_declared_list_of_images_is_looked_for_like_other_files(register, tmp_path):
    (tmp_path / "leaves").mkdir()
    (tmp_path / "leaves/1.jpg").touch()
    classes = ["elm", "oak"]
    register({"NAME": NAME, "TYPE": "image_folder", "IMAGES": "leaves", "ANNOTATIONS": "a.txt", "CLASSES": classes})
    with pytest.raises(MissingFileError, match=r"REGISTER\[0\]\.ANNOTATIONS is '.*a\.txt', which does not exist"):
        DatasetCatalog.get(NAME)
    (tmp_path / "a.txt").write_text("1.jpg 1\n")
    assert DatasetCatalog.get(NAME)[0]["label"] == 1


@pytest.mark.parametrize(
    ("type_name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
def test_declared_cifar_says_where_to_get_it(register, tmp_path, type_name, folder):
    register({"NAME": NAME, "TYPE": type_name, "ROOT": "data", "SPLIT": "test"})
    with pytest.raises(MissingFileError, match=rf"fetch https://.*-python\.tar\.gz .*{tmp_path}/data/{folder}"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        ({"TYPE": "cifar10", "ROOT": "data", "SPLIT": "val"}, r"\.SPLIT is 'val'; expected 'train' or 'test'"),
        ({"TYPE": "cifar10", "ROOT": "data"}, r"lacks SPLIT; .*needs NAME, TYPE, ROOT, SPLIT$"),
        ({"TYPE": "pascal_voc", "ROOT": "data", "SPLIT": "a", "YEAR": "2007"}, r"\.YEAR is '2007'; expected a whole"),
        ({"TYPE": "image_folder", "IMAGES": "a", "CLASSES": "oak"}, r"\.CLASSES is 'oak'; expected the names"),
        ({"TYPE": "image_folder", "IMAGES": "a", "ANNOTATIONS": 3}, r"\.ANNOTATIONS is 3; expected a string"),
        ({"TYPE": "image_folder", "IMAGES": "a", "ANNOTATIONS": "a.txt"}, "give their names, too, in CLASSES"),
        (
            {"TYPE": "image_folder", "IMAGES": "a", "LABELS": "b"},
            r"unknown key 'LABELS'; .*ANNOTATIONS, CLASSES",
        ),
    ],
)
def test_declaration_with_a_mistake_says_which(register, declaration, message):
    with pytest.raises(ConfigError, match=message):
        register({"NAME": NAME, **declaration})
