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
