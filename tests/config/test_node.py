import copy
import logging
import pickle

import pytest

from detlib.config import CfgNode, get_cfg
from detlib.config.config import format_with_origins
from detlib.utils.errors import ConfigError, ConfigKeyError, MissingFileError


def from_file(path):
    cfg = get_cfg()
    cfg.merge_from_file(path)
    return cfg


def overridden(*arguments):
    cfg = get_cfg()
    cfg.merge_from_list(list(arguments))
    return cfg


def test_values_take_the_type_of_the_default(write):
    cfg = from_file(
        write(
            "a.yaml",
            """\
            SOLVER: {BASE_LR: 1, GAMMA: 1e-4, STEPS: [1, 2], WEIGHT_DECAY_BIAS: 1e-2}
            DATASETS:
              TRAIN: ("a", "b")
            MODEL: {FPN: {IN_FEATURES: [res3]}, WEIGHTS: '123'}
            """,
        )
    )
    assert (cfg.SOLVER.BASE_LR, type(cfg.SOLVER.BASE_LR)) == (1.0, float)
    assert cfg.SOLVER.GAMMA == 0.0001  # YAML takes 1e-4 for text.
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS == 0.01
    assert cfg.SOLVER.STEPS == (1, 2)
    assert cfg.DATASETS.TRAIN == ("a", "b")
    assert cfg.MODEL.FPN.IN_FEATURES == ["res3"]
    assert cfg.MODEL.WEIGHTS == "123"


