import json

import numpy as np
import pytest
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog

CONFIG = """
MODEL:
  META_ARCHITECTURE: ImageClassifier
  DEVICE: cpu
  BACKBONE: {{NAME: build_resnet_backbone, FREEZE_AT: 0}}
  RESNETS: {{DEPTH: 18, OUT_FEATURES: [res5], NORM: BN, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8}}
  CLASSIFIER: {{NUM_CLASSES: 2, BATCH_AUGMENTS: {mixtures}, HEAD: {{LOSS: {{NAME: LabelSmoothLoss}}}}}}
DATASETS:
  REGISTER:
    - {{NAME: colours_of_test, TYPE: image_folder, IMAGES: {folder}}}
  TRAIN: [colours_of_test]
  TEST: [colours_of_test]
INPUT:
  FORMAT: RGB
  AUGMENTATIONS_TRAIN: [{{NAME: RandomResizedCrop, SIZE: 32}}, {{NAME: RandomFlip}}]
  AUGMENTATIONS_TEST: [{{NAME: Resize, SHAPE: [32, 32]}}]
DATALOADER: {{NUM_WORKERS: 0, ASPECT_RATIO_GROUPING: false}}
SOLVER: {{IMS_PER_BATCH: 4, MAX_ITER: 2, STEPS: [], WARMUP_ITERS: 0}}
OUTPUT_DIR: {output}
SEED: 1
"""


@pytest.fixture
def config_file(tmp_path):
    """Writes the config of a tiny classifier for a folder of three blue and three red images of different sizes."""
    for name, channel in (("blue", 2), ("red", 0)):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.zeros((40 + 10 * i, 50, 3), dtype=np.uint8)
            pixels[..., channel] = 255
            Image.fromarray(pixels).save(tmp_path / "colours" / name / f"{i}.png")

    def write(mixtures="[]"):
        text = CONFIG.format(mixtures=mixtures, folder=tmp_path / "colours", output=tmp_path / "out")
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path / "config.yaml"

    yield write
    if "colours_of_test" in DatasetCatalog:
        DatasetCatalog.remove("colours_of_test")
        MetadataCatalog.remove("colours_of_test")


def metrics_in(folder):
    """All metrics that were written, the last value of each."""
    lines = (folder / "metrics.json").read_text().splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}


def test_folder_of_images_is_trained_on_and_evaluated(call_tool, config_file, tmp_path):
    done = call_tool("train_net", "--config-file", config_file())
    assert done.status == 0, done.err
    metrics = metrics_in(tmp_path / "out")
    assert {"total_loss", "top1_acc"} <= metrics.keys()
    assert 0 <= metrics["classification/top1"] <= 100
    assert (tmp_path / "out" / "model_final.pth").is_file()
    again = call_tool("train_net", "--config-file", config_file(), "--eval-only", "--resume")
    assert again.status == 0, again.err
    assert "top1" in again.out


def test_mixed_images_train_from_a_config(call_tool, config_file, tmp_path):
    mixtures = "[{NAME: Mixup, ALPHA: 0.2}, {NAME: CutMix, ALPHA: 1.0}, {NAME: ResizeMix, ALPHA: 1.0}]"
    done = call_tool("train_net", "--config-file", config_file(mixtures))
    assert done.status == 0, done.err
    assert "top1_acc" not in metrics_in(tmp_path / "out")  # Labels are soft.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("LOSS={NAME: CrossEntropyLoss}", "such as BATCH_AUGMENTS make, need use_soft=True"),
        ("LOSS={NAME: L1Loss}", "predictions are (4, 2) and targets (4,); expected one shape"),
        ("TOPK=[1, 5]", "set TOPK in MODEL.CLASSIFIER.HEAD to 2 or less"),
        ("TOPK=0", "topk must be positive"),
    ],
)
def test_parts_that_do_not_go_together_are_one_clear_line(call_tool, config_file, change, message):
    mixtures = "[{NAME: Mixup, ALPHA: 1.0}]" if "CrossEntropy" in change else "[]"
    done = call_tool("train_net", "--config-file", config_file(mixtures), f"MODEL.CLASSIFIER.HEAD.{change}")
    assert done.status == 2
    assert message in done.err.splitlines()[-1]


def test_wrong_number_of_classes_is_one_clear_line(call_tool, config_file):
    done = call_tool("train_net", "--config-file", config_file(), "MODEL.CLASSIFIER.NUM_CLASSES=3")
    assert done.status == 2
    assert "MODEL.CLASSIFIER.NUM_CLASSES is 3, but the dataset 'colours_of_test' has 2 classes (blue, red)" in done.err
    assert "MODEL: {CLASSIFIER: {NUM_CLASSES: 2}}" in done.err
