import pickle

import pytest

from detlib.data import DatasetCatalog, Metadata, MetadataCatalog
from detlib.utils.errors import DatasetError, UnknownNameError


@pytest.fixture
def name():
    yield "catalog_test"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "catalog_test" in catalog:
            catalog.remove("catalog_test")


def test_dataset_is_loaded_when_asked_for_and_not_before(name):
    calls = []
    DatasetCatalog.register(name, lambda: calls.append(1) or [{"file_name": "a.jpg"}])
    assert calls == []
    assert name in DatasetCatalog.list()
    assert DatasetCatalog.get(name) == [{"file_name": "a.jpg"}]
    assert calls == [1]


def test_name_cannot_be_registered_twice(name):
    DatasetCatalog.register(name, list)
    with pytest.raises(DatasetError, match=r"DatasetCatalog\.remove\('catalog_test'\)"):
        DatasetCatalog.register(name, list)


def test_samples_instead_of_a_function_are_refused(name):
    with pytest.raises(TypeError, match="function"):
        DatasetCatalog.register(name, [{"file_name": "a.jpg"}])


def test_unknown_dataset_suggests_the_closest_name(name):
    DatasetCatalog.register(name, list)
    with pytest.raises(UnknownNameError, match="did you mean 'catalog_test'"):
        DatasetCatalog.get("catalog_tset")
    with pytest.raises(KeyError):  # What the field's code catches.
        DatasetCatalog.get("nothing like it")


def test_removed_dataset_is_gone_and_its_metadata_stays(name):
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).thing_classes = ["a"]
    DatasetCatalog.remove(name)
    assert name not in DatasetCatalog
    assert MetadataCatalog.get(name).thing_classes == ["a"]


def test_metadata_is_the_same_object_for_the_same_name(name):
    assert MetadataCatalog.get(name) is MetadataCatalog.get(name)
    assert MetadataCatalog.get(name).name == name
    assert name in MetadataCatalog.list()


def test_metadata_may_be_set_again_to_the_same_value_only():
    metadata = Metadata(name="cells").set(thing_classes=["RBC"])
    metadata.thing_classes = ["RBC"]
    with pytest.raises(DatasetError, match=r"'cells'.*RBC.*WBC"):
        metadata.thing_classes = ["WBC"]


def test_missing_metadata_names_dataset_key_and_what_there_is():
    with pytest.raises(AttributeError, match="'cells' has no 'stuff_classes'; known keys: name, thing_classes"):
        _ = Metadata(name="cells", thing_classes=["RBC"]).stuff_classes


def test_metadata_get_gives_the_default_for_a_missing_key():
    metadata = Metadata(name="cells", thing_classes=["RBC"])
    assert metadata.get("thing_classes") == ["RBC"]
    assert metadata.get("stuff_classes") is None
    assert metadata.get("stuff_classes", []) == []
    assert not hasattr(metadata, "stuff_classes")


def test_metadata_as_dict_is_a_copy():
    metadata = Metadata(name="cells")
    metadata.as_dict()["name"] = "other"
    assert metadata.name == "cells"


def test_metadata_survives_pickling():
    assert pickle.loads(pickle.dumps(Metadata(name="cells", n=1))).as_dict() == {"name": "cells", "n": 1}