def test_file_wins_over_its_bases_and_later_bases_over_earlier(write):
    write("one.yaml", "SOLVER: {MAX_ITER: 1, GAMMA: 0.1, BASE_LR: 0.1}")
    write("sub/two.yaml", "_BASE_: ../zero.yaml\nSOLVER: {MAX_ITER: 2, GAMMA: 0.2}")
    write("zero.yaml", "SOLVER: {MOMENTUM: 0.0}")
    cfg = from_file(write("a.yaml", "_BASE_: [one.yaml, sub/two.yaml]\nSOLVER: {MAX_ITER: 3}"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA, cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM) == (3, 0.2, 0.1, 0.0)


def test_base_may_be_absolute_or_in_the_home_folder(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    absolute = write("one.yaml", "SEED: 1")
    write("two.yaml", "VIS_PERIOD: 2")
    cfg = from_file(write("sub/a.yaml", f"_BASE_: [{absolute}, ~/two.yaml]"))
    assert (cfg.SEED, cfg.VIS_PERIOD) == (1, 2)


def test_same_base_on_two_ways_is_no_circle(write):
    write("root.yaml", "SEED: 1")
    write("one.yaml", "_BASE_: root.yaml")
    write("two.yaml", "_BASE_: root.yaml")
    assert from_file(write("a.yaml", "_BASE_: [one.yaml, two.yaml]")).SEED == 1


def test_circle_is_reported_with_its_chain(write):
    a = write("a.yaml", "_BASE_: sub/b.yaml")
    b = write("sub/b.yaml", "_BASE_: ../a.yaml")
    with pytest.raises(ConfigError) as caught:
        from_file(a)
    assert str(caught.value).endswith(f"circle: {a} -> {b} -> {a}")


def test_missing_base_names_itself_and_who_asked(write, tmp_path):
    a = write("a.yaml", "_BASE_: nowhere.yaml")
    with pytest.raises(MissingFileError) as caught:
        from_file(a)
    assert str(tmp_path / "nowhere.yaml") in str(caught.value)
    assert f"{a} names under _BASE_" in str(caught.value)


def test_missing_file_and_folder_are_missing_files(tmp_path):
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(MissingFileError):
            from_file(str(path))


def test_base_of_the_wrong_type(write):
    with pytest.raises(ConfigError, match=r"a\.yaml:1: _BASE_ must be a path"):
        from_file(write("a.yaml", "_BASE_: 3"))


def test_file_that_is_a_list(write):
    with pytest.raises(ConfigError, match="top level"):
        from_file(write("a.yaml", "- 1\n- 2"))


def test_section_over_a_value_of_the_base(write):
    base = write("one.yaml", "SOLVER: 3")
    with pytest.raises(ConfigError, match="SOLVER is a section here") as caught:
        from_file(write("a.yaml", "_BASE_: one.yaml\nSOLVER: {GAMMA: 0.1}"))
    assert f"{base}:1" in str(caught.value)


def test_file_with_comments_only_changes_nothing(write):
    assert from_file(write("a.yaml", "# nothing yet\n")) == get_cfg()


def test_unknown_key_names_file_line_and_the_key_meant(write):
    path = write("a.yaml", "SEED: 1\n\nBASE_LR: 0.1\n")
    with pytest.raises(ConfigKeyError) as caught:
        from_file(path)
    assert str(caught.value) == f"{path}:3: unknown config key BASE_LR: did you mean SOLVER.BASE_LR?"


def test_unknown_key_of_a_base_names_the_base(write):
    base = write("base.yaml", "MODEL:\n  RETINANET:\n    NUM_CLASS: 3\n")
    with pytest.raises(ConfigKeyError) as caught:
        from_file(write("a.yaml", "_BASE_: base.yaml\nMODEL: {MASK_ON: true}"))
    assert f"{base}:3: unknown config key MODEL.RETINANET.NUM_CLASS" in str(caught.value)
    assert "did you mean MODEL.RETINANET.NUM_CLASSES" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("SOLVER: {BASE_LR: fast}", "SOLVER.BASE_LR expects float, as in 0.001; got str 'fast'"),
        ("SOLVER: {MAX_ITER: 1.5}", "SOLVER.MAX_ITER expects int, as in 40000; got float 1.5"),
        ("SOLVER: {STEPS: 5}", "SOLVER.STEPS expects tuple, as in (30000,); got int 5"),
        ("SOLVER: {NESTEROV: 1}", "SOLVER.NESTEROV expects bool, as in False; got int 1"),
        ("SOLVER: {MAX_ITER: true}", "SOLVER.MAX_ITER expects int, as in 40000; got bool True"),
        ("SOLVER: {BASE_LR: {A: 1}}", "SOLVER.BASE_LR expects float, as in 0.001; got dict {'A': 1}"),
        ("SOLVER: {AMP: true}", "SOLVER.AMP is a section with ENABLED, PRECISION; got bool True"),
        ("SOLVER: {AMP: }", "SOLVER.AMP is a section with ENABLED, PRECISION; got nothing"),
        ("OUTPUT_DIR: 2020-01-01", "OUTPUT_DIR cannot be date"),
    ],
)
def test_wrong_type_names_file_key_expected_and_given(write, line, said):
    path = write("a.yaml", line)
    with pytest.raises(ConfigError) as caught:
        from_file(path)
    assert str(caught.value).startswith(f"{path}:1: {said}")


def test_file_of_version_1_is_upgraded_with_a_warning(write, caplog):
    with caplog.at_level(logging.WARNING):
        cfg = from_file(write("a.yaml", "MODEL: {WEIGHT: x.pkl}"))
    assert cfg.MODEL.WEIGHTS == "x.pkl"
    assert "version 1" in caplog.text


def test_allow_unsafe_still_runs_no_code(write):
    with pytest.raises(ConfigError, match="refused"):
        get_cfg().merge_from_file(write("a.yaml", "SEED: !!python/name:os.system"), allow_unsafe=True)


def test_new_keys_enter_where_they_are_allowed(write):
    cfg = CfgNode({"A": 1}, new_allowed=True)
    cfg.merge_from_file(write("a.yaml", "B: {C: 1e-2}"))
    assert cfg == {"A": 1, "B": {"C": 0.01}}


