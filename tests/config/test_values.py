"""Values to text and back."""

import pytest

from detlib.config import get_cfg
from detlib.config.safe_yaml import load


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
