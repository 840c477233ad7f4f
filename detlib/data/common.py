"""Datasets made of other datasets: from a list, mapped, sampled, grouped."""

import copy
import logging
import os
import pickle
import random
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from detlib.data.catalog import MetadataCatalog
from detlib.utils.errors import DatasetError, DetlibError, MissingFileError
from detlib.utils.serialize import PicklableWrapper

__all__ = [
    "AspectRatioGroupedDataset",
    "DatasetFromList",
    "GroupedDataset",
    "MapDataset",
    "ToIterableDataset",
    "describe_sample",
    "orientation_and_task_of",
    "share_of_this_worker",
    "task_of",
]

logger = logging.getLogger(__name__)

MAX_CORRUPT_IN_A_ROW = 100  # More are hardly damaged one by one.


class SerializedList:
    """A list kept as one buffer of bytes, so that worker processes share its memory.

    Reading a Python object writes its reference count. Each forked worker would hence, page by page, get its own copy
    of a list of dicts, and memory would grow with the number of workers. A tensor is shared by any start method.
    """

    def __init__(self, items: list[Any]) -> None:
        data, ends = bytearray(), [0]
        for item in items:
            data += pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(data))
        self._data = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        self._ends = torch.tensor(ends)
        logger.info("The %d samples take %.2f MiB, shared by all workers", len(items), len(data) / 1024**2)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, idx: int) -> Any:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"index {idx} is out of range for {len(self)} samples")
        start, end = self._ends[idx % len(self) : idx % len(self) + 2].tolist()
        return pickle.loads(memoryview(self._data[start:end].numpy()))  # Our own bytes, from above.


class DatasetFromList(Dataset):
    """A list as a dataset."""

    def __init__(self, lst: list[Any], copy: bool = True, serialize: bool | Callable[[list[Any]], Any] = True) -> None:
        """
        Args:
            copy: give a deep copy of an element, so that it may be changed. Serialized elements always are copies.
            serialize: whether to keep the list as bytes that worker processes share; or a function that makes
                something else with a length and indices of the list.
        """
        self._copy = copy
        self._serialize = serialize
        if callable(serialize):
            self._lst = serialize(lst)
        else:
            self._lst = SerializedList(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        item = self._lst[idx]
        return copy.deepcopy(item) if self._copy and not self._serialize else item


def describe_sample(item: Any) -> str:
    """Say which sample this is: its file, and the datasets whose image folder holds that file; or else its id."""
    file_name = item.get("file_name") if isinstance(item, dict) else None
    if file_name is None:
        has_id = isinstance(item, dict) and "image_id" in item
        return f"image_id {item['image_id']!r}" if has_id else "without file_name"
    path = os.path.abspath(file_name)
    datasets = [
        name
        for name, metadata in MetadataCatalog.items()
        if metadata.get("image_root") and path.startswith(os.path.join(os.path.abspath(metadata.image_root), ""))
    ]
    return f"file_name {file_name!r}" + (f" of dataset {' or '.join(map(repr, datasets))}" if datasets else "")


def _call_mapper(map_func: Callable[[Any], Any], item: Any) -> Any:
    """Call a mapper; an error names the sample."""
    try:
        return map_func(item)
    except DetlibError as error:  # These say themselves what to do.
        raise type(error)(f"{error} [sample with {describe_sample(item)}]") from error
    except Exception as error:
        raise RuntimeError(
            f"the mapper failed on the sample with {describe_sample(item)}: {type(error).__name__}: {error}. Correct "
            "that sample or take it out of the dataset; a mapper of your own may return None to skip it"
        ) from error


class _MappedIterable(IterableDataset):
    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        for item in self._dataset:
            mapped = _call_mapper(self._map_func, item)
            if mapped is not None:
                yield mapped


class MapDataset(Dataset):
    """A dataset with a function applied to its samples.

    Where the function returns None, another sample is drawn at random; iterable datasets go on to the next one. An
    error of the function names the sample.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any], skip_corrupt: bool = False) -> Any:
        if isinstance(dataset, IterableDataset):
            return _MappedIterable(dataset, map_func)
        return super().__new__(cls)

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any], skip_corrupt: bool = False) -> None:
        """
        Args:
            skip_corrupt: also draw another sample for one that is missing or damaged, and report it, see
                :meth:`take_reports`; not of iterable datasets.
        """
        self.source = dataset
        self._map_func = PicklableWrapper(map_func)  # Lambdas can then go to workers that are not forked.
        self._skip_corrupt = skip_corrupt
        self._reports: list[str] = []

    def __getnewargs__(self) -> tuple[Any, Callable[[Any], Any]]:
        return self.source, self._map_func

    @property
    def map_func(self) -> Callable[[Any], Any]:
        return self._map_func._obj

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, idx: int) -> Any:
        index = int(idx)
        passed_over: set[int] = set()
        num_corrupt = len(self._reports)
        while True:
            data = self._map(index)
            if data is not None:
                return data
            passed_over.add(index)
            num_corrupt_here = len(self._reports) - num_corrupt
            if len(passed_over) == 3 and num_corrupt_here < 3:
                logger.warning("The mapper returned None 3 times in a row, last for sample %d of %d", index, len(self))
            if num_corrupt_here >= MAX_CORRUPT_IN_A_ROW or 0 < num_corrupt_here == len(self):
                raise DatasetError(
                    f"{num_corrupt_here} samples in a row cannot be read, last: {self._reports[-1]}. Is the storage "
                    "reachable? tools/check_data.py lists all that are damaged"
                )
            if len(passed_over) == len(self):
                raise DatasetError(f"the mapper returned None for all {len(self)} samples; nothing is left to load")
            index = self._draw_another(passed_over)

    def take_reports(self) -> list[str]:
        """Why samples were left out as corrupt, since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def _map(self, index: int) -> Any:
        try:
            return _call_mapper(self._map_func, self.source[index])
        except (DatasetError, MissingFileError) as error:
            if not self._skip_corrupt:
                raise
            self._reports.append(str(error))
            return None

    def _draw_another(self, passed_over: set[int]) -> int:
        while True:
            index = random.randrange(len(self))  # The train loader seeds this generator for each sample.
            if index not in passed_over:
                return index


class ToIterableDataset(IterableDataset):
    """The samples of an indexable dataset in the order of a sampler."""

    def __init__(
        self, dataset: Dataset, sampler: Sampler, shard_sampler: bool = True, shard_chunk_size: int = 1
    ) -> None:
        """
        Args:
            shard_sampler: split the indices over the worker processes. If False, each worker iterates over all, so
                the sampler must split by itself.
            shard_chunk_size: how many consecutive indices go to a worker. If it is as many as the worker joins to a
                batch, the batches are the same for any number of workers.
        """
        if isinstance(dataset, IterableDataset):
            raise TypeError("ToIterableDataset needs a dataset with indices, got an IterableDataset; use it as it is")
        if not isinstance(sampler, Sampler):
            raise TypeError(f"ToIterableDataset needs a torch.utils.data.Sampler, got {sampler!r}")
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        indices = share_of_this_worker(self.sampler, self.shard_chunk_size) if self.shard_sampler else self.sampler
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)


