"""What a node's module is built from: its type, its kwargs, and the shapes that come from its prev."""

import logging

import pytest
import torch
from torch import nn

from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.utils.errors import ConfigError, ConfigTypeError

PYRAMID = "- {name: trunk, type: pyramid}\n"  # a: 4 channels, stride 2; b: 8 channels, stride 4
ONE = "- {name: trunk, type: pyramid, kwargs: {planes: [4], strides: [2], names: [a]}}\n"
SEEN = "- {name: seen, type: seen, prev: trunk}\n"


@pytest.fixture
def given(zoo):
    """What was given to the module of type "seen", by the names of its arguments."""
    given = {}

    def seen(
        input_shape=None,
        in_planes=None,
        inplanes=None,
        in_channels=None,
        in_strides=None,
        node_name=None,
        cfg=None,
        num_classes=None,
    ):
        given.update(locals())
        return nn.Identity()

    zoo.register("seen", seen)
    return given


@pytest.mark.parametrize("name", ["in_planes", "inplanes", "in_channels"])
@pytest.mark.parametrize(("trunk", "channels", "strides"), [(ONE, 4, 2), (PYRAMID, [4, 8], [2, 4])])
def test_channels_of_prev_are_a_number_for_one_map_and_a_list_for_several(graph, given, name, trunk, channels, strides):
    graph(trunk + SEEN)
    assert (given[name], given["in_strides"]) == (channels, strides)


def test_shapes_of_prev_are_given_as_a_whole(graph, given):
    graph(PYRAMID + SEEN)
    assert given["input_shape"] == {"a": ShapeSpec(channels=4, stride=2), "b": ShapeSpec(channels=8, stride=4)}


def test_shapes_of_several_prev_are_joined_and_names_that_two_have_get_that_of_the_node(graph, given):
    other = "- {name: other, type: pyramid, kwargs: {planes: [5, 6], names: [b, c]}}\n"
    graph(PYRAMID + other + SEEN.replace("prev: trunk", "prev: [trunk, other]"))
    assert list(given["input_shape"]) == ["a", "trunk.b", "other.b", "c"]
    assert given["in_planes"] == [4, 8, 5, 6]


def test_node_without_prev_is_given_no_shapes(graph, given):
    graph(PYRAMID + "- {name: seen, type: seen}\n")
    assert given["input_shape"] is given["in_planes"] is given["in_strides"] is None


def test_module_learns_its_name_and_the_config(graph, given):
    graph("- {name: seen, type: seen, cfg: {SEED: 5}}\n")
    assert given["node_name"] == "seen"
    assert (given["cfg"].SEED, given["cfg"].MODEL.DEVICE) == (5, "cpu")
    assert given["cfg"].is_frozen()


def test_unknown_key_of_cfg_is_suggested(graph, given):
    with pytest.raises(KeyError, match=r"graph\.yaml:7: node 'seen': .*SEEED: did you mean SEED"):
        graph("- {name: seen, type: seen, cfg: {SEEED: 5}}\n")


def test_argument_in_kwargs_wins_with_a_warning_if_it_differs(graph, given, caplog):
    with caplog.at_level(logging.WARNING):
        graph(ONE + "- {name: seen, type: seen, prev: trunk, kwargs: {in_planes: 7, in_strides: 2}}")
    assert (given["in_planes"], given["in_strides"]) == (7, 2)
    assert "graph.yaml:8: node 'seen' has in_planes 7, but prev gives 4; the former is used" in caplog.text
    assert "in_strides" not in caplog.text


def test_capitals_in_kwargs_are_arguments_in_small_letters(graph, given):
    graph(ONE + "- {name: seen, type: seen, prev: trunk, kwargs: {NUM_CLASSES: 7}}")
    assert given["num_classes"] == 7


class Planes(nn.Module):
    """Tells its shape as upstream's modules do."""

    def __init__(self, planes, strides=None):
        super().__init__()
        self.get_outplanes = lambda: planes
        if strides is not None:
            self.get_outstrides = lambda: strides


@pytest.mark.parametrize(
    ("arguments", "shapes"),
    [
        ("planes: 4", {"f0": (4, None)}),
        ("planes: [4, 8]", {"f0": (4, None), "f1": (8, None)}),
        ("planes: [4, 8], strides: [2, 4]", {"f0": (4, 2), "f1": (8, 4)}),
        ("planes: 4, strides: 2", {"f0": (4, 2)}),
    ],
)
def test_shapes_come_from_get_outplanes_and_get_outstrides(graph, given, zoo, arguments, shapes):
    zoo.register("planes", Planes)
    graph(f"- {{name: trunk, type: planes, kwargs: {{{arguments}}}}}\n" + SEEN)
    assert {name: (shape.channels, shape.stride) for name, shape in given["input_shape"].items()} == shapes


def test_planes_and_strides_of_different_lengths_are_refused(graph, zoo):
    zoo.register("planes", Planes)
    with pytest.raises(ValueError, match=r"graph\.yaml:7: node 'trunk': planes: "):
        graph("- {name: trunk, type: planes, kwargs: {planes: [4, 8], strides: [2]}}\n")


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ("{depth: 1, out_plane: [8]}", r"CustomNet\(depth, out_planes\) takes no out_plane; did you mean out_planes\?"),
        ("{depth: 1}", r"CustomNet\(depth, out_planes\) needs out_planes, .*kwargs are \{'depth': 1\}"),
        ("{depth: 1, out_planes: 8}", r"CustomNet\(depth, out_planes\) was called with depth=1, out_planes=8: .*len"),
    ],
)
def test_arguments_that_do_not_fit_are_shown_with_the_signature(graph, kwargs, said):
    with pytest.raises(ConfigTypeError, match=rf"graph\.yaml:7: node 'trunk': {said}") as caught:
        graph(f"- {{name: trunk, type: custom_net, kwargs: {kwargs}}}")
    assert isinstance(caught.value, TypeError)


