"""What can happen to a training. Each fault is done to a run at a random moment; what comes of it is checked."""

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from detlib.data import DatasetMapper
from detlib.engine.run_comparison import compare_runs
from detlib.engine.run_record import read_records
from tests.faults.training import NUM_ITERATIONS, ROOT, At, Run, later, signal_run, verify_resume

Kill = verify_resume.Kill

FAULTS: dict[str, Callable[["Case"], None]] = {}
ONCE = {"2000 steps, memory flat"}  # It takes minutes, and nothing in it is random.


def fault(name):
    def register(function):
        FAULTS[name] = function
        return function

    return register


class Case:
    """A run to harm, and one that nothing happens to."""

    def __init__(self, reference: Run, run: Run, rng: random.Random) -> None:
        self.reference = reference
        self.run = run
        self.rng = rng
        self.seconds = verify_resume.seconds_per_iteration(reference.folder)

    def some_iteration(self, first: int = 1) -> int:
        return self.rng.randrange(first, NUM_ITERATIONS)

    def moment_in_step(self) -> float:
        return self.rng.uniform(0, self.seconds)

    def kill(self, iteration: int) -> None:
        """Trains until before an iteration."""
        self.ends_with(-signal.SIGKILL, trouble=At(iteration, lambda hook: verify_resume.kill_run()))

    def ends_with(self, status: int, *words: str, **kwargs) -> None:
        """Starts the run, and checks its exit status and that words were printed."""
        found = self.run.start(*kwargs.pop("options", ()), **kwargs)
        output = self.run.output
        assert found == status, f"exit status {found} instead of {status}: {output[-2000:]}"
        for word in words:
            assert word in output, f"{word!r} was not printed: {output[-2000:]}"

    def resumes_exactly(self, *words: str, options: Sequence[str] = ()) -> None:
        """Starts the run again, with another number of workers, and compares it with the one that was let alone."""
        self.ends_with(0, *words, options=[f"DATALOADER.NUM_WORKERS={self.rng.randrange(4)}", *options])
        differences = self.run.differences_from(self.reference)
        assert not differences, differences[0]


# Kills


@fault("SIGKILL between steps")
def kill_between_steps(case):
    case.kill(case.some_iteration())
    case.resumes_exactly()


@fault("SIGKILL in a step")
def kill_in_step(case):
    kill = Kill("step", case.some_iteration(), delay=case.moment_in_step())
    case.run.start(trouble=verify_resume.Killer(kill, case.run.folder))
    case.resumes_exactly()


@fault("SIGKILL in a checkpoint's write")
def kill_in_write(case):
    kill = Kill("write", case.some_iteration(), event=case.rng.randrange(4), delay=case.rng.uniform(0, 0.01))
    case.run.start(trouble=verify_resume.Killer(kill, case.run.folder))
    case.resumes_exactly()


def signal_in_step(case, number):
    """To all processes of the run."""
    delay = case.moment_in_step()
    return At(case.some_iteration(), lambda hook: later(delay, lambda: signal_run(number)))


def saves_and_stops(case, number):
    status = case.run.start(trouble=signal_in_step(case, number))
    # A signal in the last step may come too late, and find the training at its end.
    assert status in (128 + number, 0), f"exit status {status}: {case.run.output[-2000:]}"
    assert not list(case.run.folder.glob("model_final*")) or case.run.num_iterations == NUM_ITERATIONS
    saved = torch.load(case.run.last_checkpoint, weights_only=True)["iteration"]
    assert saved == case.run.num_iterations - 1, f"{case.run.num_iterations} iterations were done, but saved at {saved}"
    case.resumes_exactly()


@fault("SIGTERM")
def terminate(case):
    saves_and_stops(case, signal.SIGTERM)


@fault("SIGINT")
def interrupt(case):
    saves_and_stops(case, signal.SIGINT)


@fault("SIGINT twice")
def interrupt_twice(case):
    def press_twice(hook):
        for delay in (0.05, 1.5):  # Two within a second count as one.
            later(delay, lambda: signal_run(signal.SIGINT))
        time.sleep(60)  # The end of the step, at which the first would be answered, does not come.

    began = time.monotonic()
    case.run.start(trouble=At(case.some_iteration(), press_twice))
    assert time.monotonic() - began < 30, "a second SIGINT did not stop the run at once"
    case.resumes_exactly()


# Disks


