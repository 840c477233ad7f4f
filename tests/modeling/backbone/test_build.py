"""How a backbone is chosen: builders of projects that read the config, and necks that are not named."""

import pytest
from torch import nn

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
from detlib.utils.errors import ConfigError, ConfigKeyError


class Toy(Backbone):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res2": ShapeSpec(channels=self.conv.out_channels, stride=1)}


@pytest.fixture
def cfg(monkeypatch):
    """As a project for detectron2 prepares it: options added by code, and a builder that takes the config."""
    builders = {**BACKBONE_REGISTRY._obj_map, "build_toy": lambda cfg, input_shape: Toy(cfg.MODEL.BACKBONE.CHANNELS)}
    monkeypatch.setattr(BACKBONE_REGISTRY, "_obj_map", builders)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_toy"
    cfg.MODEL.BACKBONE.CHANNELS = 4
    return cfg


def merge(cfg, tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    cfg.merge_from_file(str(path))
    return cfg


def test_option_that_code_has_added_may_be_set_by_files_and_on_the_command_line(cfg, tmp_path):
    merge(cfg, tmp_path, "MODEL: {BACKBONE: {CHANNELS: 6}}")
    assert build_backbone(cfg.clone()).conv.out_channels == 6
    cfg.merge_from_list(["MODEL.BACKBONE.CHANNELS=7"])
    assert build_backbone(cfg).conv.out_channels == 7


def test_option_that_nobody_has_added_is_refused_with_the_one_meant(cfg, tmp_path):
    merge(cfg, tmp_path, "MODEL: {BACKBONE: {CHANELS: 6}}")
    with pytest.raises(
        ConfigKeyError, match=r"BACKBONE\.CHANELS: build_toy .*; did you mean MODEL\.BACKBONE\.CHANNELS\?"
    ):
        build_backbone(cfg)


@pytest.mark.parametrize("key", ["name", "OUT_CHANNELS"])
def test_neck_with_keys_but_no_name_is_refused(cfg, tmp_path, key):
    merge(cfg, tmp_path, f"MODEL: {{NECK: {{{key}: 6}}}}")
    with pytest.raises(ConfigError, match=f"MODEL.NECK has {key} but no NAME"):
        build_backbone(cfg)


def test_neck_of_a_base_can_be_switched_off_by_its_name(cfg, tmp_path):
    merge(cfg, tmp_path, "MODEL: {NECK: {NAME: PAFPN, OUT_CHANNELS: 6}}")
    cfg.merge_from_list(["MODEL.NECK.NAME="])
    assert isinstance(build_backbone(cfg), Toy)
