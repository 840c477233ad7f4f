"""Values to text and back."""

import pytest

from detlib.config import get_cfg
from detlib.config.safe_yaml import load
from detlib.utils.errors import ConfigError, ConfigKeyError


def reloaded(cfg):
    other = get_cfg()
    other.merge_from_other_cfg(load(cfg.dump(), "dump.yaml"))
    return other


@pytest.mark.parametrize(
    "value",
    [
        "123", "1e3", "None", "null", "true", "(1, 2)", "'quoted'", '"', " 1", "=", "~", "", "- a", "a: b", "#", "!x",
        "é\n\t", "0x10", "1_000", "[", "yes", "2020-01-01", "{}", "\\d", "''", "<<", "*a", "&a", "%", "@", "|", "'",
    ],
)  # fmt: skip
def test_dumped_text_comes_back(value):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = value
    cfg.SOLVER.WEIGHT_DECAY_BIAS = value  # None by default, hence of any type.
    cfg.DATASETS.TRAIN = (value,)
    cfg.MODEL.FPN.IN_FEATURES = [value]
    cfg.DATASETS.REGISTER = [{"NAME": value, "SIZES": (1, [value])}]
    assert reloaded(cfg) == cfg


@pytest.mark.parametrize(
    "value",
    [(1, 2), ((1,), (2.0, ("x",))), [(1, 2), [3]], [], (), 1e-7, 1e22, float("inf"), (float("-inf"),), True, 0, -1],
)
def test_dumped_value_comes_back_with_its_types(value):
    cfg = get_cfg()
    cfg.SOLVER.WEIGHT_DECAY_BIAS = value
    found = reloaded(cfg).SOLVER.WEIGHT_DECAY_BIAS
    assert repr(found) == repr(cfg.SOLVER.WEIGHT_DECAY_BIAS)


def test_dumped_defaults_come_back():
    cfg = reloaded(get_cfg())
    assert cfg == get_cfg()
    assert cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS[0] == (10.0, 10.0, 5.0, 5.0)


def test_dumped_none_comes_back_for_any_option():
    cfg = get_cfg()
    cfg.OUTPUT_DIR = None
    assert reloaded(cfg) == cfg


def from_text(write, text):
    cfg = get_cfg()
    cfg.merge_from_file(write("a.yaml", text))
    return cfg


def test_mapping_for_a_list_of_mappings_is_a_list_of_one(write):
    cfg = from_text(write, "MODEL: {MODULE_GRAPH: {NET: {name: a, type: b}}}")
    assert cfg.MODEL.MODULE_GRAPH.NET == [{"name": "a", "type": "b"}]
    cfg.MODEL.CLASSIFIER.BATCH_AUGMENTS = {"NAME": "Mixup"}
    assert cfg.MODEL.CLASSIFIER.BATCH_AUGMENTS == [{"NAME": "Mixup"}]
    cfg.merge_from_list(["DATASETS.REGISTER={NAME: a}"])
    assert cfg.DATASETS.REGISTER == [{"NAME": "a"}]
    assert reloaded(cfg) == cfg


def test_mapping_replaces_a_list_of_mappings_of_the_base(write):
    write("base.yaml", "MODEL: {MODULE_GRAPH: {NET: [{name: a}, {name: b}]}}")
    cfg = from_text(write, "_BASE_: base.yaml\nMODEL: {MODULE_GRAPH: {NET: {name: c}}}")
    assert cfg.MODEL.MODULE_GRAPH.NET == [{"name": "c"}]


def test_mapping_for_a_list_of_anything_else_is_refused(write):
    expected = r"SOLVER\.NO_WEIGHT_DECAY expects list, as in \[\]; got dict \{'a': 1\}"
    with pytest.raises(ConfigError, match=r"a\.yaml:1: " + expected):
        from_text(write, "SOLVER: {NO_WEIGHT_DECAY: {a: 1}}")
    with pytest.raises(ConfigError, match="command line: " + expected):
        get_cfg().merge_from_list(["SOLVER.NO_WEIGHT_DECAY={a: 1}"])
    with pytest.raises(ConfigError, match=expected):
        get_cfg().SOLVER.NO_WEIGHT_DECAY = {"a": 1}


def test_mapping_over_a_list_of_text_of_the_base_names_both_places(write):
    base = write("base.yaml", "SOLVER: {NO_WEIGHT_DECAY: [bias]}")
    with pytest.raises(ConfigError, match=rf"a\.yaml:2: SOLVER\.NO_WEIGHT_DECAY is a section .* {base}:1"):
        from_text(write, "_BASE_: base.yaml\nSOLVER: {NO_WEIGHT_DECAY: {a: 1}}")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("3", 3), ("x", "x"), ("[p3, p4]", ["p3", "p4"])])
def test_mapping_in_a_list_takes_a_new_key_from_the_command_line(text, value):
    cfg = get_cfg()
    cfg.MODEL.MODULE_GRAPH.NET = [{"name": "a"}]
    cfg.merge_from_list([f"MODEL.MODULE_GRAPH.NET.0.freeze={text}"])
    (node,) = cfg.MODEL.MODULE_GRAPH.NET
    assert node == {"name": "a", "freeze": value}


def test_new_key_of_the_command_line_needs_the_mapping_that_it_is_in():
    cfg = get_cfg()
    cfg.MODEL.MODULE_GRAPH.NET = [{"name": "a"}]
    with pytest.raises(ConfigKeyError, match=r"NET\.0\.kwargs\.depth: there is no 'kwargs' to set; it has name"):
        cfg.merge_from_list(["MODEL.MODULE_GRAPH.NET.0.kwargs.depth=3"])
