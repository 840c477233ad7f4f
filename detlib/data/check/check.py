"""Looks for mistakes in the datasets of a config, thoroughly."""

import collections
from collections.abc import Callable, Iterable

from detlib.config import CfgNode
from detlib.data.catalog import DatasetCatalog, Metadata
from detlib.data.check.coco_file import CocoFile, bad_entries
from detlib.data.check.dataset import CheckedDataset, Settings
from detlib.data.check.findings import DatasetSummary, Report
from detlib.data.check.folders import find_files_left_out, read_image_list
from detlib.data.check.images import ImageFacts, find_image_mistakes
from detlib.data.check.objects import OBJECT_CHECKS, count_classes, find_unusable
from detlib.data.check.same_images import find_same_images
from detlib.data.datasets.json_files import read_json
from detlib.data.datasets.sem_seg import IMAGE_KEYS
from detlib.data.sample_classes import is_labelled
from detlib.utils.errors import DetlibError
from detlib.utils.file_io import PathManager

__all__ = ["check_datasets", "has_files"]

Progress = Callable[[Iterable[ImageFacts], CheckedDataset], Iterable[ImageFacts]]


def check_datasets(cfg: CfgNode, quick: bool = False, progress: Progress = lambda seen, data: seen) -> Report:
    """Look at all that ``DATASETS.TRAIN`` and ``DATASETS.TEST`` name.

    Args:
        quick: read the headers of images only.
        progress: shows it, around what is seen of the images of a dataset.

    Raises:
        UnknownNameError: there is no dataset of a name.
    """
    settings = Settings.from_config(cfg, quick)
    train, test = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
    checked: list[tuple[CheckedDataset, list[ImageFacts]]] = []
    for name in dict.fromkeys(train + test):
        data = CheckedDataset(name, is_train=name in train, is_test=name in test)
        _read_dataset(data)
        _look_at_objects(data, settings)
        checked.append((data, list(progress(find_image_mistakes(data, settings), data))))
        if data.is_train and data.is_test:
            data.report("image-leak", "it is in DATASETS.TRAIN and in DATASETS.TEST", severity="note")
    datasets = [data for data, _ in checked]
    find_unusable(datasets, settings)
    find_same_images(checked)
    left_out = "the pixels of images, images of the same bytes, and label maps (--quick)" if quick else ""
    findings = [finding for data in datasets for finding in data.findings]
    return Report([_summary(data, seen) for data, seen in checked], findings, left_out)


def _read_dataset(data: CheckedDataset) -> None:
    """Read the samples of a dataset; of one that its loader refuses, what is right in it.

    Raises:
        UnknownNameError: there is no such dataset.
    """
    metadata = data.metadata
    if data.name not in DatasetCatalog or not has_files(metadata):
        if not _load(data):
            return
        data.samples = []  # The files were made by loading, and are now looked into.
    evaluator_type, json_file = metadata.get("evaluator_type"), metadata.get("json_file")
    if json_file and evaluator_type in ("coco", "lvis"):
        _take(data, CocoFile(data.name))
    elif metadata.get("list_file"):
        read_image_list(data)
    else:
        if json_file and evaluator_type == "sem_seg":
            _find_bad_images(data, json_file)
        elif json_file and evaluator_type in ("coco_panoptic_seg", "coco_and_sem_seg"):
            data.findings += CocoFile(data.name).findings
        if not any(finding.severity == "error" for finding in data.findings):
            _load(data)
        if metadata.get("image_root") and not json_file and _are_whole_images(data):
            find_files_left_out(data)


def has_files(metadata: Metadata) -> bool:
    """Whether the files and folders of a dataset exist, as far as its metadata tells them."""
    paths = [metadata.get(key) for key in ("json_file", "image_root", "list_file")]
    return all(PathManager.exists(path) for path in paths if path)


def _take(data: CheckedDataset, file: CocoFile) -> None:
    data.samples, data.class_names, data.keypoint_names = file.samples, file.class_names, file.keypoint_names
    data.findings += file.findings
    if data.class_names and data.metadata.get("thing_classes") is None:
        data.metadata.set(thing_classes=data.class_names)  # As the loader does.
    if not data.samples and not data.findings:
        data.report("not-loadable", "it has no images", file=file.json_file)


def _find_bad_images(data: CheckedDataset, json_file: str) -> None:
    try:
        images = read_json(json_file)["images"]
    except (DetlibError, KeyError, TypeError):
        return  # The loader says so.
    if isinstance(images, list):
        data.findings += bad_entries(images, IMAGE_KEYS, "images", json_file, data.name).values()


def _load(data: CheckedDataset) -> bool:
    """Take what the loader gives; or say why it gives nothing, or nothing that could be looked into."""
    if data.name not in DatasetCatalog:
        DatasetCatalog.get(data.name)  # Raises, with the names that there are.
    try:
        samples = DatasetCatalog.get(data.name)
    except DetlibError as error:
        data.report("not-loadable", str(error))
        return False
    except Exception as error:  # A loader of the user may raise anything.
        data.report("not-loadable", f"its loader fails: {error!r}")
        return False
    if not isinstance(samples, list | tuple) or not all(isinstance(sample, dict) for sample in samples):
        data.report("not-checked", f"it is {type(samples).__name__}")
        return False
    if not samples:
        data.report("not-loadable", "it has no samples")
        return False
    data.samples = list(samples)
    data.class_names = list(data.metadata.get(_kind_of_classes(data)) or ())
    data.keypoint_names = data.metadata.get("keypoint_names")
    return True


def _kind_of_classes(data: CheckedDataset) -> str:
    if any("annotations" in sample for sample in data.samples):
        return "thing_classes"
    return "classes" if is_labelled(data.samples[0]) else "stuff_classes"


def _are_whole_images(data: CheckedDataset) -> bool:
    return all(sample.keys() <= {"file_name", "image_id", "label", "height", "width"} for sample in data.samples)


def _look_at_objects(data: CheckedDataset, settings: Settings) -> None:
    """Make all checks that need no image."""
    if data.is_train and not data.is_test and not settings.uses_annotations:
        return
    for check in OBJECT_CHECKS:
        try:
            check(data, settings)
        except Exception as error:  # Samples of a loader of the user may hold anything.
            message = f"{check.__name__} cannot read what its loader gives: {error!r}"
            data.report("not-checked", message, severity="warning")


def _summary(data: CheckedDataset, seen: list[ImageFacts]) -> DatasetSummary:
    unit, counts = count_classes(data)
    if not counts and any(facts.labels for facts in seen):
        unit = "images"
        present = collections.Counter(label for facts in seen for label in facts.labels)
        names = data.metadata.get("stuff_classes") or ()
        counts = {str(name): present[label] for label, name in enumerate(names)}
    return DatasetSummary(data.name, data.roles, len(data.samples), len(data.objects), unit, counts)
