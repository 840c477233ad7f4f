import collections
import json

import pytest

from detlib.utils.errors import DetlibError, DuplicateNameError, UnknownNameError
from detlib.utils.registry import Registry, _convert_target_to_string, locate


def make_registry():
    registry = Registry("META_ARCH")

    @registry.register()
    class RetinaNet:
        pass

    registry.register(dict)
    return registry, RetinaNet


def test_registered_objects_are_found_by_name():
    registry, retinanet = make_registry()
    assert registry.get("RetinaNet") is retinanet
    assert registry.get("dict") is dict
    assert "FCOS" not in registry


def test_failed_lookup_names_the_closest_and_all_known():
    registry, _ = make_registry()
    with pytest.raises(UnknownNameError) as caught:
        registry.get("Retinanet")
    assert str(caught.value).startswith(
        "META_ARCH has no 'Retinanet'; did you mean 'RetinaNet'? Known: RetinaNet, dict."
    )


def test_failed_lookup_is_a_key_error_and_an_error_of_detlib():
    with pytest.raises(KeyError):
        Registry("X").get("a")
    with pytest.raises(DetlibError, match="Known: nothing yet"):
        Registry("X").get("a")


def test_locate_finds_modules_and_what_is_in_them():
    assert locate("json") is json
    assert locate("collections.OrderedDict.fromkeys") == collections.OrderedDict.fromkeys


def test_locate_says_what_it_cannot_find():
    with pytest.raises(ImportError, match=r"'json\.nothing'"):
        locate("json.nothing")


def test_target_string_is_the_shortest_path():
    assert _convert_target_to_string(json.JSONDecoder) == "json.JSONDecoder"  # It is defined in json.decoder.


def test_object_can_have_a_name_of_its_own():
    registry = Registry("LOSS")

    @registry.register("mine")
    def my_loss(): ...

    registry.register(my_loss, name="again")
    assert registry.get("mine") is registry.get("again") is my_loss
    assert "my_loss" not in registry


def test_name_that_is_taken_is_an_error_that_names_both_objects():
    registry, _ = make_registry()

    class RetinaNet:
        pass

    with pytest.raises(DuplicateNameError) as caught:
        registry.register(RetinaNet)
    message = str(caught.value)
    assert "META_ARCH has 'RetinaNet' already" in message
    assert "make_registry.<locals>.RetinaNet" in message and "both_objects.<locals>.RetinaNet" in message
    assert isinstance(caught.value, AssertionError)  # What projects may catch.


def test_failed_lookup_finds_the_name_in_other_capitals():
    registry, _ = make_registry()
    with pytest.raises(UnknownNameError, match="did you mean 'RetinaNet'"):
        registry.get("RETINANET")
