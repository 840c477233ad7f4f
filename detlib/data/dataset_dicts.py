"""From names of datasets to one list of samples, checked and filtered."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, IterableDataset

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.common import MapDataset
from detlib.data.detection_utils import check_metadata_consistency
from detlib.data.fingerprint import remember_fingerprint
from detlib.data.preparation import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    load_proposals_into_dataset,
    print_instances_class_histogram,
    print_label_histogram,
)
from detlib.data.sample_classes import is_labelled
from detlib.utils.errors import ConfigError, DatasetError

__all__ = ["get_detection_dataset_dicts"]


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
    for name, dataset in zip(names, datasets, strict=True):
        remember_fingerprint(name, dataset)
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
