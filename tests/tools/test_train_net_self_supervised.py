"""Pre-training with tools/train_net.py: what is evaluated, and what is not."""

import json

import numpy as np
import pytest

from detlib.data import DatasetCatalog, MetadataCatalog

TINY_MAE = """
MODEL:
  META_ARCHITECTURE: MAE
  DEVICE: cpu
  BACKBONE: {NAME: MAEViT, IMG_SIZE: 16, PATCH_SIZE: 8, EMBED_DIM: 8, DEPTH: 1, NUM_HEADS: 1}
  SSL:
    NECK: {NAME: MAEPretrainDecoder, EMBED_DIM: 8, DEPTH: 1, NUM_HEADS: 1}
    HEAD: {NAME: MAEPretrainHead}
    LOSS: {NAME: MAEReconstructionLoss}
DATASETS: {TRAIN: [dark_and_bright], TEST: [dark_and_bright_again]}
INPUT:
  VIEWS:
    - AUGMENTATIONS: [{NAME: RandomResizedCrop, SIZE: 16}]
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 4, MAX_ITER: 3, WARMUP_ITERS: 0}
TEST: {EVAL_PERIOD: 2}
OUTPUT_DIR: output
SEED: 1
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A tiny MAE for images whose upper half is dark or bright."""
    samples = [{"image": np.full((20, 24, 3), 100, dtype=np.uint8), "label": i % 2} for i in range(8)]
    for sample in samples:
        sample["image"][:10] = 250 * sample["label"]
    for name, part in (("dark_and_bright", samples), ("dark_and_bright_again", samples[:4])):
        monkeypatch.setitem(DatasetCatalog.data, name, lambda part=part: part)
        MetadataCatalog.get(name).set(classes=("dark", "bright"), evaluator_type="image_classification")
    (tmp_path / "mae.yaml").write_text(TINY_MAE)
    yield tmp_path / "mae.yaml"
    for name in ("dark_and_bright", "dark_and_bright_again"):
        MetadataCatalog.remove(name)


def copied(done):
    return [line.split("copypaste: ")[1] for line in done.out.splitlines() if "copypaste: " in line]


@pytest.mark.parametrize("tool", ["train_net", "plain_train_net"])
def test_features_are_evaluated_while_they_are_learnt_and_afterwards(call_tool, config, tool):
    trained = call_tool(tool, "--config-file", config)
    assert trained.status == 0, trained.err
    assert copied(trained) == ["Task: knn", "top1", "100.0000"] * 2  # After iteration 2 and at the end.
    alone = call_tool(tool, "--config-file", config, "--eval-only", "--resume")
    assert copied(alone) == ["Task: knn", "top1", "100.0000"], alone.err


def test_learning_curve_of_the_features_is_in_the_metrics(call_tool, config, tmp_path):
    call_tool("train_net", "--config-file", config)
    lines = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").read_text().splitlines()]
    assert [(line["iteration"], line["knn/top1"]) for line in lines if "knn/top1" in line] == [(1, 100), (3, 100)]


@pytest.mark.parametrize("tool", ["train_net", "plain_train_net"])
def test_training_ends_well_if_images_have_boxes_and_no_class(call_tool, config, tool):
    done = call_tool(tool, "--config-file", config, "DATASETS.TEST=[shapes_val]")
    assert done.status == 0, done.err
    assert "'shapes_val' is not evaluated" in done.out and "has no label" in done.out
    assert "Done." in done.out


def test_checkpoint_is_evaluated_in_the_size_of_its_views(call_tool, config):
    call_tool("train_net", "--config-file", config, "DATASETS.TEST=[]")
    args = ("--weights", "output/model_final.pth", "--knn", "--k", 1, "--linear")
    done = call_tool("evaluate_features", "--config-file", config, *args)
    assert done.status == 0, done.err
    assert "8 features of 8 training and 4 test images" in done.out
    assert "| 1 nearest    | 100.000 |" in done.out and "| linear probe |" in done.out
