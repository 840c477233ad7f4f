import pytest

from detlib.config import CfgNode, downgrade_config, get_cfg, upgrade_config
from detlib.utils.errors import ConfigError


def old_retinanet():
    return CfgNode(
        {
            "VERSION": 1,
            "MODEL": {
                "META_ARCHITECTURE": "RetinaNet",
                "WEIGHT": "x.pkl",
                "RETINANET": {"ANCHOR_SIZES": [[32]], "ANCHOR_STRIDES": [8], "INFERENCE_NMS_THRESHOLD": 0.6},
                "RPN": {"ANCHOR_SIZES": [[64]]},
            },
            "TEST": {"AUG_ON": True},
        }
    )


def test_upgrade_renames_and_drops_what_is_no_more():
    assert upgrade_config(old_retinanet()) == {
        "VERSION": 2,
        "MODEL": {
            "META_ARCHITECTURE": "RetinaNet",
            "WEIGHTS": "x.pkl",
            "RETINANET": {"NMS_THRESH_TEST": 0.6},
            "RPN": {},
            "ANCHOR_GENERATOR": {"SIZES": [[32]]},
        },
        "TEST": {"AUG": {"ENABLED": True}},
    }


def test_upgrade_leaves_the_original_alone():
    cfg = old_retinanet()
    upgrade_config(cfg)
    assert cfg == old_retinanet()


@pytest.mark.parametrize("arch", ["RetinaNet", "GeneralizedRCNN"])
def test_downgraded_config_upgrades_to_the_same(arch):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = arch
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[1]]
    cfg.MODEL.WEIGHTS = "x.pkl"
    old = downgrade_config(cfg, 1)
    assert (old.VERSION, old.MODEL.WEIGHT) == (1, "x.pkl")
    assert upgrade_config(old) == cfg


def test_current_version_stays():
    assert upgrade_config(get_cfg()) == get_cfg()


@pytest.mark.parametrize("version", [0, 3])
def test_unknown_version_is_refused(version):
    with pytest.raises(ConfigError, match=f"config version {version} is unknown"):
        downgrade_config(get_cfg(), version)
