"""A small training in a process of its own, to do harm to."""

import importlib.util
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from detlib.engine import HookBase
from detlib.engine.run_comparison import compare_runs, last_checkpoint
from detlib.engine.run_record import read_records
from detlib.engine.setup import run_tool

ROOT = Path(__file__).parents[2]
# Forked processes need no imports, which take longer than such a training.
FORK = multiprocessing.get_context("fork")
TIMEOUT = 120.0  # seconds, after which a run counts as hanging

NUM_IMAGES = 24
CONFIG = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  DEVICE: cpu
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, OUT_FEATURES: [res3, res4, res5], NORM: BN, STEM_OUT_CHANNELS: 4, RES2_OUT_CHANNELS: 4}
  FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 8}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]], ASPECT_RATIOS: [[1.0]]}
  RETINANET: {NUM_CLASSES: 2, NUM_CONVS: 1}
MODEL_EMA: {ENABLED: true}
DATASETS:
  REGISTER: [{NAME: faults, TYPE: coco, JSON: FOLDER/images.json, IMAGES: FOLDER/images}]
  TRAIN: [faults]
INPUT: {MIN_SIZE_TRAIN: [32, 48], CROP: {ENABLED: true, SIZE: [0.8, 0.8]}}
DATALOADER: {NUM_WORKERS: 2}
SOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.01, WARMUP_ITERS: 4, STEPS: [6], MAX_ITER: 10, CHECKPOINT_PERIOD: 3}
SEED: 1
"""
NUM_ITERATIONS = 10


def load_tool(name):
    """A module of tools/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


verify_resume = load_tool("verify_resume")


def write_dataset(folder: Path) -> Path:
    """Draws upright and wide images with a box each, and returns the config of a training on them."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for i in range(NUM_IMAGES):
        height, width = (48, 36) if i % 3 else (36, 48)
        image = rng.integers(0, 100, (height, width, 3), dtype=np.uint8)
        x, y, size = (int(value) for value in rng.integers((0, 0, 12), (16, 16, 20)))
        image[y : y + size, x : x + size, i % 2] = 255
        cv2.imwrite(str(folder / "images" / f"{i}.png"), image)
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
        box = {"bbox": [x, y, size, size], "area": size**2, "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": i % 2 + 1, **box})
    categories = [{"id": 1, "name": "blue"}, {"id": 2, "name": "green"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "images.json").write_text(json.dumps(data))
    config = folder / "config.yaml"
    config.write_text(CONFIG.replace("FOLDER", str(folder)))
    return config


def arguments_of(config: Path, folder: Path, *options: str) -> list[str]:
    """The command line of a training that records what it does, and resumes if it can."""
    return [
        *("tools/train_net.py", "--record", str(folder), "--program", str(ROOT / "tools" / "train_net.py")),
        *("--config-file", str(config), "--resume", *options, f"OUTPUT_DIR={folder}"),
    ]


class At(HookBase):
    """Calls a function at the beginning of an iteration."""

    def __init__(self, iteration: int, act: Callable[[HookBase], None]) -> None:
        self._iteration = iteration
        self._act = act

    def before_step(self) -> None:
        if self.trainer.iter == self._iteration:
            self._act(self)


def later(delay: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(delay, act)
    timer.daemon = True
    timer.start()


def signal_run(number: signal.Signals) -> None:
    """To all processes of the run, as a terminal does at Ctrl-C, and Slurm at the end of the time."""
    os.killpg(os.getpgid(0), number)


class Run:
    """A training in a folder, as by tools/train_net.py; each start goes on from the last checkpoint."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.folder.mkdir(parents=True)

    def start(self, *options: str, trouble: HookBase | None = None, prepare: Callable[[], None] | None = None) -> int:
        """Trains.

        Args:
            options: changes of the config.
            trouble: a hook that does some harm.
            prepare: called in the new process, before everything.

        Returns:
            the exit status; negative for a signal, and -999 if it hung.
        """
        if last_checkpoint(self.folder):
            options = ("SEED=-1", *options)  # All random numbers have to come from the checkpoint.
        process = FORK.Process(target=self._train, args=(options, trouble, prepare))
        process.start()
        end = time.monotonic() + TIMEOUT
        # join() with a time waits for processes that load data, too, which notice after seconds that theirs is killed.
        while process.exitcode is None and time.monotonic() < end:
            time.sleep(0.02)
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return -999
        return process.exitcode

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    @property
    def num_iterations(self) -> int:
        """That were finished."""
        records = read_records(self.folder)
        return 1 + max(records[0]) if records else 0

    @property
    def last_checkpoint(self) -> Path:
        return self.folder / last_checkpoint(self.folder)

    def differences_from(self, other: "Run") -> list[str]:
        return [text for row in compare_runs(other.folder, self.folder) for text in row.differences]

    def _train(self, options: tuple[str, ...], trouble: HookBase | None, prepare: Callable[[], None] | None) -> None:
        os.setsid()
        with open(self.folder / "output.txt", "ab", buffering=0) as output:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
        # pytest has put others in their place, to which an earlier test may have led the logs.
        for name in ("detlib", "fvcore"):
            logging.getLogger(name).handlers.clear()
        sys.stdout = sys.stderr = open(1, "w", buffering=1)  # noqa: SIM115
        # After a fork, the threads of the parent are gone, which OpenMP would wait for.
        torch.set_num_threads(1)
        sys.argv = arguments_of(self.config, self.folder, *options)
        if prepare is not None:
            prepare()
        run_tool(lambda: verify_resume.run_recorded(trouble))