@fault("full disk")
def full_disk(case):
    # Enough for logs, and too little for a checkpoint.
    size = case.reference.last_checkpoint.stat().st_size
    limit = case.rng.randrange(size // 2, size)
    fill = At(case.some_iteration() - 1, lambda hook: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    case.ends_with(2, "Could not write", trouble=fill)
    case.resumes_exactly()


def damage(case, change):
    """Kills the run once it has two checkpoints, and changes the bytes of the last one."""
    case.kill(case.some_iteration(first=7))
    path = case.run.last_checkpoint
    path.write_bytes(change(path.read_bytes()))
    case.resumes_exactly(path.name)


@fault("truncated last checkpoint")
def truncated_checkpoint(case):
    damage(case, lambda content: content[: case.rng.randrange(len(content))])


@fault("bit flip in the last checkpoint")
def flipped_bit(case):
    def flip(content):
        changed = bytearray(content)
        changed[case.rng.randrange(len(content))] ^= 1 << case.rng.randrange(8)
        return bytes(changed)

    damage(case, flip)


@fault("empty last_checkpoint")
def empty_pointer(case):
    case.kill(case.some_iteration(first=4))
    (case.run.folder / "last_checkpoint").write_bytes(b"")
    case.resumes_exactly("last_checkpoint")


# Data


@fault("killed data worker")
def killed_worker(case):
    def kill(hook):
        workers = multiprocessing.active_children()
        os.kill(case.rng.choice(workers).pid, signal.SIGKILL)

    case.ends_with(2, "process that loads data died", trouble=At(case.some_iteration(), kill))
    case.resumes_exactly()


def image_of_iteration(case, iteration):
    """One that the undisturbed run saw in an iteration."""
    return Path(case.rng.choice(read_records(case.reference.folder)[0][iteration]["samples"]))


@fault("hanging data worker")
def hanging_worker(case):
    stuck = image_of_iteration(case, case.some_iteration())
    load = DatasetMapper.__call__

    def load_or_hang(mapper, sample):
        if sample["file_name"] == str(stuck):
            time.sleep(60)
        return load(mapper, sample)

    def prepare():
        DatasetMapper.__call__ = load_or_hang

    case.ends_with(2, "DATALOADER.TIMEOUT", str(stuck), options=["DATALOADER.TIMEOUT=2"], prepare=prepare)
    case.resumes_exactly()


@contextlib.contextmanager
def truncated(case, path):
    content = path.read_bytes()
    path.write_bytes(content[: case.rng.randrange(len(content))])
    try:
        yield
    finally:
        path.write_bytes(content)


@fault("corrupt image, ON_CORRUPT: raise")
def corrupt_image(case):
    path = image_of_iteration(case, case.some_iteration())
    with truncated(case, path):
        case.ends_with(2, str(path), options=["DATALOADER.CHECK=False"])
    case.resumes_exactly()


@fault("corrupt image, ON_CORRUPT: skip")
def skipped_image(case):
    options = ["DATALOADER.ON_CORRUPT=skip", "DATALOADER.CHECK=False"]
    path = image_of_iteration(case, case.some_iteration())
    case.reference = Run(case.run.config, case.run.folder / "undisturbed")
    with truncated(case, path):
        assert case.reference.start(*options) == 0
        kill = At(case.some_iteration(), lambda hook: verify_resume.kill_run())
        case.ends_with(-signal.SIGKILL, options=options, trouble=kill)
        case.resumes_exactly("number 1 so far", str(path), options=options)


# Numbers


@fault("NaN loss")
def not_a_number(case):
    def spoil(hook):
        with torch.no_grad():
            next(hook.trainer.model.parameters()).fill_(float("nan"))

    case.ends_with(2, "not finite", trouble=At(case.some_iteration(first=4), spoil))
    weights = torch.load(case.run.last_checkpoint, weights_only=True)["model"].values()
    assert all(weight.isfinite().all() for weight in weights), "weights that are NaN were saved"
    case.resumes_exactly()


# Processes


@fault("death of a torchrun worker")
def elastic(case):
    undisturbed = case.run.folder.parent / "elastic_undisturbed"
    if not undisturbed.exists():
        torchrun(case.run.config, undisturbed, dies_in=-1)
    output = torchrun(case.run.config, case.run.folder, dies_in=case.some_iteration())
    assert output.count("Training from iteration") >= 2, "no process died"
    differences = [text for row in compare_runs(undisturbed, case.run.folder) for text in row.differences]
    assert not differences, differences[0]


def torchrun(config, folder, dies_in):
    """Trains in two processes, of which one kills itself in an iteration, once."""
    torch_run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    program = ["-m", "tests.faults.elastic", str(config), str(folder), str(dies_in)]
    done = subprocess.run([sys.executable, *torch_run, *program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"exit status {done.returncode}: {output[-2000:]}"
    return output


# Time


@fault("2000 steps, memory flat")
def soak(case):
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
