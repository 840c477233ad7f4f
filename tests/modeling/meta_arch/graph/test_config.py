"""What the nodes of a config are read as, and how mistakes in them are reported."""

import logging
import re

import pytest
from torch import nn

from detlib.config import get_cfg
from detlib.modeling import build_model
from detlib.modeling.meta_arch.graph.config import read_nodes
from detlib.utils.errors import ConfigError, ConfigKeyError, ConfigTypeError

TRUNK = "- {name: trunk, type: custom_net, kwargs: {depth: 1, out_planes: [8]}}\n"
HEAD = "- {name: head, type: custom_head, prev: trunk, kwargs: {num_classes: 3}}\n"


def from_file(path, *overrides):
    cfg = get_cfg()
    cfg.merge_from_file(path)
    cfg.merge_from_list(list(overrides))
    return cfg


def test_node_has_what_its_keys_say(graph_cfg):
    (node,) = read_nodes(
        graph_cfg(
            """
            - name: head
              type: custom_head
              prev: null
              kwargs: {in_planes: 4}
              inputs: logits
              outputs: [score]
              rename: {input: {a: b}, output: {c: d}}
              tasks: [det, seg]
              loss_weights: {ce_loss: 2}
              freeze: true
              lr_factor: 0
              weights: a.pth
              tap: fc
              cfg: {MODEL: {MASK_ON: true}}
            """
        )
    )
    assert (node.name, node.type, node.prev, node.kwargs) == ("head", "custom_head", (), {"in_planes": 4})
    assert (node.inputs, node.outputs) == (("logits",), ("score",))
    assert (node.rename_inputs, node.rename_outputs) == ({"a": "b"}, {"c": "d"})
    assert (node.tasks, node.loss_weights, node.freeze, node.lr_factor) == (("det", "seg"), {"ce_loss": 2.0}, True, 0.0)
    assert (node.weights, node.taps, node.cfg_changes) == ("a.pth", ("fc",), {"MODEL": {"MASK_ON": True}})


def test_one_mapping_is_a_list_of_one_node(write):
    path = write("a.yaml", "MODEL: {MODULE_GRAPH: {NET: {name: trunk, type: custom_net}}}")
    (node,) = read_nodes(from_file(path))
    assert str(node) == f"{path}:1: node 'trunk'"


def test_kwarg_is_read_as_kwargs_with_a_warning(graph_cfg, caplog):
    cfg = graph_cfg("- {name: trunk, type: custom_net, kwarg: {depth: 1}}")
    with caplog.at_level(logging.WARNING):
        (node,) = read_nodes(cfg)
    assert node.kwargs == {"depth": 1}
    assert cfg.MODEL.MODULE_GRAPH.NET[0]["kwarg"] == {"depth": 1}
    assert re.search(r"graph\.yaml:7: node 'trunk': kwarg is read as kwargs", caplog.text)


@pytest.mark.parametrize(
    ("net", "line", "said"),
    [
        ("- {type: x}", 7, r"MODEL\.MODULE_GRAPH\.NET\[0\] needs a name; it has type"),
        ("- {name: a}", 7, "node 'a' needs a type; it has name"),
        ("- x", 6, r"NET\[0\] must be a mapping, as \{name: trunk, type: backbone\}; got 'x'"),
        ("trunk: {type: x}\nhead: {type: y}", 7, "must be a list of nodes, .* this one has only the keys trunk, head"),
        ("- trunk: {type: x}", 7, "must be a list of nodes, .* this one has only the keys trunk"),
        ("- name: a\n  type: x\n  kwrgs: {}", 9, "node 'a' has the unknown key 'kwrgs'; did you mean 'kwargs'"),
        ("- {NAME: a, type: x}", 7, r"NET\[0\] has the unknown key 'NAME'; did you mean 'name'"),
        ("- {name: a, type: x, depth: 3}", 7, "unknown key 'depth'.*arguments of its module go into kwargs"),
        ("- {name: a, type: x, kwarg: {}, kwargs: {}}", 7, "node 'a' has both kwargs and kwarg"),
        ("- {name: a, type: x}\n- {name: a, type: y}", 8, r"node 'a' has the name of the node at .*graph\.yaml:7"),
        ("- {name: a, type: x, outputs: [b]}", 7, "node 'a' has outputs but no inputs"),
        ("- {name: a, type: torch.nn.Linear}", 7, "torch.nn.Linear takes tensors, not the dict; name them, as inputs"),
    ],
)
def test_mistake_in_a_node_names_it_and_its_line(graph_cfg, net, line, said):
    with pytest.raises(ConfigError, match=rf"graph\.yaml:{line}: .*{said}"):
        read_nodes(graph_cfg(net))


