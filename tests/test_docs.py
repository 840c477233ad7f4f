"""What the tutorials show works as it stands."""

import re
from pathlib import Path

import pytest

from detlib.config import get_cfg
from detlib.modeling import LOSS_REGISTRY
from detlib.modeling.loss import build_loss

ROOT = Path(__file__).parents[1]


@pytest.fixture
def blocks():
    """The code of docs/tutorials/components.md: (language, text) in order."""
    page = (ROOT / "docs/tutorials/components.md").read_text(encoding="utf-8")
    return re.findall(r"```(\w+)\n(.*?)```", page, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    """Has the bases that the examples build on."""
    base = f"_BASE_: {ROOT}/configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml\n"
    (tmp_path / "configs").mkdir()
    for name in ("configs/retinanet_R_50_FPN_1x.yaml", "Base-RCNN-FPN.yaml", "configs/schedule.yaml"):
        (tmp_path / name).write_text(base)
    return tmp_path / "configs"


def read(folder, text):
    (folder / "my_config.yaml").write_text(text)
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "my_config.yaml"))
    return cfg


def test_parts_of_the_first_example_are_built(blocks, folder):
    cfg = read(folder, blocks[0][1])
    assert build_loss(cfg.MODEL.RETINANET.LOSS_BBOX).loss_weight == 2.0
    assert cfg.MODEL.NECK.NAME == "PAFPN"


def test_loss_of_ones_own_is_used_from_the_config(blocks, folder):
    (folder / "my_losses.py").write_text(blocks[1][1])
    cfg = read(folder, blocks[2][1])
    try:
        assert type(build_loss(cfg.MODEL.RETINANET.LOSS_BBOX)).__name__ == "MyLoss"
    finally:
        del LOSS_REGISTRY._obj_map["MyLoss"]


def test_config_that_builds_on_others_reads_as_described(blocks, folder):
    cfg = read(folder, blocks[3][1])
    assert cfg.MODEL.RETINANET.LOSS_BBOX == {"NAME": "GIoULoss"}
    assert cfg.MODEL.PIXEL_STD == [57.4, 1.0, 1.0]
