"""Every YAML under configs/ loads and builds; those of the model zoo have their published values and weight names.

``golden/zoo_configs.json`` states what each config changes in its base, and ``golden/state_dicts`` the names, shapes
and types of the weights, for configs that are alike in one file.
"""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import torch

from detlib import model_zoo
from detlib.config import CfgNode, get_cfg
from detlib.modeling import build_model
from detlib.solver import build_optimizer

CONFIGS = Path(__file__).parents[1] / "configs"
GOLDEN = Path(__file__).parent / "golden"
ZOO = json.loads((GOLDEN / "zoo_configs.json").read_text())
STATE_DICTS = json.loads((GOLDEN / "state_dicts" / "index.json").read_text())

# Lists of weights that were published for configs in Python -> the YAML of the same model.
COMMON_MODELS = {
    "common/models/cascade_rcnn.py": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "common/models/fcos.py": "COCO-Detection/fcos_R_50_FPN_1x.yaml",
    "common/models/keypoint_rcnn_fpn.py": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "common/models/mask_rcnn_c4.py": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "common/models/mask_rcnn_fpn.py": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "common/models/mask_rcnn_vitdet.py": "ViTDet/mask_rcnn_vitdet_b_100ep.yaml",
    "common/models/panoptic_fpn.py": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "common/models/retinanet.py": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
}
# A classifier of torchvision inside a class that this config itself defines: an example, and no model of the library.
NOT_OURS = {"Misc/torchvision_imagenet_R_50.py"}


def read(path: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def flatten(node: CfgNode, prefix: str = "") -> dict:
    flat = {}
    for key, value in node.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value})
    return flat


def published_values(name: str) -> dict:
    entry = ZOO[name]
    own = {key: tuple(v["tuple"]) if isinstance(v, dict) else v for key, v in entry["values"].items()}
    return {**(published_values(entry["base"]) if "base" in entry else {}), **own}


def weights(cfg: CfgNode) -> list[list]:
    """[name, shape, type] of each entry of the model's state dict."""
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.WEIGHTS", "", "MODEL.DEVICE", "meta"])
    return _weights_of_model_section(cfg.MODEL.dump())


@cache  # most configs of the zoo share their model with others
def _weights_of_model_section(text: str) -> list[list]:
    cfg = get_cfg()
    cfg.MODEL.merge_from_other_cfg(CfgNode.load_cfg(text))
    with torch.device("meta"):
        state_dict = build_model(cfg).state_dict()
    return [[key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state_dict.items()]


def yaml_of(name: str) -> Path:
    """The file for a name of the index, which may be that of a config in Python."""
    return CONFIGS / COMMON_MODELS.get(name, name.removesuffix(".py").removesuffix(".yaml") + ".yaml")


@pytest.mark.parametrize("name", ZOO)
def test_zoo_config_has_its_published_values(name):
    found, expected = flatten(read(CONFIGS / name)), {**flatten(get_cfg()), **published_values(name)}
    assert found == expected
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in expected.items()}


def test_zoo_knows_all_published_weights_and_no_others():
    expected = {name.removesuffix(".yaml"): entry["checkpoint"] for name, entry in ZOO.items() if "checkpoint" in entry}
    assert expected == model_zoo.weights.WEIGHTS


@pytest.mark.parametrize("name", sorted(STATE_DICTS.keys() - NOT_OURS))
def test_weights_have_the_names_shapes_and_types_of_published_ones(name):
    expected = json.loads(gzip.decompress((GOLDEN / "state_dicts" / STATE_DICTS[name]).read_bytes()))
    assert weights(read(yaml_of(name))) == expected


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_builds_and_its_dump_reloads_to_the_same(path, tmp_path):
    cfg = read(path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert read(tmp_path / "config.yaml") == cfg
    assert weights(cfg)


@pytest.mark.parametrize("path", sorted((CONFIGS / "graph").glob("*.yaml")), ids=lambda path: path.name)
def test_graph_config_trains_a_step(path, sample):
    cfg = read(path)
    cfg.merge_from_list(["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    before = {name: x.detach().clone() for name, x in model.named_parameters() if x.requires_grad}
    labels = {"sem_seg": torch.zeros(64, 64, dtype=torch.int64), "label": 0}
    losses = model([{**sample(64, 64, [[8, 8, 40, 40]], [0]), **labels} for _ in range(2)])
    sum(losses.values()).backward()
    build_optimizer(cfg, model).step()
    after = dict(model.named_parameters())
    changed = [name for name, x in before.items() if not x.equal(after[name])]
    assert {name.split(".")[1] for name in changed} == {name.split(".")[1] for name in before}  # every node learns
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