@pytest.mark.parametrize("name", ["1a", "a-b", "a b", "''", "3", "on", "null", "[a]"])
def test_name_that_is_no_identifier_is_refused(graph_cfg, name):
    with pytest.raises(ConfigError, match=r"graph\.yaml:7: .*: name must be letters, digits and _"):
        read_nodes(graph_cfg(f"- {{name: {name}, type: x}}"))


@pytest.mark.parametrize("name", ["train", "forward", "keys", "training"])
def test_name_of_an_attribute_of_modules_is_refused(graph_cfg, name):
    with pytest.raises(ConfigError, match=rf"graph\.yaml:7: node '{name}': name cannot be '{name}'"):
        read_nodes(graph_cfg(f"- {{name: {name}, type: x}}"))


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("type: 3", "type must name a module"),
        ("prev: 3", r"prev must be a name or a list of names, as \[a, b\]; got 3"),
        ("prev: 'b, c'", "prev must be a name or a list of names, .* got 'b, c'"),
        ("prev: [[a]]", "prev must be a name or a list of names"),
        ("kwargs: [1]", r"kwargs must be a mapping from names; got \[1\]"),
        ("freeze: 1", "freeze must be true or false; got 1"),
        ("lr_factor: -1", "lr_factor must be a number, 0 or more; got -1"),
        ("lr_factor: true", "lr_factor must be a number"),
        ("lr_factor: .inf", "lr_factor must be a number"),
        ("loss_weights: {a: x}", "loss_weights must be a number, 0 or more; got 'x'"),
        ("weights: 3", "weights must be the path of a checkpoint; got 3"),
        ("rename: {a: b}", r"rename must be as \{input: "),
        ("rename: {input: {a: 1}}", r"rename must be as \{input: "),
        ("tasks: {a: b}", "tasks must be a name or a list"),
    ],
)
def test_value_of_a_wrong_type_names_its_key_and_line(graph_cfg, pair, said):
    net = f"- name: a\n  type: x\n  {pair}" if not pair.startswith("type") else f"- name: a\n\n  {pair}"
    with pytest.raises(ConfigError, match=rf"graph\.yaml:9: node 'a': {said}"):
        read_nodes(graph_cfg(net))


def test_empty_net_names_its_line(write):
    path = write("a.yaml", "MODEL:\n  MODULE_GRAPH: {NET: []}")
    with pytest.raises(ConfigError, match=rf"{path}:2: MODEL\.MODULE_GRAPH\.NET is empty"):
        read_nodes(from_file(path))
    with pytest.raises(ConfigError, match=r"default: .*NET is empty"):
        read_nodes(get_cfg())


@pytest.mark.parametrize(
    ("prevs", "said"),
    [
        ({"a": "null", "b": "aa"}, r":8: node 'b' has prev 'aa', and there is no such node; did you mean 'a'\? Before"),
        ({"a": "b", "b": "null"}, ":7: node 'a' has prev 'b', which must come earlier in the list; nodes run in their"),
        ({"a": "a"}, ":7: node 'a' has prev 'a', which must come earlier .*cycle: a -> a$"),
        ({"a": "b", "b": "a"}, ":7: node 'a' has prev 'b', which must come earlier .*cycle: a -> b -> a$"),
        ({"a": "[b]", "b": "[c]", "c": "a"}, ":7: node 'a' has prev 'b', .*cycle: a -> b -> c -> a$"),
        ({"a": "null", "b": "[a, c]", "c": "b"}, ":8: node 'b' has prev 'c', .*cycle: b -> c -> b$"),
    ],
)
def test_prev_must_be_an_earlier_node(graph_cfg, prevs, said):
    net = "\n".join(f"- {{name: {name}, type: x, prev: {prev}}}" for name, prev in prevs.items())
    with pytest.raises(ConfigError, match=said):
        read_nodes(graph_cfg(net))


