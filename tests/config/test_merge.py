"""How files build on each other: `_DELETE_`, single items of lists, several bases."""

import pytest

from detlib.config import CfgNode, get_cfg
from detlib.utils.errors import ConfigError, ConfigKeyError


def merged(path):
    cfg = get_cfg()
    cfg.merge_from_file(path)
    return cfg


BASE = "MODEL: {RETINANET: {NUM_CLASSES: 3, NUM_CONVS: 2, LOSS_BBOX: {NAME: SmoothL1Loss, BETA: 0.5, DEEP: {A: 1}}}}\n"


def test_without_marker_keys_of_a_part_are_joined(write):
    write("base.yaml", BASE)
    cfg = merged(write("a.yaml", "_BASE_: base.yaml\nMODEL: {RETINANET: {LOSS_BBOX: {NAME: GIoULoss}}}"))
    assert cfg.MODEL.RETINANET.LOSS_BBOX == {"NAME": "GIoULoss", "BETA": 0.5, "DEEP": {"A": 1}}


def test_marker_drops_what_the_base_had(write):
    write("base.yaml", BASE)
    child = "_BASE_: base.yaml\nMODEL: {RETINANET: {LOSS_BBOX: {_DELETE_: true, NAME: GIoULoss}}}"
    cfg = merged(write("a.yaml", child))
    assert cfg.MODEL.RETINANET.LOSS_BBOX == {"NAME": "GIoULoss"}
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 3


def test_marker_works_at_any_depth(write):
    write("base.yaml", BASE)
    child = "_BASE_: base.yaml\nMODEL: {RETINANET: {LOSS_BBOX: {DEEP: {_DELETE_: true, B: 2}}}}"
    loss = merged(write("a.yaml", child)).MODEL.RETINANET.LOSS_BBOX
    assert loss == {"NAME": "SmoothL1Loss", "BETA": 0.5, "DEEP": {"B": 2}}


def test_marker_clears_the_defaults_of_a_part(write):
    cfg = merged(write("a.yaml", "MODEL: {CLASSIFIER: {HEAD: {_DELETE_: true, NAME: ClsHead}}}"))
    assert cfg.MODEL.CLASSIFIER.HEAD == {"NAME": "ClsHead"}


def test_marker_brings_a_fixed_section_back_to_its_defaults(write):
    write("base.yaml", BASE)
    cfg = merged(write("a.yaml", "_BASE_: base.yaml\nMODEL: {RETINANET: {_DELETE_: true, NUM_CLASSES: 5}}"))
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS) == (5, 4)
    assert cfg.MODEL.RETINANET.LOSS_BBOX == {}


def test_marker_also_undoes_what_was_set_before_the_file_came(write):
    cfg = get_cfg()
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.merge_from_file(write("a.yaml", "MODEL: {RETINANET: {_DELETE_: true}}"))
    assert cfg.MODEL.RETINANET.NUM_CONVS == 4


def test_false_marker_does_nothing_and_none_stays_behind(write):
    write("base.yaml", BASE)
    child = "_BASE_: base.yaml\nMODEL: {RETINANET: {LOSS_BBOX: {_DELETE_: false, B: 1}}, NECK: {_DELETE_: true}}"
    cfg = merged(write("a.yaml", child))
    assert cfg.MODEL.RETINANET.LOSS_BBOX == {"NAME": "SmoothL1Loss", "BETA": 0.5, "DEEP": {"A": 1}, "B": 1}
    assert "_DELETE_" not in cfg.dump()


def test_marker_of_a_base_holds_for_those_that_build_on_it(write):
    write("base.yaml", "MODEL: {CLASSIFIER: {HEAD: {_DELETE_: true, NAME: ClsHead}}}")
    cfg = merged(write("a.yaml", "_BASE_: base.yaml\nMODEL: {CLASSIFIER: {HEAD: {TOPK: [1, 5]}}}"))
    assert cfg.MODEL.CLASSIFIER.HEAD == {"NAME": "ClsHead", "TOPK": [1, 5]}


def test_marker_in_a_dict_works_as_well():
    cfg = get_cfg()
    cfg.merge_from_other_cfg({"MODEL": {"CLASSIFIER": {"HEAD": {"_DELETE_": True, "NAME": "ClsHead"}}}})
    assert cfg.MODEL.CLASSIFIER.HEAD == {"NAME": "ClsHead"}


def test_marker_that_is_no_boolean_is_refused(write):
    with pytest.raises(ConfigError, match=r"a\.yaml:1: _DELETE_ must be true or false, got 1"):
        merged(write("a.yaml", "MODEL: {NECK: {_DELETE_: 1}}"))


def test_marker_within_a_list_is_refused(write):
    with pytest.raises(ConfigError, match="_DELETE_ cannot be used within a list"):
        merged(write("a.yaml", "MODEL: {CLASSIFIER: {BATCH_AUGMENTS: [{_DELETE_: true}]}}"))


def test_marker_on_the_command_line_is_refused():
    with pytest.raises(ConfigError, match="_DELETE_ is for files only"):
        get_cfg().merge_from_list(["MODEL.NECK._DELETE_=true"])


def test_single_items_of_a_list_of_the_base(write):
    write("base.yaml", "MODEL: {RETINANET: {IN_FEATURES: [p3, p4, p5]}}\nSOLVER:\n  STEPS: (100, 200)")
    child = "_BASE_: base.yaml\nMODEL: {RETINANET: {IN_FEATURES: {1: x}}}\nSOLVER: {STEPS: {0: 50}}"
    cfg = merged(write("a.yaml", child))
    assert cfg.MODEL.RETINANET.IN_FEATURES == ["p3", "x", "p5"]
    assert cfg.SOLVER.STEPS == (50, 200)


