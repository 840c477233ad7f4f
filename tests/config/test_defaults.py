"""Every option of the compatibility list is there with its value (spot checks), and the tree is sound."""

import pytest

from detlib.config import CfgNode, get_cfg
from detlib.config.defaults import DEFAULTS
from detlib.config.suggest import all_keys


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("VERSION", 2),
        ("MODEL.DEVICE", "cuda"),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64, 128, 256, 512]]),
        ("MODEL.RETINANET.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0)),
        ("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (512, 512, 512, 512, 512, 512, 512, 512)),
        ("SOLVER.WEIGHT_DECAY_BIAS", None),
        ("DATASETS.REGISTER", []),
        ("GLOBAL.HACK", 1.0),
    ],
)
def test_default_value(key, value):
    found = get_cfg()
    for part in key.split("."):
        found = found[part]
    assert found == value
    assert type(found) is type(value)


def test_every_call_of_get_cfg_gives_a_config_of_its_own():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES[0].append(1024)
    cfg.SOLVER.BASE_LR = 3.0
    assert get_cfg().MODEL.ANCHOR_GENERATOR.SIZES == [[32, 64, 128, 256, 512]]
    assert get_cfg().SOLVER.BASE_LR == 0.001


def test_all_sections_are_nodes():
    def sections(node):
        for value in node.values():
            if isinstance(value, dict):
                yield value
                yield from sections(value)

    assert all(isinstance(section, CfgNode) for section in sections(get_cfg()))


def test_names_are_upper_case():
    assert all(key == key.upper() for key in all_keys(DEFAULTS))
