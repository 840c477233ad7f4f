import pytest

from detlib.config import get_cfg
from detlib.config.config import format_with_origins
from detlib.config.origins import place_of


def from_file(path):
    cfg = get_cfg()
    cfg.merge_from_file(path)
    return cfg


def test_each_value_tells_who_set_it(write):
    base = write("base.yaml", "SOLVER:\n  GAMMA: 0.5\n  BASE_LR: 0.5\n")
    path = write("a.yaml", "_BASE_: base.yaml\nSOLVER: {BASE_LR: 0.25}\n")
    cfg = from_file(path)
    cfg.merge_from_list(["SEED=1"])
    cfg.VIS_PERIOD = 7
    lines = {" ".join(line.split()) for line in format_with_origins(cfg).splitlines()}
    assert f"GAMMA: 0.5 # {base}:2" in lines
    assert f"BASE_LR: 0.25 # {path}:2" in lines
    assert "SEED: 1 # command line" in lines
    assert "VIS_PERIOD: 7 # code" in lines
    assert "MOMENTUM: 0.9 # default" in lines


def test_output_reads_back(write):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "3", "DATASETS.TRAIN", "('a', 'b')"])
    assert from_file(write("a.yaml", format_with_origins(cfg))) == cfg


def test_merging_another_config_keeps_its_origins(write):
    path = write("a.yaml", "SEED: 1")
    cfg = get_cfg()
    cfg.merge_from_other_cfg(from_file(path))
    assert f"# {path}:1" in format_with_origins(cfg)


def test_keys_of_a_part_need_not_be_text():
    cfg = get_cfg()
    cfg.merge_from_other_cfg({"MODEL": {"NECK": {"NAME": "X", 3: 4}}})
    assert "    3: 4 " in format_with_origins(cfg)


NET = """\
MODEL:
  MODULE_GRAPH:
    NET:
      - {name: trunk, type: a}
      - name: head
        type: b
        kwargs:
          depth: 1
          sizes: [{width: 2}]
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((), 3),
        ((0,), 4),
        ((1,), 5),
        ((1, "type"), 6),
        ((1, "kwargs", "depth"), 8),
        ((1, "kwargs", "sizes", 0, "width"), 9),
        ((1, "no_such_key"), 5),
        ((7,), 3),
    ],
)
def test_place_of_what_is_in_a_list_is_its_line(write, path, line):
    file = write("a.yaml", NET)
    assert place_of(from_file(file).MODEL.MODULE_GRAPH, "NET", *path) == f"{file}:{line}"


def test_item_changed_by_a_child_file_has_places_in_both(write):
    base = write("base.yaml", NET)
    child = write("a.yaml", "_BASE_: base.yaml\nMODEL: {MODULE_GRAPH: {NET: {1: {\nkwargs: {depth: 2}}}}}")
    graph = from_file(child).MODEL.MODULE_GRAPH
    assert place_of(graph, "NET", 1, "kwargs", "depth") == f"{child}:3"
    assert place_of(graph, "NET", 1, "name") == f"{base}:5"
    assert place_of(graph, "NET", 0) == f"{base}:4"


def test_item_changed_by_a_second_file_has_places_in_both(write):
    base, second = write("base.yaml", NET), write("b.yaml", "MODEL: {MODULE_GRAPH: {NET: {1: {type: c}}}}")
    cfg = from_file(base)
    cfg.merge_from_file(second)
    assert place_of(cfg.MODEL.MODULE_GRAPH, "NET", 1, "type") == f"{second}:1"
    assert place_of(cfg.MODEL.MODULE_GRAPH, "NET", 1) == f"{base}:5"


def test_list_given_anew_forgets_the_old_places(write):
    cfg = from_file(write("a.yaml", NET))
    cfg.merge_from_list(["MODEL.MODULE_GRAPH.NET=[{name: x, type: y}]"])
    assert place_of(cfg.MODEL.MODULE_GRAPH, "NET", 0, "name") == "command line"
    cfg.MODEL.MODULE_GRAPH.NET = [{"name": "x", "type": "z"}]
    assert place_of(cfg.MODEL.MODULE_GRAPH, "NET", 0, "name") == "code"


def test_value_in_a_list_set_on_the_command_line(write):
    path = write("a.yaml", NET)
    cfg = from_file(path)
    cfg.merge_from_list(["MODEL.MODULE_GRAPH.NET.1.kwargs.depth=3"])
    assert place_of(cfg.MODEL.MODULE_GRAPH, "NET", 1, "kwargs", "depth") == "command line"
    assert place_of(cfg.MODEL.MODULE_GRAPH, "NET", 1, "type") == f"{path}:6"


def test_places_in_lists_survive_a_copy_and_a_merge(write):
    path = write("a.yaml", NET)
    merged = get_cfg()
    merged.merge_from_other_cfg(from_file(path).clone())
    assert place_of(merged.MODEL.MODULE_GRAPH, "NET", 1, "type") == f"{path}:6"


def test_place_of_a_section_within_one_that_takes_any_key(write):
    path = write("a.yaml", "MODEL: {MODULE_GRAPH: {OVERRIDES: {\nhead: {depth: 2}}}}")
    cfg = from_file(path)
    cfg.merge_from_list(["MODEL.MODULE_GRAPH.OVERRIDES.trunk.depth=3"])
    graph = cfg.MODEL.MODULE_GRAPH
    assert place_of(graph, "OVERRIDES", "head") == place_of(graph, "OVERRIDES", "head", "depth") == f"{path}:2"
    assert place_of(graph, "OVERRIDES", "trunk") == "command line"


def test_list_of_mappings_is_one_line_of_the_output_and_reads_back(write):
    path = write("a.yaml", NET)
    text = format_with_origins(from_file(path))
    (line,) = [line for line in text.splitlines() if line.lstrip().startswith("NET:")]
    assert line.endswith(f"# {path}:3")
    assert from_file(write("b.yaml", text)) == from_file(path)
