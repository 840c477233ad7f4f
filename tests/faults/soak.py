"""Trains a tiny detector for many steps; fails when a process grows in memory: `python -m tests.faults.soak`."""

import argparse
import logging
import multiprocessing
import sys
import tempfile
from pathlib import Path

from detlib.config import get_cfg
from detlib.engine import DefaultTrainer, HookBase

CONFIG = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  DEVICE: cpu
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, OUT_FEATURES: [res3, res4, res5], NORM: BN, STEM_OUT_CHANNELS: 4, RES2_OUT_CHANNELS: 4}
  FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 8}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]], ASPECT_RATIOS: [[1.0]]}
  RETINANET: {NUM_CLASSES: 6, NUM_CONVS: 1}
DATASETS: {TRAIN: [shapes_train]}
INPUT: {MIN_SIZE_TRAIN: [64]}
SOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.005, WARMUP_ITERS: 50, STEPS: [], CHECKPOINT_PERIOD: 500}
SEED: 1
"""
WARM_UP = 0.2  # Share of the steps in which buffers fill and allocators settle.
# MiB. A run of 2,000 steps grew by 0.2; one that keeps an image of each step grows by 25 and more.
BOUND = 8.0


class WatchMemory(HookBase):
    """Keeps the resident memory of this process and of its workers, in MiB, at some steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.measured: list[tuple[int, dict[str, float]]] = []

    def after_step(self):
        step = self.trainer.iter + 1
        if step % self.every == 0:
            workers = sorted(multiprocessing.active_children(), key=lambda worker: worker.pid)
            found = {"main": resident_mib("self")}
            found.update((f"worker {i}", resident_mib(worker.pid)) for i, worker in enumerate(workers))
            self.measured.append((step, found))


def resident_mib(pid) -> float:
    """Resident memory of a process, as Linux tells it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no resident memory")


def soak(steps: int, num_workers: int, folder: str) -> list[tuple[int, dict[str, float]]]:
    """Train, and return the memory of each process at ten steps, the first of them after the warm-up."""
    config = Path(folder) / "soak.yaml"
    config.write_text(CONFIG)
    cfg = get_cfg()
    cfg.merge_from_file(str(config))
    cfg.merge_from_list(
        ["SOLVER.MAX_ITER", steps, "DATALOADER.NUM_WORKERS", num_workers, "OUTPUT_DIR", str(Path(folder) / "run")]
    )
    trainer = DefaultTrainer(cfg)
    watch = WatchMemory(max(steps // 10, 1))
    trainer.register_hooks([watch])
    trainer.train()
    return [(step, found) for step, found in watch.measured if step >= WARM_UP * steps]


def growth(measured) -> dict[str, float]:
    """MiB by which each process has grown."""
    first, last = measured[0][1], measured[-1][1]
    return {name: last[name] - first[name] for name in first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bound", type=float, default=BOUND, metavar="MIB", help="of the growth of each process")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        measured = soak(args.steps, args.workers, folder)
    names = list(measured[0][1])
    print("  step" + "".join(f"{name:>12}" for name in names) + "   MiB resident")
    for step, found in measured:
        print(f"{step:6}" + "".join(f"{found[name]:12.1f}" for name in names))
    grown = growth(measured)
    print("growth" + "".join(f"{grown[name]:12.1f}" for name in names) + f"   at most {args.bound:g} are allowed")
    sys.exit(1 if max(grown.values()) > args.bound else 0)


if __name__ == "__main__":
    main()