def share_of_this_worker(items: Iterable[Any], chunk_size: int) -> Iterator[Any]:
    """Take every W-th chunk in one of W worker processes; everything outside of a worker."""
    worker = get_worker_info()
    if worker is None or worker.num_workers == 1:
        yield from items
        return
    for position, item in enumerate(items):
        if position // chunk_size % worker.num_workers == worker.id:
            yield item


class GroupedDataset(IterableDataset):
    """Batches of samples of one group each.

    Samples wait until the batch of their group is full; those of a batch that stays incomplete are not given.
    """

    def __init__(self, dataset: Any, batch_size: int, group_of: Callable[[dict[str, Any]], Hashable]) -> None:
        """
        Args:
            dataset: iterable of dicts.
            group_of: tells the group of a sample.
        """
        self.dataset = dataset
        self.batch_size = batch_size
        self.group_of = group_of

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batches: dict[Hashable, list[dict[str, Any]]] = {}
        for sample in self.dataset:
            group = self.group_of(sample)
            batch = batches.setdefault(group, [])
            batch.append(sample)
            if len(batch) == self.batch_size:
                del batches[group]
                yield batch


class AspectRatioGroupedDataset(GroupedDataset):
    """Batches of images that are all wide, or all not, as less of such a batch is padding; and all of one ``task``."""

    def __init__(self, dataset: Any, batch_size: int) -> None:
        """
        Args:
            dataset: iterable of dicts with an "image" (C, H, W), or else with "width" and "height"; those that have
                neither form a group with the images that are not wide.
        """
        super().__init__(dataset, batch_size, orientation_and_task_of)


def task_of(sample: dict[str, Any]) -> str | None:
    """Which heads of a model a sample is for; None: for all."""
    return sample.get("task")


def orientation_and_task_of(sample: dict[str, Any]) -> tuple[str | None, bool]:
    """The group of a sample of which batches of :class:`AspectRatioGroupedDataset` are."""
    return task_of(sample), _is_wide(sample)


def _is_wide(sample: dict[str, Any]) -> bool:
    if "image" in sample:  # What is padded: after a crop, not of the proportions of the file.
        height, width = sample["image"].shape[-2:]
        return width > height
    return sample.get("width", 0) > sample.get("height", 0)
