"""The tools with models and datasets that have a class for every pixel."""

import json

import numpy as np
import pytest
from PIL import Image

from detlib.checkpoint import DetectionCheckpointer
from detlib.data import MetadataCatalog
from detlib.engine import DefaultTrainer
from detlib.engine.model_hooks import VisualizePredictions
from detlib.modeling import build_model

ARCHITECTURES = ["SemanticSegmentor", "PanopticFPN"]


@pytest.fixture(params=ARCHITECTURES)
def cfg(request, tiny_semantic_cfg, tiny_rcnn_cfg, tmp_path):
    """Both fixtures change the one ``tiny_cfg``."""
    cfg = tiny_rcnn_cfg
    cfg.MODEL.META_ARCHITECTURE = request.param
    is_panoptic = request.param == "PanopticFPN"
    cfg.MODEL.MASK_ON = is_panoptic
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5 if is_panoptic else 10
    dataset = "shapes_val_panoptic_separated" if is_panoptic else "shapes_val_sem_seg"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.SEED = 1
    return cfg


@pytest.fixture
def config_path(cfg, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(cfg.dump())
    return path


def test_demo_draws_and_lists_the_classes_of_pixels(cfg, config_path, call_tool, tmp_path):
    DetectionCheckpointer(build_model(cfg), save_dir=str(tmp_path)).save("random")
    Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    options = ("--config-file", config_path, "--input", "photo.png", "--json", "found.json", "--output", "drawn.png")
    done = call_tool("demo", *options, "--opts", f"MODEL.WEIGHTS={tmp_path / 'random.pth'}")
    assert done.status == 0, done.err
    assert (tmp_path / "drawn.png").exists()
    (record,) = json.loads((tmp_path / "found.json").read_text())
    assert sum(stuff["area"] for stuff in record["stuff"]) <= 48 * 64
    names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes
    assert all(stuff["category_name"] == names[stuff["category_id"]] for stuff in record["stuff"])
    if record["stuff"]:
        assert f"% {record['stuff'][0]['category_name']}" in done.out


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_visualize_data_draws_label_maps(config_path, call_tool, tmp_path, source):
    done = call_tool("visualize_data", "--config-file", config_path, "--source", source, "--limit", 1)
    assert done.status == 0, done.err
    assert "1 images" in done.out


def test_training_reads_labels_steps_and_draws(cfg):
    cfg.SOLVER.MAX_ITER = 1
    cfg.TEST.EVAL_PERIOD = 0
    cfg.DATASETS.TEST = ()
    drawn = []

    class Keep(VisualizePredictions):
        def _draw(self, sample):
            drawn.append((sample["sem_seg"].shape, super()._draw(sample)))
            return drawn[-1][1]

    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([Keep(1, metadata=MetadataCatalog.get(cfg.DATASETS.TRAIN[0]))])
    trainer.train()
    (((height, width), picture),) = drawn
    assert picture.shape == (height, 2 * width, 3)
    assert (picture[:, :width] != picture[:, width:]).any()
