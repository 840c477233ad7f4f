"""From names of datasets to loaders of batches."""

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from detlib.config import CfgNode, configurable
from detlib.data.catalog import MetadataCatalog
from detlib.data.common import (
    DatasetFromList,
    MapDataset,
    orientation_and_task_of,
    task_of,
)
from detlib.data.dataset_dicts import get_detection_dataset_dicts
from detlib.data.dataset_mapper import DatasetMapper
from detlib.data.preparation import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detlib.data.samplers import InferenceSampler, TrainingSampler, build_sampler
from detlib.data.train_loader import TrainLoader
from detlib.data.view_mapper import ViewMapper, without_annotations
from detlib.data.wrappers import IndexedDataset
from detlib.utils import comm
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import ConfigError

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "with_sample_idx",
    "worker_init_reset_seed",
]


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Return the list of samples as it is: models take a list, as their images differ in size."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed all random generators of a worker process, differently for each and following from ``SEED``."""
    leave_signals_to_main_process()
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def leave_signals_to_main_process(worker_id: int = 0) -> None:
    """Keep a worker at work when a signal asks the whole program to end, since the main process ends its step first.

    A terminal sends Ctrl-C, and torchrun and schedulers send SIGTERM, to all processes of a group.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # Windows has no groups of this kind.
        os.setpgrp()


def build_batch_data_loader(
    dataset: Dataset,
    sampler: Sampler | None,
    total_batch_size: int | None,
    *,
    aspect_ratio_grouping: bool = False,
    group_by_task: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    timeout: float = 0,
    **kwargs: Any,
) -> TrainLoader:
    """Build a loader of batches for training.

    Args:
        dataset: indexable, or iterable with sampler None.
        total_batch_size: over all processes; or give the batch size of one by single_gpu_batch_size.
        aspect_ratio_grouping: whether wide images get batches of their own, and each task.
        group_by_task: whether the samples of each "task" get batches of their own.
        num_workers: processes that load, for each process that trains.
        collate_fn: from the list of samples to the batch; the list itself by default.
        drop_last: whether an incomplete last batch is left out.
        seed: of what is random in loading; None: it follows from ``SEED``.
        timeout: seconds after which workers that give nothing are an error; 0 for none.
        kwargs: further arguments of torch's DataLoader.
    """
    if isinstance(dataset, IterableDataset):
        if sampler is not None:
            raise ValueError("an IterableDataset has its own order; give sampler=None with it")
    elif not isinstance(sampler, Sampler):
        raise TypeError(f"a dataset with indices needs a torch.utils.data.Sampler, got {sampler!r}")
    if num_workers > 0:
        kwargs.update(prefetch_factor=prefetch_factor, persistent_workers=persistent_workers, timeout=timeout)
    group_of = orientation_and_task_of if aspect_ratio_grouping else task_of if group_by_task else None
    return TrainLoader(
        dataset,
        sampler,
        _batch_size_per_process(total_batch_size, single_gpu_batch_size),
        group_of=group_of,
        collate_fn=collate_fn,
        drop_last=drop_last,
        num_workers=num_workers,
        seed=seed,
        worker_init_fn=worker_init_reset_seed,
        pin_memory=pin_memory,
        **kwargs,
    )


def _batch_size_per_process(total_batch_size: int | None, single_gpu_batch_size: int | None) -> int:
    if single_gpu_batch_size:
        if total_batch_size:
            raise ValueError("give either total_batch_size or single_gpu_batch_size, not both")
        return single_gpu_batch_size
    world_size = comm.get_world_size()
    if not total_batch_size or total_batch_size < 0 or total_batch_size % world_size != 0:
        raise ConfigError(
            f"the batch size {total_batch_size} (SOLVER.IMS_PER_BATCH) must be a positive multiple of the number of "
            f"processes, {world_size}"
        )
    return total_batch_size // world_size


def with_sample_idx(dataset: list[dict[str, Any]] | Dataset) -> Dataset:
    """The dataset without annotations, its samples with their place in it, ``sample_idx``.

    An iterable dataset comes back as it is: its samples have no place.
    """
    if isinstance(dataset, IterableDataset):
        return dataset
    if isinstance(dataset, list):  # Annotations would take memory, and time on their way to workers.
        dataset = DatasetFromList([without_annotations(sample) for sample in dataset], copy=False)
    return IndexedDataset(dataset)


def _view_loader_arguments(
    cfg: CfgNode,
    mapper: Callable[[dict[str, Any]], Any] | None,
    dataset: list[Any] | Dataset | None,
    sampler: Sampler | None,
) -> dict[str, Any]:
    """Without annotations, no image is left out for having none, and views do not have the proportions of images."""
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False, check_consistency=False)
    return {
        "dataset": with_sample_idx(dataset),
        "sampler": build_sampler(cfg, dataset) if sampler is None else sampler,
        "mapper": ViewMapper(cfg) if mapper is None else mapper,
        "aspect_ratio_grouping": False,
        **_loading_arguments(cfg),
    }


def _loading_arguments(cfg: CfgNode) -> dict[str, Any]:
    if cfg.DATALOADER.ON_CORRUPT not in ("raise", "skip"):
        raise ConfigError(f"DATALOADER.ON_CORRUPT is {cfg.DATALOADER.ON_CORRUPT!r}; it must be 'raise' or 'skip'")
    return {
        "total_batch_size": _images_at_a_time(cfg),
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "timeout": cfg.DATALOADER.TIMEOUT,
        "skip_corrupt": cfg.DATALOADER.ON_CORRUPT == "skip",
    }


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Callable[[dict[str, Any]], Any] | None = None,
    *,
    dataset: list[Any] | Dataset | None = None,
    sampler: Sampler | None = None,
) -> dict[str, Any]:
    if cfg.INPUT.VIEWS:
        return _view_loader_arguments(cfg, mapper, dataset, sampler)
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
    return {
        "dataset": dataset,
        "sampler": build_sampler(cfg, dataset) if sampler is None else sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "group_by_task": len({MetadataCatalog.get(name).get("task") for name in cfg.DATASETS.TRAIN}) > 1,
        **_loading_arguments(cfg),
    }


def _images_at_a_time(cfg: CfgNode) -> int:
    """Of a batch, or of each of the parts in which the trainer takes it; over all processes."""
    batch_size, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS
    num_processes = comm.get_world_size()
    if steps != 1 and (steps < 1 or batch_size % (steps * num_processes) != 0):
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {batch_size} cannot be split into SOLVER.ACCUMULATION_STEPS {steps} equal parts for "
            f"each process, of which there are {num_processes}; it must be a multiple of their product"
        )
    return batch_size // steps


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list[Any] | Dataset,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    skip_corrupt: bool = False,
    **kwargs: Any,
) -> TrainLoader:
    """Build the endless loader of training batches, ``build_detection_train_loader(cfg)`` or by arguments.

    Args:
        dataset: samples, see get_detection_dataset_dicts; or a torch dataset.
        mapper: from a sample to model input; None leaves samples as they are.
        sampler: a TrainingSampler by default; None for an iterable dataset.
        total_batch_size: over all processes.
        aspect_ratio_grouping: see build_batch_data_loader, also for the others and for group_by_task.
        skip_corrupt: replace samples that are missing or damaged by others, and report them.

    Returns:
        An iterable over batches, list[dict] without collate_fn. It can be saved and resumed.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper, skip_corrupt)
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = TrainingSampler(len(dataset))
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Any]:
    names = [dataset_name] if isinstance(dataset_name, str) else list(dataset_name)
    proposal_files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        file_of_dataset = dict(zip(cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST, strict=False))
        missing = [name for name in names if name not in file_of_dataset]
        if missing:
            raise ConfigError(
                f"MODEL.LOAD_PROPOSALS is set, but DATASETS.PROPOSAL_FILES_TEST has no file for {missing}"
            )
        proposal_files = [file_of_dataset[name] for name in names]
    return {
        "dataset": get_detection_dataset_dicts(names, filter_empty=False, proposal_files=proposal_files),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list[Any] | Dataset,
    *,
    mapper: Callable[[dict[str, Any]], Any],
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """Build the loader of an evaluation, ``build_detection_test_loader(cfg, "my_val")`` or by arguments.

    Every sample comes once, in order; with several processes, each gets its part.

    Args:
        batch_size: images per batch in each process.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, IterableDataset):
        if sampler is not None:
            raise ValueError("an IterableDataset has its own order; give sampler=None with it")
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
        generator=torch.Generator(),  # Without its own, it would draw from that of the training which it interrupts.
        worker_init_fn=leave_signals_to_main_process,
    )
