"""How long a training is: scaled to the number of processes, and counted in passes over the data."""

import logging
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

from detlib.config import CfgNode
from detlib.config.origins import COMMAND_LINE, DEFAULT, place_of
from detlib.utils import comm
from detlib.utils.errors import ConfigError, DatasetError
from detlib.utils.file_io import PathManager

__all__ = ["auto_scale_workers", "num_samples_of", "uses_epochs", "with_iterations"]

logger = logging.getLogger(__name__)

# Section, the key in passes over the data, and the key in iterations that it goes over.
KEYS = (
    ("SOLVER", "MAX_EPOCH", "MAX_ITER"),
    ("SOLVER", "STEP_EPOCHS", "STEPS"),
    ("SOLVER", "WARMUP_EPOCHS", "WARMUP_ITERS"),
    ("SOLVER", "CHECKPOINT_EPOCHS", "CHECKPOINT_PERIOD"),
    ("TEST", "EVAL_EPOCHS", "EVAL_PERIOD"),
)


def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
    """See :meth:`DefaultTrainer.auto_scale_workers`."""
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, num_workers):
        return cfg
    if cfg.SOLVER.IMS_PER_BATCH % reference:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} must be a multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}"
        )
    scaled = cfg.clone()
    scaled.defrost()
    solver, scale = scaled.SOLVER, num_workers / reference
    solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
    solver.BASE_LR *= scale
    for node, key in [
        (solver, "MAX_ITER"),
        (solver, "WARMUP_ITERS"),
        (solver, "CHECKPOINT_PERIOD"),
        (scaled.TEST, "EVAL_PERIOD"),
    ]:
        node[key] = round(node[key] / scale)
    solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
    solver.REFERENCE_WORLD_SIZE = num_workers
    logger.info("Scaled the config from %d to %d processes: SOLVER is now\n%s", reference, num_workers, solver)
    if cfg.is_frozen():
        scaled.freeze()
    return scaled


def uses_epochs(cfg: CfgNode) -> bool:
    """Whether the config has a length in passes over the data."""
    return any(cfg[section][in_epochs] for section, in_epochs, _ in KEYS)


def with_iterations(cfg: CfgNode, data_loader: Iterable) -> CfgNode:
    """The config with its lengths in iterations, where it has them in passes over the training data.

    A pass is as many batches as have the samples of the dataset, whatever a sampler repeats or leaves out. Batches go
    on over the end of a pass, so that 2.5 batches of one are 5 of two; a length that is no whole number is rounded up.

    What it returns may be given to it again: lengths in passes stay in it. ``OUTPUT_DIR/config.yaml`` gets it, if there
    is such a file.

    Args:
        cfg: of which :func:`auto_scale_workers` has scaled the batch size.
        data_loader: of which the dataset is.

    Raises:
        ConfigError: a length is of no use, or contradicts one of the command line.
        DatasetError: the data has no length.
    """
    if not uses_epochs(cfg):
        return cfg
    num_samples = num_samples_of(data_loader)
    if num_samples is None:
        raise DatasetError(
            f"{_named(cfg)} counts passes over the training data, but {type(data_loader).__name__} does not tell how "
            "many samples that has, as an IterableDataset does not; set SOLVER.MAX_ITER and the like in its place"
        )
    _check(cfg)
    resolved = cfg.clone()
    resolved.defrost()
    lines = []
    for section, in_epochs, in_iterations in KEYS:
        epochs = cfg[section][in_epochs]
        if not epochs:
            continue
        value = _in_iterations(epochs, num_samples / cfg.SOLVER.IMS_PER_BATCH)
        told = _replaced(cfg, section, in_epochs, in_iterations, value)
        lines.append(f"  {section}.{in_epochs} {_text(epochs)} = {section}.{in_iterations} {value}{told}")
        resolved[section][in_iterations] = value
    logger.info(
        "A pass over the %d samples of the training data is %.4g batches of %d:\n%s",
        num_samples,
        num_samples / cfg.SOLVER.IMS_PER_BATCH,
        cfg.SOLVER.IMS_PER_BATCH,
        "\n".join(lines),
    )
    if cfg.is_frozen():
        resolved.freeze()
    _save(resolved)
    return resolved


def num_samples_of(data_loader: Iterable) -> int | None:
    """The length of the dataset that is at the bottom of a loader; None if it does not tell."""
    part: Any = data_loader
    while hasattr(part, "dataset"):  # Loaders, streams and batches are made of each other.
        part = part.dataset
    try:
        return len(part)
    except TypeError:
        return None


def _in_iterations(epochs: float | Sequence[float], batches_per_epoch: float) -> int | tuple[int, ...]:
    if isinstance(epochs, Sequence):
        return tuple(_in_iterations(epoch, batches_per_epoch) for epoch in epochs)
    return max(math.ceil(round(epochs * batches_per_epoch, 6)), 1)


def _check(cfg: CfgNode) -> None:
    for section, in_epochs, _ in KEYS:
        epochs = cfg[section][in_epochs]
        numbers = epochs if isinstance(epochs, Sequence) else [epochs]
        if any(not isinstance(number, (int, float)) or not 0 <= number < math.inf for number in numbers):
            raise ConfigError(
                f"{section}.{in_epochs} is {epochs!r}, but passes over the data are counted by numbers from 0 on"
            )
    steps, end = cfg.SOLVER.STEP_EPOCHS, cfg.SOLVER.MAX_EPOCH
    if any(step <= previous for previous, step in zip([0, *steps], steps, strict=False)):
        raise ConfigError(f"SOLVER.STEP_EPOCHS must rise and be above 0, but they are {tuple(steps)}")
    if end and steps and steps[-1] >= end:
        raise ConfigError(f"SOLVER.STEP_EPOCHS {tuple(steps)} reach the end of the training, SOLVER.MAX_EPOCH {end}")


def _replaced(cfg: CfgNode, section: str, in_epochs: str, in_iterations: str, value: Any) -> str:
    """In words, which value somebody gave in iterations is passed over.

    Raises:
        ConfigError: it is of the command line, where nobody writes what is to count for nothing.
    """
    old, place = cfg[section][in_iterations], place_of(cfg[section], in_iterations)
    if place == DEFAULT or old == value:
        return ""
    place_of_epochs = place_of(cfg[section], in_epochs)
    if place == COMMAND_LINE != place_of_epochs:
        raise ConfigError(
            f"{section}.{in_iterations} {old} of the command line counts for nothing, as {section}.{in_epochs} "
            f"{_text(cfg[section][in_epochs])} ({place_of_epochs}) goes over it; also give {section}.{in_epochs} "
            f"{'()' if in_epochs == 'STEP_EPOCHS' else 0}"
        )
    return f", in place of {old} ({place})"


def _text(epochs: float | Sequence[float]) -> str:
    return f"({', '.join(map(_text, epochs))})" if isinstance(epochs, Sequence) else f"{epochs:g}"


def _named(cfg: CfgNode) -> str:
    return ", ".join(f"{section}.{in_epochs}" for section, in_epochs, _ in KEYS if cfg[section][in_epochs])


def _save(cfg: CfgNode) -> None:
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not (cfg.OUTPUT_DIR and comm.is_main_process() and PathManager.exists(path)):
        return
    with PathManager.open(path) as f:
        old = f.read()
    command, _, _ = old.partition("\n")
    new = (f"{command}\n" if command.startswith("#") else "") + cfg.dump()
    if new != old:  # A restart takes what was saved after this file for its own.
        with PathManager.open(path, "w") as f:
            f.write(new)