def test_error_of_a_node_of_a_base_file_names_that_file(graph_cfg, write, tmp_path):
    graph_cfg("- {name: trunk, type: custom_nett}")
    child = write("child.yaml", "_BASE_: graph.yaml\nMODEL: {DEVICE: cpu}")
    with pytest.raises(KeyError, match=re.escape(f"{tmp_path}/graph.yaml:7: node 'trunk' has the unknown type")):
        build_model(from_file(child))


def test_node_changed_by_a_child_names_both_files(graph_cfg, write, tmp_path):
    graph_cfg(TRUNK + HEAD)
    child = write(
        "child.yaml", "_BASE_: graph.yaml\nMODEL:\n MODULE_GRAPH:\n  NET:\n   1:\n    kwargs: {num_clases: 4}\n"
    )
    said = rf"graph\.yaml:8: node 'head' \(changed: {child}:6\): CustomHead.* takes no num_clases; did you mean num_cl"
    with pytest.raises(ConfigTypeError, match=said):
        build_model(from_file(child))


def test_key_that_a_child_adds_names_the_line_of_the_child(graph_cfg, write):
    graph_cfg(TRUNK + HEAD)
    child = write("child.yaml", "_BASE_: graph.yaml\nMODEL: {MODULE_GRAPH: {NET: {1: {frezee: true}}}}")
    with pytest.raises(ConfigError, match=rf"{child}:2: node 'head' has the unknown key 'frezee'"):
        build_model(from_file(child))


def test_nodes_of_the_command_line_and_of_code_say_so(graph_cfg):
    net = [{"name": "trunk", "type": "custom_nett"}]
    with pytest.raises(KeyError, match=r"^command line: node 'trunk' has the unknown type 'custom_nett'"):
        build_model(graph_cfg(TRUNK, overrides=[f"MODEL.MODULE_GRAPH.NET={net}"]))
    cfg = graph_cfg(TRUNK)
    cfg.MODEL.MODULE_GRAPH.NET = net
    with pytest.raises(KeyError, match=r"^code: node 'trunk' has the unknown type 'custom_nett'"):
        build_model(cfg)


def test_value_of_a_node_changed_on_the_command_line_is_named(graph_cfg):
    cfg = graph_cfg(TRUNK, overrides=["MODEL.MODULE_GRAPH.NET.0.kwargs.depth=2"])
    with pytest.raises(ConfigError, match=r"graph\.yaml:7: node 'trunk' \(changed: command line\): .*out_planes has 1"):
        build_model(cfg)


def test_overrides_change_single_arguments(graph):
    model = graph(TRUNK + HEAD, overrides=["MODEL.MODULE_GRAPH.OVERRIDES.head.num_classes=5"])
    assert model.nodes.head.fc.out_features == 5


def test_overrides_of_a_child_and_of_the_command_line_join(graph_cfg, write):
    graph_cfg("- {name: a, type: x, kwargs: {one: 1, two: 2, deep: {three: 3, four: 4}}}")
    child = write(
        "child.yaml", "_BASE_: graph.yaml\nMODEL: {MODULE_GRAPH: {OVERRIDES: {a: {two: 20, deep: {four: 40}}}}}"
    )
    (node,) = read_nodes(from_file(child, "MODEL.MODULE_GRAPH.OVERRIDES.a.one=10"))
    assert node.kwargs == {"one": 10, "two": 20, "deep": {"three": 3, "four": 40}}
    assert set(node.changes) == {f"{child}:2", "command line"}


