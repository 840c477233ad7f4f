"""From names of datasets to loaders of batches."""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from detlib.config import CfgNode, configurable
from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    GroupedDataset,
    MapDataset,
    ToIterableDataset,
    task_of,
)
from detlib.data.dataset_mapper import DatasetMapper
from detlib.data.detection_utils import check_metadata_consistency
from detlib.data.preparation import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    load_proposals_into_dataset,
    print_instances_class_histogram,
    print_label_histogram,
)
from detlib.data.sample_classes import is_labelled
from detlib.data.samplers import InferenceSampler, TrainingSampler, build_sampler
from detlib.data.view_mapper import ViewMapper, without_annotations
from detlib.data.wrappers import IndexedDataset
from detlib.utils import comm
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import ConfigError, DatasetError

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


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> list[dict[str, Any]] | Dataset:
    """Load datasets by name, one after the other in one list.

    Those whose metadata has another ``task`` than the first come after it. Their samples have it as their "task", which
    tells the heads of a model that they are for; they need not be of the same classes.

    Args:
        names: registered in DatasetCatalog.
        filter_empty: drop images without objects, crowd regions aside. Images that are labelled as a whole stay.
        min_keypoints: drop images with fewer visible keypoints.
        proposal_files: precomputed proposals, a file for each dataset.
        check_consistency: check that the datasets of a task agree on their classes, and annotations fit them.

    Returns:
        The samples. Datasets that are registered as torch datasets come back as such, and are not filtered.

    Raises:
        DatasetError: a dataset has no samples, none after filtering, or annotations that do not fit its classes.
        UnknownNameError: there is no such dataset.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ConfigError("no dataset is named; set DATASETS.TRAIN and DATASETS.TEST, e.g. DATASETS.TRAIN: [my_train]")
    datasets = [DatasetCatalog.get(name) for name in names]
    for name, dataset in zip(names, datasets, strict=True):
        if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
            raise DatasetError(f"dataset {name!r} has no samples; check the files that it was registered with")
    tasks = [MetadataCatalog.get(name).get("task") for name in names]
    if isinstance(datasets[0], Dataset):
        datasets = [_for_task(dataset, task) for dataset, task in zip(datasets, tasks, strict=True)]
        return datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)
    if proposal_files is not None:
        if len(proposal_files) != len(names):
            raise ConfigError(
                f"{len(names)} datasets {names} need as many proposal files, got {list(proposal_files)}; "
                "see DATASETS.PROPOSAL_FILES_TRAIN and DATASETS.PROPOSAL_FILES_TEST"
            )
        datasets = [load_proposals_into_dataset(d, f) for d, f in zip(datasets, proposal_files, strict=True)]

    samples: list[dict[str, Any]] = []
    for task in dict.fromkeys(tasks):
        own = [index for index, other in enumerate(tasks) if other == task]
        own_names, own_datasets = [names[i] for i in own], [datasets[i] for i in own]
        joined = _join(own_names, own_datasets, filter_empty, min_keypoints, check_consistency)
        samples += joined if task is None else [_with_task(sample, task) for sample in joined]
    return samples


def _join(
    names: list[str],
    datasets: list[list[dict[str, Any]]],
    filter_empty: bool,
    min_keypoints: int,
    check_consistency: bool,
) -> list[dict[str, Any]]:
    """The samples of datasets of one kind, checked and filtered."""
    samples = list(itertools.chain.from_iterable(datasets))
    if "annotations" not in samples[0]:
        if check_consistency and is_labelled(samples[0]):
            _check_classes(samples, names, "classes", print_label_histogram)
        return samples
    if check_consistency:
        _check_classes(samples, names, "thing_classes", print_instances_class_histogram)
    if filter_empty:
        samples = filter_images_with_only_crowd_annotations(samples)
    if min_keypoints > 0:
        samples = filter_images_with_few_keypoints(samples, min_keypoints)
    if not samples:
        _raise_nothing_left(names, sum(map(len, datasets)), min_keypoints)
    return samples


def _for_task(dataset: Dataset, task: str | None) -> Dataset:
    return dataset if task is None else MapDataset(dataset, functools.partial(_with_task, task=task))


def _with_task(sample: dict[str, Any], task: str) -> dict[str, Any]:
    return {**sample, "task": task}


def _check_classes(
    samples: list[dict[str, Any]], names: list[str], key: str, print_histogram: Callable[..., None]
) -> None:
    """Check that the datasets agree on their class names, a key of metadata, and that samples are of no other class."""
    check_metadata_consistency(key, names)
    classes_of_dataset = [MetadataCatalog.get(name).get(key) for name in names]
    if all(classes is not None for classes in classes_of_dataset):
        print_histogram(samples, classes_of_dataset[0])


def _raise_nothing_left(names: list[str], num_images: int, min_keypoints: int) -> None:
    cause = "without annotations other than crowd regions; to keep them set DATALOADER.FILTER_EMPTY_ANNOTATIONS: False"
    if min_keypoints > 0:
        cause = (
            f"without annotations or with fewer than {min_keypoints} visible keypoints; see "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS and MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE"
        )
    raise DatasetError(f"no image is left of {', '.join(names)}: all {num_images} are {cause}")


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Return the list of samples as it is: models take a list, as their images differ in size."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed all random generators of a worker process, differently for each and following from ``SEED``."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


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
    **kwargs: Any,
) -> Any:
    """Build a loader of batches for training.

    Args:
        dataset: indexable, or iterable with sampler None.
        total_batch_size: over all processes; or give the batch size of one by single_gpu_batch_size.
        aspect_ratio_grouping: whether wide images get batches of their own, and each task.
        group_by_task: whether the samples of each "task" get batches of their own.
        num_workers: processes that load, for each process that trains.
        collate_fn: from the list of samples to the batch; the list itself by default.
        drop_last: whether an incomplete last batch is left out.
        seed: of the workers; None: it follows from ``SEED``.
        kwargs: further arguments of torch's DataLoader.
    """
    batch_size = _batch_size_per_process(total_batch_size, single_gpu_batch_size)
    grouping = aspect_ratio_grouping or group_by_task
    if isinstance(dataset, IterableDataset):
        if sampler is not None:
            raise ValueError("an IterableDataset has its own order; give sampler=None with it")
    else:
        # What a worker loads at a time goes to it in one piece: then the order does not depend on their number.
        chunk_size = 1 if grouping else batch_size
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=chunk_size)
    if seed is not None:
        kwargs["generator"] = torch.Generator().manual_seed(seed)
    if num_workers > 0:
        kwargs.update(prefetch_factor=prefetch_factor, persistent_workers=persistent_workers)
    kwargs.update(num_workers=num_workers, worker_init_fn=worker_init_reset_seed, pin_memory=pin_memory)

    if not grouping:
        collate_fn = collate_fn or trivial_batch_collator
        return DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn, **kwargs)
    samples = DataLoader(dataset, collate_fn=operator.itemgetter(0), **kwargs)  # Batches of one: no batch.
    batches = (
        AspectRatioGroupedDataset(samples, batch_size)
        if aspect_ratio_grouping
        else GroupedDataset(samples, batch_size, task_of)
    )
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


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
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": False,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
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
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "group_by_task": len({MetadataCatalog.get(name).get("task") for name in cfg.DATASETS.TRAIN}) > 1,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


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
    **kwargs: Any,
) -> Any:
    """Build the endless loader of training batches, ``build_detection_train_loader(cfg)`` or by arguments.

    Args:
        dataset: samples, see get_detection_dataset_dicts; or a torch dataset.
        mapper: from a sample to model input; None leaves samples as they are.
        sampler: a TrainingSampler by default; None for an iterable dataset.
        total_batch_size: over all processes.
        aspect_ratio_grouping: see build_batch_data_loader, also for the others and for group_by_task.

    Returns:
        An iterable over batches, list[dict] without collate_fn.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
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
    )
