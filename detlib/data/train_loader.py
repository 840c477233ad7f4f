"""The loader of training batches, which can go on exactly where it stopped."""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from detlib.data.common import GroupedDataset, MapDataset, ToIterableDataset, describe_sample, share_of_this_worker
from detlib.utils import comm
from detlib.utils.env import preserved_random_states, seed_all_generators
from detlib.utils.errors import DatasetError
from detlib.utils.events import log_scalar

__all__ = ["LoadingError", "SampleStream", "TrainLoader"]

logger = logging.getLogger(__name__)

MAX_REPORTS = 20  # of samples that cannot be read, in full; the rest is counted


class LoadingError(DatasetError):
    """A worker process died, or hangs, while it loaded a sample."""


class Loaded(NamedTuple):
    """What a worker gives."""

    positions: list[int]
    """Of the samples, in the stream of the sampler; empty where the dataset has its own order."""
    reports: list[str]
    """Of samples that could not be read."""
    samples: Any
    """A list of them, or what a function of the user has made of it."""


class SampleStream(ToIterableDataset):
    """The samples of an indexable dataset in the order of a sampler, from a position on.

    Random numbers that are drawn while a sample is loaded follow from seed, process and position alone. So it comes out
    the same whichever worker loads it, and whatever was loaded before.
    """

    def __init__(self, dataset: Dataset, sampler: Sampler, chunk_size: int, num_workers: int, seed: int) -> None:
        """
        Args:
            chunk_size: see ToIterableDataset.
        """
        super().__init__(dataset, sampler, shard_chunk_size=chunk_size)
        self.seed = seed
        self.rank = comm.get_rank()
        self.beginning = 0
        self.position = 0
        self.waiting: tuple[int, ...] = ()
        # What each worker is at, in memory that it shares with this process; -1 is nothing.
        self.loading = torch.full((max(num_workers, 1),), -1).share_memory_()

    def __iter__(self) -> Iterator[Loaded]:
        worker = get_worker_info()
        own = 0 if worker is None else worker.id
        for position, index in share_of_this_worker(self._places(), self.shard_chunk_size):
            self.loading[own] = index
            with preserved_random_states():
                seed_all_generators(self._seed_of(position))
                sample = self.dataset[index]
            self.loading[own] = -1
            yield Loaded([position], _reports_of(self.dataset), sample)

    def _places(self) -> Iterator[tuple[int, int]]:
        """Positions and indices: those that wait for others of their group, then all from the position on."""
        waiting = set(self.waiting)
        places = enumerate(self.sampler)
        yield from (place for place in itertools.islice(places, self.position) if place[0] in waiting)
        yield from places

    def _seed_of(self, position: int) -> int:
        entropy = [self.seed, self.rank, self.beginning, position]
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def being_loaded(self) -> list[str]:
        """The samples at which workers are."""
        indices = [index for index in self.loading.tolist() if index >= 0]
        source = self.dataset.source if isinstance(self.dataset, MapDataset) else self.dataset
        return [f"number {index}, {describe_sample(source[index])}" for index in indices]


