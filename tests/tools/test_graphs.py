"""A module graph in what predicts and evaluates, as any other model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from detlib.checkpoint import DetectionCheckpointer
from detlib.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detlib.engine import DefaultPredictor
from detlib.evaluation import COCOEvaluator, inference_on_dataset
from detlib.modeling import build_model


@pytest.fixture
def graph_cfg(tiny_cfg, tmp_path):
    """RetinaNet for the six classes of shapes_val as a graph, with saved random weights; all that it finds counts."""
    cfg = tiny_cfg
    cfg.MODEL.META_ARCHITECTURE = "ModuleGraph"
    pyramid = {"out_channels": 16, "top_block": "LastLevelP6P7"}
    cfg.MODEL.MODULE_GRAPH.NET = [
        {"name": "backbone", "type": "build_resnet_backbone"},
        {"name": "fpn", "type": "fpn", "prev": "backbone", "kwargs": pyramid},
        {
            "name": "head",
            "type": "retinanet_head",
            "prev": "fpn",
            "kwargs": {"num_classes": 6, "score_thresh_test": 0.0},
        },
    ]
    cfg.DATASETS.TEST = ("shapes_val",)
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(cfg), save_dir=str(tmp_path)).save("random")
    cfg.MODEL.WEIGHTS = str(tmp_path / "random.pth")
    (tmp_path / "graph.yaml").write_text(cfg.dump())
    return cfg


def test_predictor_gives_objects_in_the_size_of_the_image(graph_cfg):
    instances = DefaultPredictor(graph_cfg)(np.zeros((50, 80, 3), dtype=np.uint8))["instances"]
    assert instances.image_size == (50, 80)
    assert 0 < len(instances) <= graph_cfg.TEST.DETECTIONS_PER_IMAGE


@pytest.mark.parametrize(("threshold", "any_shown"), [(0.0, True), (1.0, False)])
def test_demo_shows_objects_from_its_threshold_on_whatever_that_of_the_node_is(
    graph_cfg, call_tool, tmp_path, threshold, any_shown
):
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "photo.png")
    options = ("--config-file", "graph.yaml", "--input", "photo.png", "--confidence-threshold", threshold)
    done = call_tool("demo", *options, "--output", "drawn.png", "--json", "found.json")
    assert done.status == 0, done.err
    assert bool(json.loads((tmp_path / "found.json").read_text())[0]["instances"]) == any_shown
    assert Image.open(tmp_path / "drawn.png").size[0] > 0


def test_coco_evaluation_of_an_untrained_graph_finds_next_to_nothing(graph_cfg, tmp_path):
    graph = build_model(graph_cfg)
    samples = DatasetCatalog.get("shapes_val")[:2]
    loader = build_detection_test_loader(
        dataset=samples, mapper=DatasetMapper(graph_cfg, is_train=False), num_workers=0
    )
    results = inference_on_dataset(graph, loader, COCOEvaluator("shapes_val", output_dir=str(tmp_path)))
    found = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {x["image_id"] for x in found} == {sample["image_id"] for sample in samples}
    assert 0 <= results["bbox"]["AP"] < 5