def test_deprecated_key_is_skipped_and_renamed_key_is_explained(write):
    cfg = get_cfg()
    cfg.register_deprecated_key("OLD")
    cfg.register_renamed_key("GONE", "SEED")
    cfg.merge_from_file(write("a.yaml", "OLD: 1"))
    with pytest.raises(KeyError, match="SEED"):
        cfg.merge_from_file(write("b.yaml", "GONE: 1"))


def test_overrides_may_be_pairs_and_assignments():
    cfg = overridden("SOLVER.BASE_LR", "0.5", "SEED=3", "OUTPUT_DIR", "a=b", "MODEL.WEIGHTS=x=y")
    assert (cfg.SOLVER.BASE_LR, cfg.SEED, cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == (0.5, 3, "a=b", "x=y")


@pytest.mark.parametrize("text", ["('a', 'b')", "['a', 'b']", "[a, b]"])
def test_override_of_a_list_may_be_python_or_yaml(text):
    assert overridden("DATASETS.TRAIN", text).DATASETS.TRAIN == ("a", "b")


@pytest.mark.parametrize(("text", "value"), [("True", True), ("true", True), ("False", False)])
def test_override_of_a_boolean_may_be_python_or_yaml(text, value):
    assert overridden(f"MODEL.MASK_ON={text}").MODEL.MASK_ON is value


def test_override_of_text_stays_text():
    cfg = overridden("OUTPUT_DIR", "123", "MODEL.WEIGHTS=")
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == ("123", "")


def test_override_need_not_be_text():
    assert overridden("SOLVER.STEPS", [1, 2]).SOLVER.STEPS == (1, 2)


def test_overrides_reach_items_of_lists_and_tuples():
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("a", "b")
    cfg.DATASETS.REGISTER = [{"NAME": "a", "JSON": "a.json"}]
    cfg.merge_from_list(["DATASETS.TRAIN.1=c", "DATASETS.REGISTER.0.JSON=1.json", "MODEL.PIXEL_STD.2", "2"])
    cfg.merge_from_list(["MODEL.ANCHOR_GENERATOR.SIZES.0.1", "50"])
    assert cfg.DATASETS.TRAIN == ("a", "c")
    assert cfg.DATASETS.REGISTER == [{"NAME": "a", "JSON": "1.json"}]
    assert cfg.MODEL.PIXEL_STD == [1.0, 1.0, 2.0]
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32, 50, 128, 256, 512]]


@pytest.mark.parametrize(
    "key", ["DATASETS.TRAIN.0", "MODEL.PIXEL_STD.3", "MODEL.PIXEL_STD.-1", "MODEL.PIXEL_STD.x", "SEED.0", "MODEL.X"]
)
def test_override_of_a_part_that_does_not_exist(key):
    with pytest.raises(ConfigKeyError, match=f"command line: .*{key}"):
        overridden(key, "1")


def test_override_of_an_unknown_key_suggests():
    with pytest.raises(ConfigKeyError, match=r"command line: unknown config key BASE_LR: did you mean SOLVER.BASE"):
        overridden("BASE_LR", "1")


def test_override_of_a_wrong_type():
    with pytest.raises(ConfigError, match=r"command line: SOLVER.BASE_LR expects float"):
        overridden("SOLVER.BASE_LR=fast")


def test_option_after_an_override_is_told_to_come_first():
    with pytest.raises(ConfigError, match="the option --print-config stands after an override"):
        overridden("SEED=1", "--print-config")


def test_override_without_value():
    with pytest.raises(ConfigError, match="'SEED' has no value"):
        overridden("VIS_PERIOD", "1", "SEED")


