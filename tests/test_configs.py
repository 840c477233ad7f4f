"""Every YAML under configs/ loads and builds; those of the model zoo have their published values and weight names."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from detlib.config import CfgNode, get_cfg
from detlib.modeling import build_model

CONFIGS = Path(__file__).parents[1] / "configs"
STATE_DICTS = Path(__file__).parent / "golden" / "state_dicts"

RETINANET = {
    "DATASETS.TEST": ("coco_2017_val",),
    "DATASETS.TRAIN": ("coco_2017_train",),
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "MODEL.ANCHOR_GENERATOR.SIZES": [
        [32, 40.31747359663594, 50.79683366298238],
        [64, 80.63494719327188, 101.59366732596476],
        [128, 161.26989438654377, 203.18733465192952],
        [256, 322.53978877308754, 406.37466930385904],
        [512, 645.0795775461751, 812.7493386077181],
    ],
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": (60000, 80000),
}
R50 = {**RETINANET, "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl"}
LONG = {"SOLVER.MAX_ITER": 270000, "SOLVER.STEPS": (210000, 250000)}

# What differs from the defaults, once all bases are merged.
ZOO = {
    "Base-RetinaNet": RETINANET,
    "COCO-Detection/retinanet_R_50_FPN_1x": R50,
    "COCO-Detection/retinanet_R_50_FPN_3x": {**R50, **LONG},
    "COCO-Detection/retinanet_R_101_FPN_3x": {
        **RETINANET,
        **LONG,
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
    },
    "quick_schedules/retinanet_R_50_FPN_inference_acc_test": {
        **R50,
        **LONG,
        "DATASETS.TEST": ("coco_2017_val_100",),
        "MODEL.WEIGHTS": "detectron2://COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl",
        "TEST.EXPECTED_RESULTS": [["bbox", "AP", 44.45, 0.02]],
    },
    "quick_schedules/retinanet_R_50_FPN_instant_test": {
        **R50,
        "DATALOADER.NUM_WORKERS": 2,
        "DATASETS.TEST": ("coco_2017_val_100",),
        "DATASETS.TRAIN": ("coco_2017_val_100",),
        "SOLVER.BASE_LR": 0.005,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_ITER": 40,
        "SOLVER.STEPS": (30,),
    },
}


def read(path: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def flatten(node: CfgNode, prefix: str = "") -> dict:
    flat = {}
    for key, value in node.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value})
    return flat


def build(cfg: CfgNode) -> torch.nn.Module:
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("name", ZOO)
def test_zoo_config_has_its_published_values(name):
    found, default = flatten(read(CONFIGS / f"{name}.yaml")), flatten(get_cfg())
    assert {key: value for key, value in found.items() if value != default[key]} == ZOO[name]
    assert {key: type(found[key]) for key in ZOO[name]} == {key: type(value) for key, value in ZOO[name].items()}


@pytest.mark.parametrize("name", ZOO)
def test_weights_have_the_names_shapes_and_types_of_published_ones(name):
    depth = ZOO[name].get("MODEL.RESNETS.DEPTH", 50)
    expected = json.loads(gzip.decompress((STATE_DICTS / f"retinanet_R_{depth}_FPN.json.gz").read_bytes()))
    state_dict = build(read(CONFIGS / f"{name}.yaml")).state_dict()
    found = [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state_dict.items()]
    assert found == expected


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_builds_and_its_dump_reloads_to_the_same(path, tmp_path):
    cfg = read(path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert read(tmp_path / "config.yaml") == cfg
    assert sum(parameter.numel() for parameter in build(cfg).parameters()) > 0
