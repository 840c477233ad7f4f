"""Several heads on one trunk: for the same images, or each for the images of a dataset of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detlib.config import get_cfg
from detlib.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detlib.data.datasets import register_datasets
from detlib.engine import DefaultTrainer
from detlib.evaluation import build_evaluator, inference_on_dataset
from detlib.modeling import build_model
from detlib.utils.errors import DatasetError

CONFIGS = Path(__file__).parents[4] / "configs" / "graph"

TWO_HEADS = """
MODEL:
  META_ARCHITECTURE: ModuleGraph
  DEVICE: cpu
  MODULE_GRAPH:
    NET:
      - {name: trunk, type: build_resnet_backbone}
      - name: detection
        type: retinanet_head
        prev: trunk
        kwargs: {num_classes: 2, in_features: [res3], num_convs: 1}
        loss_weights: {loss_box_reg: 2.0}
        tasks: [det]
      - {name: pooling, type: gap, prev: trunk, tasks: [cls]}
      - {name: classification, type: linear_cls_head, prev: pooling, kwargs: {num_classes: 3}, tasks: [cls]}
  BACKBONE: {FREEZE_AT: 0}
  RESNETS:
    DEPTH: 18
    OUT_FEATURES: [res3]
    NORM: BN
    STEM_OUT_CHANNELS: 8
    RES2_OUT_CHANNELS: 8
  ANCHOR_GENERATOR: {SIZES: [[16]], ASPECT_RATIOS: [[1.0]]}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 3, WARMUP_ITERS: 0}
SEED: 1
"""
DETECTION_LOSSES = {"detection.loss_cls", "detection.loss_box_reg"}
CLASSIFICATION_LOSSES = {"classification.loss_cls"}


@pytest.fixture
def two_heads(tmp_path):
    """The config above, in which text can be replaced."""

    def read(old="", new=""):
        (tmp_path / "two_heads.yaml").write_text(TWO_HEADS.replace(old, new))
        cfg = get_cfg()
        cfg.merge_from_file(str(tmp_path / "two_heads.yaml"))
        cfg.OUTPUT_DIR = str(tmp_path / "output")
        return cfg

    return read


@pytest.fixture
def samples(sample):
    """Two images with both kinds of labels, for a task."""

    def make(task=None):
        made = [{**sample(64, 64, [[8, 8, 40, 40]], [1]), "label": label} for label in (0, 2)]
        return made if task is None else [{**s, "task": task} for s in made]

    return make


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.parametrize(
    ("task", "losses", "other"),
    [("det", DETECTION_LOSSES, "classification"), ("cls", CLASSIFICATION_LOSSES, "detection")],
)
def test_batch_of_a_task_teaches_the_trunk_and_its_own_head(two_heads, samples, task, losses, other):
    model = build(two_heads())
    found = model(samples(task))
    sum(found.values()).backward()
    assert set(found) == losses
    assert all(parameter.grad is not None for parameter in model.nodes.trunk.parameters())
    assert all(parameter.grad is None for parameter in model.nodes[other].parameters())


def test_batch_without_a_task_has_the_losses_of_all_heads(two_heads, samples):
    assert set(build(two_heads())(samples())) == DETECTION_LOSSES | CLASSIFICATION_LOSSES


def test_weight_of_a_loss_is_a_factor_on_it_alone(two_heads, samples):
    weighted = build(two_heads())(samples("det"))
    plain = build(two_heads("loss_weights: {loss_box_reg: 2.0}", ""))(samples("det"))
    assert weighted["detection.loss_box_reg"].item() == pytest.approx(2 * plain["detection.loss_box_reg"].item())
    assert weighted["detection.loss_cls"].item() == pytest.approx(plain["detection.loss_cls"].item())


def test_batch_of_two_tasks_is_refused(two_heads, samples):
    with pytest.raises(DatasetError, match=r"tasks \['det', 'cls'\]; they must all be of one task"):
        build(two_heads())([samples("det")[0], samples("cls")[1]])


@pytest.mark.parametrize(("task", "keys"), [("det", {"instances"}), ("cls", {"pred_score", "pred_label"})])
def test_prediction_is_that_of_the_heads_of_the_task(two_heads, samples, task, keys):
    assert [set(result) for result in build(two_heads()).eval()(samples(task))] == [keys, keys]


@pytest.fixture
def two_datasets(tmp_path):
    """Declarations of 4 images with a box each, ``tiny_boxes``, and 3 with a label each, ``tiny_labels``."""
    rng = np.random.default_rng(0)
    for name in ("photos", "kinds/cat", "kinds/cow", "kinds/dog"):
        (tmp_path / name).mkdir(parents=True)
    for path in (*(f"photos/{i}.jpg" for i in range(4)), "kinds/cat/0.jpg", "kinds/cow/0.jpg", "kinds/dog/0.jpg"):
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(tmp_path / path)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 80} for i in range(4)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1 + i % 2, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0}
            for i in range(4)
        ],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "bubble"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    yield [
        {
            "NAME": "tiny_boxes",
            "TYPE": "coco",
            "TASK": "det",
            "JSON": str(tmp_path / "boxes.json"),
            "IMAGES": str(tmp_path / "photos"),
        },
        {"NAME": "tiny_labels", "TYPE": "image_folder", "TASK": "cls", "IMAGES": str(tmp_path / "kinds")},
    ]
    for name in ("tiny_boxes", "tiny_labels"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("aspect_ratio_grouping", [True, False])
def test_two_datasets_train_both_heads_and_each_is_evaluated_by_its_own(
    two_heads, two_datasets, tmp_path, aspect_ratio_grouping
):
    cfg = two_heads()
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = aspect_ratio_grouping
    cfg.DATASETS.REGISTER = two_datasets
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ["tiny_boxes", "tiny_labels"]
    register_datasets(cfg)
    torch.manual_seed(0)
    trainer = DefaultTrainer(cfg)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").read_text().splitlines()]
    # Of an epoch of 4 images and 3, two batches are of the former and one is of the latter, in any order.
    assert {key for line in lines for key in line} >= DETECTION_LOSSES | CLASSIFICATION_LOSSES | {"total_loss"}
    evaluators = [build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
    results = trainer.test(cfg, trainer.model, evaluators)
    assert {name: set(result) for name, result in results.items()} == {
        "tiny_boxes": {"bbox"},
        "tiny_labels": {"classification"},
    }


def test_shipped_example_is_trained_on_boxes_and_labels_and_evaluated_by_ap_and_miou():
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / "multi_task_shapes.yaml"))
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 1
    model, (name,) = build(cfg), cfg.DATASETS.TEST
    losses = model(next(iter(build_detection_train_loader(cfg))))
    assert set(losses) == DETECTION_LOSSES | {"segmentation.loss_sem_seg"}
    samples = DatasetCatalog.get(name)[:2]
    loader = build_detection_test_loader(samples, mapper=DatasetMapper(cfg, is_train=False))
    results = inference_on_dataset(model, loader, build_evaluator(cfg, name))
    assert {"AP", "AP50"} <= results["bbox"].keys() and "mIoU" in results["sem_seg"]
