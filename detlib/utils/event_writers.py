"""Writers of what an `EventStorage` holds: to the log, to a JSON file, to TensorBoard."""

import datetime
import json
import logging
import os
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from detlib.utils.event_storage import EventStorage, get_event_storage
from detlib.utils.file_io import PathManager
from detlib.utils.memory import host_memory

__all__ = ["CommonMetricPrinter", "EventWriter", "JSONWriter", "TensorboardXWriter", "waiting_share"]


class EventWriter:
    """Reads the current storage and writes what is new somewhere."""

    def write(self) -> None:
        """Write what came since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the output."""


class _NewScalars:
    """The scalars, smoothed, that were put since the last call."""

    def __init__(self, window_size: int) -> None:
        self._window_size = window_size
        self._last_iteration = -1

    def __call__(self, storage: EventStorage) -> list[tuple[str, float, int]]:
        scalars = storage.latest_with_smoothing_hint(self._window_size).items()
        new = [(name, value, step) for name, (value, step) in scalars if step > self._last_iteration]
        self._last_iteration = max([self._last_iteration, *(step for _, _, step in new)])
        return new


class JSONWriter(EventWriter):
    """Appends one JSON object per iteration written to a file, such as `metrics.json`."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        self._file = PathManager.open(json_file, "a")
        self._new_scalars = _NewScalars(window_size)

    def write(self) -> None:
        """Append the new scalars; those of one iteration share a line."""
        lines: dict[int, dict[str, float]] = {}
        for name, value, iteration in self._new_scalars(get_event_storage()):
            lines.setdefault(iteration, {"iteration": iteration})[name] = value
        for _, line in sorted(lines.items()):
            self._file.write(json.dumps(line, sort_keys=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, images and histograms for TensorBoard.

    Args:
        log_dir: Folder of the event files.
        kwargs: Further arguments of `torch.utils.tensorboard.SummaryWriter`.
    """

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        self._writer_args = {"log_dir": log_dir, **kwargs}
        self._new_scalars = _NewScalars(window_size)

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._writer_args)

    def write(self) -> None:
        """Write what is new, and take images and histograms out of the storage."""
        storage = get_event_storage()
        for name, value, iteration in self._new_scalars(storage):
            self._writer.add_scalar(name, value, iteration)
        for name, image, iteration in storage._images:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        """Flush and close the event file, if anything was written."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs the line that one watches: time left, iteration, losses, accuracies and spreads, speed, rate and memory.

    ``img/s`` counts the images of all processes, ``data_wait`` is the share of the time in which the model waited for
    data, and ``ram`` is the memory of this process and its workers.

    Args:
        max_iter: Number of iterations of the run, for the time left.
        window_size: Iterations over which losses and times are smoothed.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        self.logger = logging.getLogger("detlib.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration, seconds
        self._memory = 0
        self._next_look_at_memory = 0.0

    def write(self) -> None:
        """Log the line for the current iteration."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # Called once more after training, when there is no progress to report.
        eta = self._eta(storage)
        parts = [
            f"eta: {eta}" if eta else "",
            f"iter: {storage.iter}",
            *(f"{name}: {self._median(storage, name):.4g}" for name in _watched(storage)),
            *self._times(storage),
            *self._rates(storage),
            f"lr: {storage.history('lr').latest():.5g}" if "lr" in storage.histories() else "",
            f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M" if torch.cuda.is_available() else "",
            f"ram: {self._host_memory() / 2**20:.0f}M",
        ]
        self.logger.info(" " + "  ".join(part for part in parts if part))

    def _median(self, storage: EventStorage, name: str) -> float:
        return storage.history(name).median(storage.count_samples(name, self._window_size))

    def _average(self, storage: EventStorage, name: str) -> float:
        return storage.history(name).avg(storage.count_samples(name, self._window_size))

    def _times(self, storage: EventStorage) -> Iterator[str]:
        for name in ("time", "data_time"):
            if name in storage.histories():
                yield f"{name}: {self._average(storage, name):.4f}  last_{name}: {storage.history(name).latest():.4f}"

    def _rates(self, storage: EventStorage) -> Iterator[str]:
        """Images per second and the share of waiting, of the same iterations."""
        if "time" not in storage.histories():
            return
        if "images_per_second" in storage.histories():
            samples = storage.count_samples("images_per_second", self._window_size)
            rates, times = (storage.history(name).values()[-samples:] for name in ("images_per_second", "time"))
            num_images = sum(rate * seconds for (rate, _), (seconds, _) in zip(rates, times, strict=False))
            yield f"img/s: {num_images / sum(seconds for seconds, _ in times):.1f}"
        share = waiting_share(storage, self._window_size)
        if share is not None:
            yield f"data_wait: {share:.0%}"

    def _host_memory(self) -> int:
        start = time.perf_counter()
        if start >= self._next_look_at_memory:
            self._memory = host_memory()
            end = time.perf_counter()
            self._next_look_at_memory = end + 200 * (end - start)  # so that it never takes more than 0.5 % of the time
        return self._memory

    def _eta(self, storage: EventStorage) -> str:
        """Time left as h:mm:ss, from the "time" that a timer hook puts or else from the calls of this writer."""
        if self._max_iter is None:
            return ""
        remaining = self._max_iter - storage.iter - 1
        now = (storage.iter, time.perf_counter())
        last, self._last_write = self._last_write, now
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * remaining
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        elif last is not None and now[0] > last[0]:
            seconds = (now[1] - last[1]) / (now[0] - last[0]) * remaining
        else:
            return ""
        return str(datetime.timedelta(seconds=int(seconds)))


def waiting_share(storage: EventStorage, window_size: int) -> float | None:
    """Which part of the time of the last iterations was waiting for data; None if neither was measured."""
    if not {"time", "data_time"} <= storage.histories().keys():
        return None
    # The first iterations, in which workers start, have no "time".
    samples = storage.count_samples("time", window_size)
    waiting, total = (storage.history(name).avg(samples) for name in ("data_time", "time"))
    return min(waiting / total, 1.0) if total > 0 else None


def _watched(storage: EventStorage) -> list[str]:
    """Names of losses, of the accuracy of a classifier, and of the spread of embeddings, which shows a collapse.

    Results of evaluations, which are not to be smoothed, are left out: they would be shown long after.
    """
    hints = storage.smoothing_hints()
    return [n for n in storage.histories() if ("loss" in n or n.endswith(("_acc", "_spread"))) and hints[n]]