def test_module_for_one_map_that_gets_several_is_told_so(graph):
    head = "- {name: head, type: custom_head, prev: trunk, kwargs: {num_classes: 3}}"
    with pytest.raises(
        TypeError, match=r"yaml:8: node 'head': .*in_planes=\[4, 8\], num_classes=3, as prev gives a, b"
    ):
        graph(PYRAMID + head)


def test_module_that_needs_channels_of_a_prev_without_shapes_is_told_so(graph):
    nodes = ONE + "".join(
        f"- {{name: {name}, type: custom_head, prev: {prev}, kwargs: {{num_classes: 3}}}}\n"
        for name, prev in (("head", "trunk"), ("second", "head"))
    )
    with pytest.raises(
        ValueError, match=r"yaml:9: node 'second': CustomHead needs in_planes, but prev head declares no"
    ):
        graph(nodes)


@pytest.mark.parametrize(
    "kind", [KeyError, TypeError, ValueError, RuntimeError, ImportError, AssertionError, ZeroDivisionError]
)
def test_error_of_a_constructor_names_the_node_and_keeps_its_kind(graph, zoo, kind):
    def fail():
        raise kind("it broke")

    zoo.register("broken", fail)
    with pytest.raises(ConfigError, match=r"graph\.yaml:7: node 'a': .*it broke") as caught:
        graph("- {name: a, type: broken}")
    assert isinstance(caught.value, kind) or kind is ZeroDivisionError
    assert isinstance(caught.value.__cause__, kind)


def test_error_of_a_constructor_tells_the_line_of_code(graph, zoo):
    class Forgetful(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(1, 1)  # before super().__init__()

    zoo.register("forgetful", Forgetful)
    line = Forgetful.__init__.__code__.co_firstlineno + 1
    with pytest.raises(
        ConfigError, match=rf"forgetful: AttributeError: cannot assign module .*\(test_build.py:{line}\)"
    ):
        graph("- {name: a, type: forgetful}")


def test_type_that_gives_no_module_is_refused(graph, zoo):
    zoo.register("number", lambda: 3)
    with pytest.raises(TypeError, match=r"yaml:7: node 'a': number gave a int; it must give a torch\.nn\.Module"):
        graph("- {name: a, type: number}")


def test_unknown_type_suggests_whatever_the_case(graph):
    for written, meant in (("custm_net", "custom_net"), ("retinanet", "RetinaNet"), ("Backbone", "backbone")):
        with pytest.raises(
            KeyError, match=rf"yaml:7: node 'a' has the unknown type '{written}'; did you mean '{meant}'"
        ):
            graph(f"- {{name: a, type: {written}}}")


def test_unknown_type_points_at_custom_imports(graph):
    with pytest.raises(KeyError, match="Is its module in CUSTOM_IMPORTS"):
        graph("- {name: a, type: something_else}")


@pytest.mark.parametrize("path", ["torch.nn.Linea", "no_such_package.Net", "torch.nn.no_such_module.Net"])
def test_path_at_which_nothing_can_be_imported_is_an_import_error(graph, path):
    with pytest.raises(ImportError, match=rf"yaml:7: node 'a' has the type '{path}': nothing can be imported"):
        graph(f"- {{name: a, type: {path}, inputs: [image], outputs: [b]}}")


def test_path_whose_module_fails_is_an_import_error_that_tells_why(graph, tmp_path, monkeypatch):
    (tmp_path / "broken_parts.py").write_text("import no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"node 'a' has the type 'broken_parts\.Net'.*no_such_thing"):
        graph("- {name: a, type: broken_parts.Net}")


def test_path_of_a_module_is_no_type(graph):
    with pytest.raises(TypeError, match=r"node 'a': torch\.utils\.data is a module, rather than a class or a function"):
        graph("- {name: a, type: torch.utils.data}")


def test_path_of_a_class_builds_it_and_functions_build_what_they_return(graph, tmp_path, monkeypatch):
    source = (
        "from torch import nn\nclass Net(nn.Module):\n    pass\ndef make(width=3): return nn.Linear(width, width)\n"
    )
    (tmp_path / "parts_of_mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    model = graph("- {name: a, type: parts_of_mine.Net}\n- {name: b, type: parts_of_mine.make, kwargs: {width: 5}}")
    assert type(model.nodes.a).__name__ == "Net"
    assert model.nodes.b.weight.shape == (5, 5)


def test_class_can_have_several_aliases(graph, zoo):
    @zoo.register("first")
    @zoo.register("second")
    class Net(nn.Module):
        pass

    zoo.register("third", Net)
    model = graph("\n".join(f"- {{name: {name}, type: {name}}}" for name in ("first", "second", "third")))
    assert [type(module) for module in model.nodes.values()] == [Net, Net, Net]


def test_alias_that_is_taken_is_a_key_error_that_names_both_classes(zoo):
    class Another(nn.Module):
        pass

    with pytest.raises(KeyError, match=r"'custom_net' already: it is .*CustomNet, and .*Another was to get"):
        zoo.register("custom_net", Another)


def test_alias_is_case_sensitive(graph):
    with pytest.raises(KeyError, match="unknown type 'Custom_Net'; did you mean 'custom_net'"):
        graph("- {name: a, type: Custom_Net}")


def test_model_is_on_the_device_of_the_config(graph_cfg):
    model = build_model(graph_cfg(ONE))
    assert model.device == torch.device("cpu")