def test_override_that_does_not_fit_names_the_command_line(graph_cfg):
    cfg = graph_cfg(TRUNK + HEAD, overrides=["MODEL.MODULE_GRAPH.OVERRIDES.head.num_clases=3"])
    with pytest.raises(ConfigTypeError, match=r"graph\.yaml:8: node 'head' \(changed: command line\): .*num_clases"):
        build_model(cfg)


@pytest.mark.parametrize(
    ("options", "overrides", "said"),
    [
        ("OVERRIDES:\n  haed: {a: 1}", (), r"graph\.yaml:10: .*OVERRIDES names 'haed', .*did you mean 'head'"),
        ("", ["MODEL.MODULE_GRAPH.OVERRIDES.haed.a=1"], "command line: .*OVERRIDES names 'haed', .*mean 'head'"),
        ("OVERRIDES:\n  head: 4", (), r"graph\.yaml:10: .*OVERRIDES\.head must be a mapping of arguments; got 4"),
    ],
)
def test_override_of_no_node_or_of_no_arguments_is_refused(graph_cfg, options, overrides, said):
    with pytest.raises(ConfigError, match=said):
        read_nodes(graph_cfg(TRUNK + HEAD, options, overrides))


def test_new_key_of_a_node_can_be_set_on_the_command_line(graph):
    model = graph(TRUNK + HEAD, overrides=["MODEL.MODULE_GRAPH.NET.0.freeze=true"])
    assert not any(parameter.requires_grad for parameter in model.nodes.trunk.parameters())
    with pytest.raises(ConfigError, match="command line: node 'trunk' has the unknown key 'frezee'"):
        graph(TRUNK + HEAD, overrides=["MODEL.MODULE_GRAPH.NET.0.frezee=true"])


def test_config_with_a_graph_can_be_copied_frozen_and_reloaded(graph_cfg, write):
    cfg = graph_cfg(TRUNK + HEAD, overrides=["MODEL.MODULE_GRAPH.OVERRIDES.head.num_classes=5"])
    copy = cfg.clone()
    copy.freeze()
    reloaded = from_file(write("dump.yaml", copy.dump()))
    assert reloaded == copy == cfg
    assert str(build_model(reloaded)) == str(build_model(copy)) == str(build_model(cfg))


def test_building_leaves_the_config_as_it_was(graph_cfg):
    cfg = graph_cfg("- {name: trunk, type: custom_net, kwarg: {depth: 1, out_planes: [8]}}\n" + HEAD)
    before = cfg.dump()
    build_model(cfg)
    assert cfg.dump() == before
    assert "kwarg" in cfg.MODEL.MODULE_GRAPH.NET[0]


def test_module_that_changes_its_arguments_leaves_the_config_as_it_was(graph_cfg, zoo):
    def factory(planes):
        planes.append(0)
        return nn.Identity()

    zoo.register("greedy", factory)
    cfg = graph_cfg("- {name: trunk, type: greedy, kwargs: {planes: [8]}}", "OVERRIDES: {trunk: {planes: [9]}}")
    build_model(cfg)
    assert cfg.MODEL.MODULE_GRAPH.NET[0]["kwargs"]["planes"] == [8]
    assert cfg.MODEL.MODULE_GRAPH.OVERRIDES.trunk.planes == [9]


def test_config_that_a_module_gets_is_frozen(graph_cfg, zoo):
    seen = []

    def factory(cfg):
        seen.append(cfg.is_frozen())
        return nn.Identity()

    zoo.register("reader", factory)
    build_model(graph_cfg("- {name: a, type: reader}"))
    assert seen == [True]


def test_item_of_another_number_is_refused(graph_cfg, write):
    graph_cfg(TRUNK)
    child = write("child.yaml", "_BASE_: graph.yaml\nMODEL: {MODULE_GRAPH: {NET: {1: {freeze: true}}}}")
    with pytest.raises(ConfigKeyError, match=r"child\.yaml:2: MODEL\.MODULE_GRAPH\.NET has 1 items, numbered from 0"):
        from_file(child)
