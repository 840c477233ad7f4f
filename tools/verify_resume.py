#!/usr/bin/env python
"""Prove for a config that training goes on after a kill as if there had been none, to the last bit.

Trains once without interruption and once with kills and --resume, then compares what each iteration saw (files and
pixels), its losses, weights and random states, and all that is in the final checkpoints.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from detlib.config import CfgNode, get_cfg
from detlib.engine import HookBase, default_argument_parser, launch
from detlib.engine.run_comparison import Comparison, compare_runs, last_checkpoint
from detlib.engine.run_record import RunRecorder, read_records
from detlib.engine.setup import add_overrides, run_tool
from detlib.utils.errors import ConfigError, DetlibError

EXAMPLES = """
Examples:
  12 iterations, killed between steps, in a step, and while a checkpoint is written:
      {prog} --config-file config.yaml
  only kills in steps, 5 of them, at other moments than the default ones:
      {prog} --config-file config.yaml --iters 40 --kills step,step,step,step,step --seed 7
  with two processes, and no other numbers of workers than 2:
      {prog} --config-file config.yaml --num-gpus 2 --workers 2
  whether the training itself repeats, without any kill:
      {prog} --config-file config.yaml --kills none
"""

PLACES = ("between", "step", "write")
CUDA_HINTS = """On CUDA some operations add in another order each time. Try
  CUDNN_BENCHMARK=False, and CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment;
  --kills none, to see whether the training repeats at all; and MODEL.DEVICE=cpu, where it must."""


class Kill(NamedTuple):
    """A moment of a run."""

    place: str
    iteration: int
    # Of a write: how many files are opened or renamed before; and seconds from there, or from the start of a step.
    event: int = 0
    delay: float = 0.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the training")
    parser.add_argument("--iters", type=int, default=12, metavar="N", help="length of the training (default: 12)")
    parser.add_argument("--checkpoint-period", type=int, default=4, metavar="N", help="(default: 4)")
    parser.add_argument(
        "--kills",
        default="between,step,write",
        metavar="PLACES",
        help="where a run is killed: between steps, in a step, in the write of a checkpoint; or none (default: each)",
    )
    parser.add_argument(
        "--workers",
        metavar="N,N,...",
        help="worker processes of each start in turn (default: those of the config, none, one more)",
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="processes, on the CPU if there is no GPU (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    parser.add_argument("--output-dir", metavar="DIR", help="keep both runs there (default: only if they differ)")
    parser.add_argument(
        "--program",
        default=str(Path(__file__).parent / "train_net.py"),
        metavar="FILE",
        help="a copy of tools/train_net.py with changes, that is with a Trainer and main(args)",
    )
    add_overrides(parser)
    return parser.parse_args()


def run() -> None:
    if "--record" in sys.argv:
        run_recorded()
        return
    args = parse_args()
    folder = Path(args.output_dir or tempfile.mkdtemp(prefix="verify_resume_"))
    if any(folder.glob("*")):
        raise ConfigError(f"--output-dir {folder} must be empty: what is in it would be resumed")
    rows = verify(args, folder)
    print_table(rows)
    if any(row.differences for row in rows):
        print(f"The resumed run differs. Both are in {folder}")
        if torch.cuda.is_available():
            print(CUDA_HINTS)
        sys.exit(1)
    if not args.output_dir:
        shutil.rmtree(folder)
    print("The resumed run is the uninterrupted one, to the last bit.")


# The two runs


def verify(args: argparse.Namespace, folder: Path) -> list[Comparison]:
    cfg = load_config(args)
    workers = [int(n) for n in (args.workers or default_workers(cfg)).split(",")]
    reference, killed = (Training(args, folder / name, cfg) for name in ("uninterrupted", "killed"))
    print(f"Uninterrupted, {args.iters} iterations:", flush=True)
    reference.start(workers[0])
    kills = plan_kills(args, seconds_per_iteration(reference.folder))
    print(f"With {len(kills)} kills:", flush=True)
    for i, kill in enumerate([*kills, None]):
        killed.start(workers[i % len(workers)], kill)
    return compare_runs(reference.folder, killed.folder)


def load_config(args: argparse.Namespace) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    return cfg


def default_workers(cfg: CfgNode) -> str:
    return f"{cfg.DATALOADER.NUM_WORKERS},0,{cfg.DATALOADER.NUM_WORKERS + 1}"


def seconds_per_iteration(folder: Path) -> float:
    return statistics.median(line["seconds"] for line in read_records(folder)[0].values())


def plan_kills(args: argparse.Namespace, seconds: float) -> list[Kill]:
    """One for each of the places, at random moments, in turn in each part of the training.

    Args:
        seconds: an iteration takes.
    """
    places = [] if args.kills == "none" else args.kills.split(",")
    if unknown := set(places) - set(PLACES):
        raise ConfigError(f"--kills has {', '.join(sorted(unknown))}; expected {', '.join(PLACES)}, or none")
    rng = random.Random(args.seed)
    rng.shuffle(places)
    kills = []
    for i, place in enumerate(places):
        first, end = (1 + (args.iters - 1) * k // len(places) for k in (i, i + 1))
        event = rng.randrange(4) if place == "write" else 0
        delay = rng.uniform(0, seconds if place == "step" else 0.003)
        kills.append(Kill(place, rng.randrange(first, max(end, first + 1)), event, delay))
    return kills


class Training:
    """A training in a folder, which can be started again and again."""

    def __init__(self, args: argparse.Namespace, folder: Path, cfg: CfgNode) -> None:
        self.folder = folder
        self._args = args
        self._cfg = cfg

    def start(self, num_workers: int, kill: Kill | None = None) -> None:
        """Trains, from the last checkpoint if there is one, to the end or until the kill."""
        resumed_from = last_checkpoint(self.folder)
        command = self._command(num_workers, kill, anew=not resumed_from)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "output.txt", "a") as output:
            print("$", shlex.join(command), file=output, flush=True)
            # A session of its own, so that a kill takes all its processes with it, as a power cut does.
            done = subprocess.run(command, stdout=output, stderr=output, start_new_session=True, check=False)
        self._report(num_workers, kill, resumed_from, done.returncode)

    def _command(self, num_workers: int, kill: Kill | None, anew: bool) -> list[str]:
        args, solver = self._args, self._cfg.SOLVER
        options = {
            "SOLVER.MAX_ITER": args.iters,
            "SOLVER.CHECKPOINT_PERIOD": args.checkpoint_period,
            # What there is of a schedule comes within these iterations.
            "SOLVER.WARMUP_ITERS": min(solver.WARMUP_ITERS, args.iters // 3),
            "SOLVER.STEPS": (args.iters * 2 // 3,) if solver.STEPS else (),
            "SOLVER.REFERENCE_WORLD_SIZE": 0,  # They shall not be scaled.
            **{f"SOLVER.{key}": 0 for key in ("MAX_EPOCH", "WARMUP_EPOCHS", "CHECKPOINT_EPOCHS")},
            "SOLVER.STEP_EPOCHS": (),
            "TEST.EVAL_EPOCHS": 0,
            "DATASETS.TEST": (),  # An evaluation at the end proves nothing and may take long.
        }
        ours = [f"{key}={value}" for key, value in options.items()]
        last = [f"DATALOADER.NUM_WORKERS={num_workers}", f"OUTPUT_DIR={self.folder}"]
        if self._cfg.SEED < 0 and anew:
            # The runs are to begin alike; when one goes on, all has to come from the checkpoint.
            last.append("SEED=1")
        kill_option = ["--kill", json.dumps(kill)] if kill else []
        return [
            *(sys.executable, os.path.abspath(__file__), "--record", str(self.folder), "--program", args.program),
            *(*kill_option, "--config-file", args.config_file, "--num-gpus", str(args.num_gpus), "--resume"),
            *(*ours, *args.opts, *last),
        ]

    def _report(self, num_workers: int, kill: Kill | None, resumed_from: str, status: int) -> None:
        killed = kill is not None and status == -signal.SIGKILL
        if status and not killed:
            raise DetlibError(f"the training failed with exit status {status}; see {self.folder / 'output.txt'}")
        records = read_records(self.folder)
        if not records and not killed:
            raise DetlibError(
                f"{self._args.program} recorded nothing: its Trainer must have the hooks of build_hooks()"
            )
        last = max(records[0]) if records else None
        end = "ended" if not killed else f"killed ({kill.place}), iteration {last} was the last to finish"
        print(f"  from {resumed_from or 'the start'}, {num_workers} workers: {end}", flush=True)


# A run


def run_recorded(trouble: HookBase | None = None) -> None:
    """What a subprocess does: the training program with two hooks more.

    Args:
        trouble: the second one; None for the kill of the command line, if there is one.
    """
    parser = default_argument_parser()
    parser.add_argument("--record")
    parser.add_argument("--program")
    parser.add_argument("--kill", type=lambda text: Kill(*json.loads(text)))
    args = parser.parse_args()
    launch(train_recorded, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args, trouble))


def train_recorded(args: argparse.Namespace, trouble: HookBase | None) -> None:
    program = load_program(args.program)

    class Trainer(program.Trainer):
        def build_hooks(self) -> list[HookBase | None]:
            killer = Killer(args.kill, self.cfg.OUTPUT_DIR) if args.kill else None
            return [RunRecorder(args.record), *super().build_hooks(), trouble or killer]

    program.Trainer = Trainer
    program.main(args)


def load_program(path: str) -> ModuleType:
    spec = spec_from_file_location(Path(path).stem, path)
    program = module_from_spec(spec)
    sys.path.insert(0, str(Path(path).parent))
    spec.loader.exec_module(program)
    return program


class Killer(HookBase):
    """Kills all processes of the run at the planned moment."""

    def __init__(self, kill: Kill, output_dir: str) -> None:
        self._kill = kill
        self._output_dir = os.path.abspath(output_dir)
        self._num_events = -1  # -1 until the iteration comes in which checkpoints are waited for.

    def before_step(self) -> None:
        if self.trainer.iter != max(self._kill.iteration, self.trainer.start_iter):
            return
        if self._kill.place == "between":
            kill_run()
        elif self._kill.place == "step":
            self._kill_later()
        else:
            self._num_events = 0
            sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Counts what happens to files of checkpoints: opened to write, renamed, removed."""
        writes = event in ("os.rename", "os.remove") or (event == "open" and "w" in str(arguments[1]))
        if not writes or not isinstance(arguments[0], str):
            return
        folder, name = os.path.split(os.path.abspath(arguments[0]))
        if folder.startswith(self._output_dir) and (".pth" in name or "checkpoint" in name):
            if self._num_events == self._kill.event:
                self._kill_later()
            self._num_events += 1

    def _kill_later(self) -> None:
        timer = threading.Timer(self._kill.delay, kill_run)
        timer.daemon = True  # The run may come to its end before.
        timer.start()


def kill_run() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


# What came of it


def print_table(rows: list[Comparison]) -> None:
    width = max(len(row.what) for row in rows)
    print(f"\n{'':{width}}  compared  differ")
    for row in rows:
        print(f"{row.what:{width}}  {row.num_compared:8}  {len(row.differences):6}")
    print()
    if differing := [row for row in rows if row.differences]:
        first = min(differing, key=lambda row: iteration_of(row.differences[0]))
        print(f"First difference, in the {first.what}:\n  {first.differences[0]}")


def iteration_of(difference: str) -> float:
    return int(difference.split()[1].strip(",:")) if difference.startswith("iteration") else float("inf")


if __name__ == "__main__":
    run_tool(run)
