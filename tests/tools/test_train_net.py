import importlib.util
import io
import json
import logging
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import register_coco_instances
from detlib.engine.setup import run_tool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A tiny RetinaNet on a few images of shapes_val, as a file."""
    folder = tmp_path_factory.mktemp("config")
    path = folder / "tiny.yaml"
    path.write_text(
        """
MODEL:
  META_ARCHITECTURE: RetinaNet
  DEVICE: cpu
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS:
    DEPTH: 18
    OUT_FEATURES: [res3, res4, res5]
    NORM: BN
    STEM_OUT_CHANNELS: 8
    RES2_OUT_CHANNELS: 8
  FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RETINANET: {NUM_CLASSES: 6, NUM_CONVS: 1, SCORE_THRESH_TEST: 0.0}
DATASETS:
  TRAIN: ("shapes_val",)
  TEST: ("shapes_val",)
INPUT:
  MIN_SIZE_TRAIN: (64,)
  MIN_SIZE_TEST: 64
DATALOADER: {NUM_WORKERS: 0}
SOLVER:
  IMS_PER_BATCH: 2
  MAX_ITER: 4
  STEPS: (3,)
  WARMUP_ITERS: 2
  CHECKPOINT_PERIOD: 2
SEED: 1
"""
    )
    return path


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def tool(name, *args):
    """Runs a tool in this process, as a new one would spend seconds on imports."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), ROOT / "tools" / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / "tools" / name), *map(str, args)])
        for logger in ("detlib", "fvcore"):
            patch.setattr(logging.getLogger(logger), "handlers", [])
        try:
            run_tool(module.run)
        except SystemExit as stop:
            code = stop.code
    return Done(code, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module", params=["train_net.py", "plain_train_net.py"])
def trained(request, config, tmp_path_factory):
    """(tool, output folder, what it printed) after a training of four iterations."""
    folder = tmp_path_factory.mktemp("output")
    done = tool(request.param, "--config-file", config, f"OUTPUT_DIR={folder}")
    assert done.returncode == 0, done.stderr
    return request.param, folder, done.stdout


def box_ap(output):
    """The comma-separated line of results."""
    return [line.split("copypaste: ")[1] for line in output.splitlines() if "copypaste: " in line][-1]


def test_training_leaves_weights_config_and_metrics_and_shows_the_ap(trained):
    _, folder, output = trained
    assert {"model_final.pth", "config.yaml", "metrics.json", "last_checkpoint"} <= set(os.listdir(folder))
    assert "AP50" in output
    assert str(folder) in output.splitlines()[-1]
    metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert any("total_loss" in line and line["iteration"] == 3 for line in metrics)
    assert [line["iteration"] for line in metrics if "bbox/AP" in line] == [4]


def test_evaluation_alone_gives_the_same_ap(trained, config):
    name, folder, output = trained
    done = tool(name, "--config-file", folder / "config.yaml", "--eval-only", "--resume")
    assert done.returncode == 0, done.stderr
    assert box_ap(done.stdout) == box_ap(output)
    assert "nan" not in box_ap(output)


def test_resume_goes_on_after_the_last_checkpoint(trained, config):
    name, folder, _ = trained
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    done = tool(name, "--config-file", config, "--resume", "OUTPUT_DIR", folder)
    assert done.returncode == 0, done.stderr
    assert "Training from iteration 2 to 4" in done.stdout


@pytest.fixture
def empty_dataset(tmp_path):
    (tmp_path / "empty.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}')
    register_coco_instances("empty_dataset", {}, str(tmp_path / "empty.json"), str(tmp_path))
    yield
    DatasetCatalog.remove("empty_dataset")
    MetadataCatalog.remove("empty_dataset")


@pytest.mark.parametrize("name", ["train_net.py", "plain_train_net.py"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--config-file"),
        (["--config-file", "none.yaml"], "none.yaml"),
        (["--config-file", "{config}", "SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LR"),
        (["--config-file", "{config}", "SOLVER.MAX_ITER", "1", "--num-gpus", "1"], "--num-gpus"),
        (["--config-file", "{config}", "OUTPUT_DIR={folder}", "MODEL.RETINANET.NUM_CLASSES=5"], "NUM_CLASSES: 6"),
        (["--config-file", "{config}", "OUTPUT_DIR={folder}", "DATASETS.TRAIN.0=empty_dataset"], "'empty_dataset'"),
        (["--config-file", "{config}", "OUTPUT_DIR={folder}", "MODEL.WEIGHTS=none.pth"], "none.pth"),
    ],
)
def test_mistakes_of_users_are_one_clear_line(name, args, message, config, empty_dataset, tmp_path):
    values = {"config": config, "folder": tmp_path}
    done = tool(name, *[arg.format(**values) for arg in args])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message.format(**values) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_print_config_names_the_origin_of_values(config):
    done = tool("train_net.py", "--config-file", config, "--print-config", "SOLVER.MAX_ITER=9")
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "MAX_ITER" in line)
    assert "9" in line
    assert "tiny.yaml" in next(line for line in done.stdout.splitlines() if "IMS_PER_BATCH" in line)


@pytest.mark.parametrize("name", ["train_net", "plain_train_net"])
def test_evaluating_without_weights_is_refused(call_tool, config_file, name):
    done = call_tool(name, "--config-file", config_file, "--eval-only", "MODEL.WEIGHTS=")
    assert done.status == 2
    assert "--eval-only needs weights: add MODEL.WEIGHTS=FILE, or --resume" in done.err


@pytest.mark.parametrize("name", ["train_net.py", "plain_train_net.py"])
def test_help_teaches_with_examples(name):
    done = tool(name, "--help")
    assert "Examples:" in done.stdout
    assert name in done.stdout.split("Examples:")[1]


def test_views_for_a_model_of_one_image_are_refused_in_one_line(call_tool, config_file):
    views = "INPUT.VIEWS=[{COUNT: 2, AUGMENTATIONS: [{NAME: RandomResizedCrop, SIZE: 32}]}]"
    done = call_tool("train_net", "--config-file", config_file, views)
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "takes one 'image' of each sample, but '" in line and "only file_name, height, image_id, sample_idx" in line
    assert line.endswith(": remove INPUT.VIEWS, or set MODEL.META_ARCHITECTURE to a self-supervised algorithm")
