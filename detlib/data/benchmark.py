"""How fast data loading is, and which of its parts is slow."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from detlib.data.build import build_batch_data_loader
from detlib.data.common import DatasetFromList, MapDataset
from detlib.data.samplers import TrainingSampler
from detlib.utils import comm

__all__ = ["DataLoaderBenchmark", "iter_benchmark"]

logger = logging.getLogger(__name__)


def iter_benchmark(
    iterator: Iterator[Any], num_iter: int, warmup: int = 5, max_time_seconds: float = 60
) -> tuple[float, list[float]]:
    """Time an iterator.

    Args:
        num_iter: how many items are timed, fewer if time is up.
        warmup: how many are taken before.
        max_time_seconds: for all timed items together.

    Returns:
        The mean number of seconds for an item, and the seconds of each.
    """
    for _ in range(warmup):
        next(iterator)
    seconds: list[float] = []
    start = last = time.perf_counter()
    for _ in tqdm(range(num_iter), disable=None):
        next(iterator)
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        if now - start > max_time_seconds:
            break
    return float(np.mean(seconds)), seconds


class _AlwaysTheSame(torch.utils.data.IterableDataset):
    """One item over and over: loading it costs nothing but its way between processes."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.item


class DataLoaderBenchmark:
    """Times the parts of data loading by themselves: reading samples, mapping, workers, passing data, all together.

    >>> benchmark = DataLoaderBenchmark(samples, mapper=DatasetMapper(cfg), total_batch_size=16, num_workers=4)
    >>> benchmark.benchmark_workers(100)
    """

    def __init__(
        self,
        dataset: list[Any] | Dataset,
        *,
        mapper: Callable[[Any], Any],
        sampler: Sampler | None = None,
        total_batch_size: int,
        num_workers: int = 0,
        max_time_seconds: int = 90,
    ) -> None:
        """
        Args:
            dataset: see build_detection_train_loader, also for the others.
            max_time_seconds: for each benchmark.
        """
        if isinstance(dataset, list):
            dataset = DatasetFromList(dataset, copy=False, serialize=True)
        self.dataset = dataset
        self.mapper = mapper
        self.sampler = TrainingSampler(len(dataset)) if sampler is None else sampler
        self.total_batch_size = total_batch_size
        self.num_workers = num_workers
        self.per_gpu_batch_size = total_batch_size // comm.get_world_size()
        self.max_time_seconds = max_time_seconds

    def benchmark_dataset(self, num_iter: int, warmup: int = 5) -> float:
        """Time reading samples, without mapper and workers. Returns seconds for a sample, like the next."""
        samples = (self.dataset[index] for index in self.sampler)
        return self._time(samples, num_iter, warmup, "sample of the dataset")

    def benchmark_mapper(self, num_iter: int, warmup: int = 5) -> float:
        """Time reading and mapping samples in this process."""
        mapped = MapDataset(self.dataset, self.mapper)
        return self._time((mapped[index] for index in self.sampler), num_iter, warmup, "mapped sample")

    def benchmark_workers(self, num_iter: int, warmup: int = 10) -> list[float]:
        """Time batches with as few workers as possible, and with all of them. Returns seconds for a batch of each."""
        return [
            self._time_batches(MapDataset(self.dataset, self.mapper), self.sampler, n, num_iter, warmup)
            for n in sorted({min(1, self.num_workers), self.num_workers})
        ]

    def benchmark_IPC(self, num_iter: int, warmup: int = 10) -> float:
        """Time the way of finished batches from the workers to this process. Returns seconds for a batch."""
        item = self.mapper(self.dataset[next(iter(self.sampler))])
        return self._time_batches(_AlwaysTheSame(item), None, self.num_workers, num_iter, warmup)

    def benchmark_distributed(self, num_iter: int, warmup: int = 10) -> float:
        """Time batches in all processes of a distributed job at once, of which the slowest counts."""
        seconds = self._time_batches(
            MapDataset(self.dataset, self.mapper), self.sampler, self.num_workers, num_iter, warmup
        )
        slowest = max(comm.all_gather(seconds))
        logger.info("%.4f s for a batch of %d in the slowest process", slowest, self.per_gpu_batch_size)
        return slowest

    def _time_batches(
        self, dataset: Dataset, sampler: Sampler | None, num_workers: int, num_iter: int, warmup: int
    ) -> float:
        loader = build_batch_data_loader(dataset, sampler, self.total_batch_size, num_workers=num_workers)
        what = f"batch of {self.per_gpu_batch_size} with {num_workers} workers"
        return self._time(loader, num_iter, warmup, what)

    def _time(self, items: Iterable[Any], num_iter: int, warmup: int, what: str) -> float:
        mean, seconds = iter_benchmark(iter(items), num_iter, warmup, self.max_time_seconds)
        quantiles = np.percentile(seconds, [1, 5, 50, 95, 99]).round(4).tolist()
        logger.info("%.4f s for a %s; percentiles 1, 5, 50, 95, 99: %s", mean, what, quantiles)
        return mean