class TrainLoader:
    """Batches without end, or as long as the samples last.

    ``iter(loader)`` goes on after the last batch that was given, also in another process, after ``load_state_dict``:
    each sample of the sampler's stream comes once, and comes out the same, with any number of workers. Of an
    IterableDataset, that holds only for where it begins: it starts anew.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler | None,
        batch_size: int,
        *,
        group_of: Callable[[Any], Hashable] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = True,
        num_workers: int = 0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            dataset: indexable, or iterable with sampler None.
            batch_size: in this process.
            group_of: tells the group of a sample; a batch is of one group.
            collate_fn: from the list of samples to the batch.
            seed: of what is random in loading; None: it follows from ``SEED``.
            kwargs: further arguments of torch's DataLoader.
        """
        seed = torch.initial_seed() % 2**31 if seed is None else seed
        # What a worker loads at a time goes to it in one piece: then the order does not depend on their number.
        size_of_part = 1 if group_of is not None else batch_size
        if sampler is None:
            self.dataset: IterableDataset = dataset
        else:
            self.dataset = SampleStream(dataset, sampler, size_of_part, num_workers, seed)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.num_corrupt = 0
        self._group_of = group_of
        self._collate_fn = collate_fn
        self._arguments = {
            "dataset": self.dataset,
            "batch_size": size_of_part,
            "drop_last": drop_last,
            "collate_fn": _Collate(collate_fn if group_of is None else None),
            "num_workers": num_workers,
            "generator": torch.Generator().manual_seed(seed),  # Without, it would draw from that of the training.
            **kwargs,
        }

    def __iter__(self) -> Iterator[Any]:
        if self._group_of is None:
            for loaded in self._load():
                self._pass(loaded.positions)
                yield loaded.samples
            return
        groups = GroupedDataset(self._samples(), self.batch_size, lambda item: self._group_of(item[1]))
        for batch in groups:
            positions = {position for position, _ in batch}
            if isinstance(self.dataset, SampleStream):
                self.dataset.waiting = tuple(p for p in self.dataset.waiting if p not in positions)
            samples = [sample for _, sample in batch]
            yield samples if self._collate_fn is None else self._collate_fn(samples)

    def restart(self, number: int) -> None:
        """Begin the stream of the sampler anew.

        Args:
            number: of this beginning; what is random in loading depends on it.
        """
        if isinstance(self.dataset, SampleStream):
            self.dataset.beginning, self.dataset.position, self.dataset.waiting = number, 0, ()

    def state_dict(self) -> dict[str, Any]:
        """Where this process is in the data; empty for an IterableDataset."""
        stream = self.dataset
        if not isinstance(stream, SampleStream):
            return {}
        state = {name: getattr(stream, name) for name in ("seed", "beginning", "position", "waiting")}
        state |= {"num_samples": len(stream.dataset), "num_corrupt": self.num_corrupt}
        if hasattr(stream.sampler, "state_dict"):
            state["sampler"] = stream.sampler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, at the next ``iter``, where the loader was that gave this state."""
        stream = self.dataset
        if not isinstance(stream, SampleStream) or not state:
            logger.warning("The training data is a stream without places, so it starts anew")
            return
        if state["num_samples"] != len(stream.dataset):
            logger.warning(
                "The training data has %d samples, but had %d when the checkpoint was written: the order is another",
                len(stream.dataset),
                state["num_samples"],
            )
        for name in ("seed", "beginning", "position"):
            setattr(stream, name, state[name])
        stream.waiting = tuple(state["waiting"])
        self.num_corrupt = state["num_corrupt"]
        if "sampler" in state and hasattr(stream.sampler, "load_state_dict"):
            stream.sampler.load_state_dict(state["sampler"])

    def _samples(self) -> Iterator[tuple[int | None, Any]]:
        """Samples one by one, with their positions."""
        for loaded in self._load():
            self._pass(loaded.positions)
            if loaded.positions:
                self.dataset.waiting += (loaded.positions[0],)
            yield (loaded.positions or [None])[0], loaded.samples[0]

    def _pass(self, positions: list[int]) -> None:
        if positions:
            passed = max(positions)
            # Samples that had been waiting come again after a resume, before all others.
            self.dataset.waiting = tuple(p for p in self.dataset.waiting if p not in positions)
            self.dataset.position = max(self.dataset.position, passed + 1)

    def _load(self) -> Iterator[Loaded]:
        parts = iter(DataLoader(**self._arguments))
        while True:
            try:
                loaded = next(parts)
            except StopIteration:
                return
            except (RuntimeError, ConnectionError) as error:
                raise self.explain(error) from error
            self._report(loaded.reports)
            yield loaded

    def explain(self, error: Exception) -> Exception:
        """The error of torch's loader about its workers, with the samples that these were at; others as they are.

        Torch tells of the death of a worker by an exception in the main process, wherever that is.
        """
        text = str(error)
        if text.startswith("DataLoader timed out"):
            what = (
                f"no worker of the training data gave anything for {self._arguments['timeout']} s "
                "(DATALOADER.TIMEOUT). Is the storage reachable?"
            )
        elif text.startswith("DataLoader worker (pid"):
            what = f"a process that loads data died: {text.strip()} Often there was not enough memory"
        elif self.num_workers > 0 and isinstance(error, ConnectionError) and error.strerror:
            # Its samples are in memory that is fetched from it, maybe before torch has heard of its end. That exception
            # shall not come while this one is on its way.
            with contextlib.suppress(RuntimeError):
                time.sleep(1.0)
            what = f"a process that loads data died: {error.strerror}. Often there was not enough memory"
        else:
            return error
        samples = self.dataset.being_loaded() if isinstance(self.dataset, SampleStream) else []
        return LoadingError(f"{what}. Being loaded: {'; '.join(samples) or 'nothing that is known'}")

    def _report(self, reports: list[str]) -> None:
        for report in reports:
            self.num_corrupt += 1
            if self.num_corrupt <= MAX_REPORTS:
                logger.warning("Left out a sample that cannot be read, number %d so far: %s", self.num_corrupt, report)
            elif self.num_corrupt & (self.num_corrupt - 1) == 0:  # 32, 64, 128, ...
                logger.warning("%d samples could not be read so far; the last one: %s", self.num_corrupt, report)
        if reports:
            log_scalar("num_corrupt", self.num_corrupt)


class _Collate:
    """Joins what a worker has loaded, in the worker."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any] | None) -> None:
        self.collate_fn = collate_fn

    def __call__(self, items: list[Any]) -> Loaded:
        if items and isinstance(items[0], Loaded):
            positions = [position for item in items for position in item.positions]
            reports = [report for item in items for report in item.reports]
            samples = [item.samples for item in items]
        else:
            positions, reports, samples = [], [], items
        return Loaded(positions, reports, samples if self.collate_fn is None else self.collate_fn(samples))


def _reports_of(dataset: Dataset) -> list[str]:
    return dataset.take_reports() if isinstance(dataset, MapDataset) else []