def test_single_items_of_a_default_list(write):
    assert merged(write("a.yaml", "MODEL: {PIXEL_MEAN: {0: 1, 2: 3.0}}")).MODEL.PIXEL_MEAN == [1.0, 116.28, 3.0]


def test_item_that_is_a_part_is_joined(write):
    write("base.yaml", "MODEL: {CLASSIFIER: {BATCH_AUGMENTS: [{NAME: Mixup, ALPHA: 0.2}, {NAME: CutMix, ALPHA: 1.0}]}}")
    child = "_BASE_: base.yaml\nMODEL: {CLASSIFIER: {BATCH_AUGMENTS: {0: {ALPHA: 0.8}}}}"
    augments = merged(write("a.yaml", child)).MODEL.CLASSIFIER.BATCH_AUGMENTS
    assert augments == [{"NAME": "Mixup", "ALPHA": 0.8}, {"NAME": "CutMix", "ALPHA": 1.0}]


def test_item_that_a_list_does_not_have_is_refused(write):
    with pytest.raises(ConfigKeyError, match="PIXEL_MEAN has 3 items, numbered from 0; there is no 3 to set"):
        merged(write("a.yaml", "MODEL: {PIXEL_MEAN: {3: 1.0}}"))


def test_later_bases_win_and_the_file_over_all(write):
    write("one.yaml", "SOLVER: {BASE_LR: 1.0, MAX_ITER: 1, IMS_PER_BATCH: 1}")
    write("two.yaml", "SOLVER: {BASE_LR: 2.0, MAX_ITER: 2}")
    solver = merged(write("a.yaml", "_BASE_: [one.yaml, two.yaml]\nSOLVER: {BASE_LR: 3.0}")).SOLVER
    assert (solver.BASE_LR, solver.MAX_ITER, solver.IMS_PER_BATCH) == (3.0, 2, 1)


@pytest.mark.parametrize("given", ["{_DELETE_: true, NAME: X}", "[{_DELETE_: true}]"])
def test_marker_within_a_value_of_the_command_line_is_refused(given):
    with pytest.raises(ConfigError, match=r"MODEL\.NECK.*: _DELETE_ is for files only"):
        get_cfg().merge_from_list(["MODEL.NECK" if given[0] == "{" else "MODEL.NECK.ARGS", given])


def test_markers_of_code_are_checked_like_those_of_files():
    with pytest.raises(ConfigError, match="code: _DELETE_ must be true or false, got 'yes'"):
        get_cfg().merge_from_other_cfg({"MODEL": {"NECK": {"_DELETE_": "yes"}}})
    with pytest.raises(ConfigError, match="code: _DELETE_ cannot be used within a list"):
        get_cfg().merge_from_other_cfg({"MODEL": {"NECK": {"ARGS": [{"_DELETE_": True}]}}})


@pytest.mark.parametrize("text", ["_delete_: true", "MODEL: {NECK: {_delete_: true}}"])
def test_marker_in_small_letters_is_refused(write, text):
    with pytest.raises(ConfigError, match=r"a\.yaml:1: write _DELETE_ for _delete_"):
        merged(write("a.yaml", text))


@pytest.mark.parametrize("text", ["_base_: b.yaml", "MODEL: {_BASE_: b.yaml}"])
def test_base_that_is_misspelt_or_deep_is_explained(write, text):
    with pytest.raises(ConfigKeyError, match=r"a\.yaml:1: .*: write _BASE_ at the top level of the file"):
        merged(write("a.yaml", text))


@pytest.mark.parametrize("marked", ["_DELETE_: true\nMODEL: {MINE: {A: 3}}", "MODEL: {_DELETE_: true, MINE: {A: 3}}"])
def test_marker_leaves_what_code_has_added(write, marked):
    cfg = get_cfg()
    cfg.MODEL.MINE = CfgNode({"A": 1, "B": 2})
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.NECK = {"NAME": "PAFPN"}
    cfg.merge_from_file(write("a.yaml", marked))
    assert cfg.MODEL.MINE == {"A": 3, "B": 2}
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.NECK) == (80, {"NAME": ""})


def test_marker_empties_a_section_of_code_that_takes_any_key(write):
    cfg = get_cfg()
    cfg.MODEL.MINE = CfgNode({"A": 1}, new_allowed=True)
    cfg.merge_from_file(write("a.yaml", "MODEL: {MINE: {_DELETE_: true, B: 2}}"))
    assert cfg.MODEL.MINE == {"B": 2}


def test_marker_among_items_of_a_list_is_refused(write):
    with pytest.raises(ConfigError, match=r"MODEL\.PIXEL_MEAN is a list, which _DELETE_ cannot drop"):
        merged(write("a.yaml", "MODEL: {PIXEL_MEAN: {_DELETE_: true, 0: 1.0}}"))


def test_items_are_counted_from_the_front_and_the_error_has_the_whole_key(write):
    write("base.yaml", "MODEL: {PIXEL_MEAN: [1.0, 2.0]}")
    with pytest.raises(ConfigKeyError, match=r"MODEL\.PIXEL_MEAN has 2 items, numbered from 0; there is no -3 to set"):
        merged(write("a.yaml", "_BASE_: base.yaml\nMODEL: {PIXEL_MEAN: {-3: 1.0}}"))