def test_missing_attribute_suggests_and_is_an_attribute_error():
    cfg = get_cfg()
    with pytest.raises(ConfigKeyError, match=r"the config has no SOLVER.LR: did you|SOLVER.LR: nothing"):
        cfg.SOLVER.LR  # noqa: B018
    with pytest.raises(ConfigKeyError, match=r"SOLVER.NUM_CLASSES: did you mean MODEL"):
        cfg["SOLVER"]["NUM_CLASSES"]
    assert not hasattr(cfg, "BASE_LR")
    assert cfg.get("BASE_LR", 3) == 3


def test_options_of_projects_are_added_without_warning(caplog):
    cfg = get_cfg()
    with caplog.at_level(logging.WARNING):
        cfg.MODEL.DETR = CfgNode()
        cfg.MODEL.DETR.NUM_CLASSES = 80
        cfg.SOLVER.OPTIMIZER = "ADAMW"
        cfg.MODEL.ROI_MASK_HEAD.NUM_FC = 3  # As in the box head, which stands beside it.
        cfg.MODEL.RESNETS.RES4_DILATION = 1
    assert not caplog.records
    assert cfg.MODEL.DETR.NUM_CLASSES == 80


@pytest.mark.parametrize(
    ("section", "name", "meant"),
    [
        ("", "BASE_LR", "SOLVER.BASE_LR"),
        ("MODEL", "BASE_LR", "SOLVER.BASE_LR"),
        ("SOLVER", "MAX_ITERS", "SOLVER.MAX_ITER"),
        ("MODEL", "NUM_CLASSES", "MODEL.FCOS.NUM_CLASSES"),
    ],
)
def test_new_attribute_like_an_option_elsewhere_is_set_with_a_warning(caplog, section, name, meant):
    cfg = get_cfg()
    node = cfg[section] if section else cfg
    with caplog.at_level(logging.WARNING):
        setattr(node, name, 3)
    assert f"did you mean {meant}?" in caplog.text
    assert node[name] == 3


def test_attributes_set_by_code_may_be_a_little_off_in_types():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = 640
    cfg.DATASETS.TEST = ["a"]
    cfg.SOLVER.MAX_ITER = 1e4
    cfg.SOLVER.BASE_LR = 1
    cfg.MODEL.MASK_ON = 1
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640,)
    assert cfg.DATASETS.TEST == ("a",)
    assert (cfg.SOLVER.MAX_ITER, type(cfg.SOLVER.MAX_ITER)) == (10000, int)
    assert type(cfg.SOLVER.BASE_LR) is float
    assert cfg.MODEL.MASK_ON is True


def test_attributes_of_wrong_types_are_refused():
    cfg = get_cfg()
    with pytest.raises(ConfigError, match=r"SOLVER.BASE_LR expects float"):
        cfg.SOLVER.BASE_LR = "fast"
    with pytest.raises(ConfigError, match="a config holds"):
        cfg.OUTPUT_DIR = object()
    with pytest.raises(ConfigError, match="is a section"):
        cfg.SOLVER.AMP = True


def test_computed_attributes_can_be_set_once():
    cfg = get_cfg()
    cfg.freeze()
    cfg.COMPUTED_X = 1
    with pytest.raises(KeyError):
        cfg.COMPUTED_X = 2


def test_frozen_config_cannot_change_but_its_clone_can():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError, match="frozen"):
        cfg.SOLVER.BASE_LR = 1
    with pytest.raises(AttributeError, match="frozen"):
        cfg.merge_from_list(["SEED", "1"])
    other = cfg.clone()
    other.defrost()
    other.SEED = 1
    assert (cfg.SEED, other.SEED) == (-1, 1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda cfg: pickle.loads(pickle.dumps(cfg))])
def test_copy_is_equal_and_knows_origins_and_frozenness(duplicate):
    cfg = overridden("SEED", "1")
    cfg.freeze()
    other = duplicate(cfg)
    assert other == cfg
    assert other.is_frozen()
    assert format_with_origins(other) == format_with_origins(cfg)


def test_origins_do_not_count_for_equality():
    assert overridden("SEED", "-1") == get_cfg()
