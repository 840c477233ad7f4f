"""What happens to a list of samples before training: filters, proposals, a table of its classes."""

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from detlib.data.sample_classes import classes_of
from detlib.structures import BoxMode
from detlib.utils import safe_pickle
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = [
    "filter_images_with_few_keypoints",
    "filter_images_with_only_crowd_annotations",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "print_label_histogram",
]

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop images without annotations, or with none but crowd regions."""
    kept = [d for d in dataset_dicts if any(a.get("iscrowd", 0) == 0 for a in d.get("annotations", ()))]
    _log_removed(len(dataset_dicts), len(kept), "no annotations (DATALOADER.FILTER_EMPTY_ANNOTATIONS)")
    return kept


def filter_images_with_few_keypoints(
    dataset_dicts: list[dict[str, Any]], min_keypoints_per_image: int
) -> list[dict[str, Any]]:
    """Drop images with fewer than so many visible keypoints in all objects together."""

    def num_visible(sample: dict[str, Any]) -> int:
        return sum(
            int((np.array(a["keypoints"][2::3]) > 0).sum()) for a in sample.get("annotations", ()) if "keypoints" in a
        )

    kept = [sample for sample in dataset_dicts if num_visible(sample) >= min_keypoints_per_image]
    _log_removed(len(dataset_dicts), len(kept), f"fewer than {min_keypoints_per_image} visible keypoints")
    return kept


def _log_removed(before: int, after: int, reason: str) -> None:
    if after < before:
        logger.info("Left out %d of %d images with %s; %d remain", before - after, before, reason, after)


def load_proposals_into_dataset(dataset_dicts: list[dict[str, Any]], proposal_file: str) -> list[dict[str, Any]]:
    """Add precomputed proposals to samples, sorted by falling score.

    Args:
        dataset_dicts: get "proposal_boxes", "proposal_objectness_logits" and "proposal_bbox_mode".
        proposal_file: pickle of a dict: "ids" of images, and for each of them "boxes" (N, 4) and "objectness_logits"
            (N,); optionally "bbox_mode", absolute XYXY by default. It may hold arrays and plain containers only.
            Evaluating a ProposalNetwork writes such a file, ``box_proposals.pkl``.

    Returns:
        The same list.

    Raises:
        CheckpointError: the file is damaged, or holds something else than arrays and containers.
        DatasetError: it has not the content above, or lacks an image.
        MissingFileError: there is no such file.
    """
    proposals = _read_proposals(proposal_file)
    position = {str(image_id): i for i, image_id in enumerate(proposals["ids"])}
    box_dim = 5 if proposals["bbox_mode"] == BoxMode.XYWHA_ABS else 4
    for sample in dataset_dicts:
        if "image_id" not in sample:
            raise DatasetError(
                f"proposals go by the 'image_id' of a sample; {sample.get('file_name')} has only {sorted(sample)}"
            )
        i = position.get(str(sample["image_id"]))
        if i is None:
            raise DatasetError(
                f"proposal file {proposal_file} has no proposals for image {sample['image_id']!r} "
                f"({sample.get('file_name')}); it was made for another dataset"
            )
        boxes, logits = (_as_numbers(proposals[key][i]) for key in ("boxes", "objectness_logits"))
        if boxes.size == 0:
            boxes = boxes.reshape(0, box_dim)
        if logits.ndim != 1 or boxes.shape != (len(logits), box_dim):
            raise DatasetError(
                f"proposal file {proposal_file}: image {sample['image_id']!r} has boxes of the shape {boxes.shape} and "
                f"objectness_logits of {logits.shape}; (N, {box_dim}) and (N,) are expected"
            )
        order = (-logits.astype(np.float64)).argsort(kind="stable")
        sample["proposal_boxes"] = boxes[order]
        sample["proposal_objectness_logits"] = logits[order]
        sample["proposal_bbox_mode"] = proposals["bbox_mode"]
    return dataset_dicts


def _as_numbers(values: Any) -> np.ndarray:
    """An array; one of no shape that fits, where these are no numbers."""
    try:
        array = np.asarray(values)
    except ValueError:  # Lists of unequal length.
        return np.zeros(())
    return array if array.dtype.kind in "fiu" else np.zeros(())


def _read_proposals(proposal_file: str) -> dict[str, Any]:
    """Read "ids", "boxes" and "objectness_logits", of equal length, and the BoxMode "bbox_mode"."""
    # The enum as detectron2 and detlib store it.
    modes = {f"{package}.structures.boxes.BoxMode": BoxMode for package in ("detectron2", "detlib")}
    if not PathManager.isfile(proposal_file):
        raise MissingFileError(
            f"proposal file {proposal_file} does not exist; correct DATASETS.PROPOSAL_FILES_TRAIN or "
            "PROPOSAL_FILES_TEST, or write it by evaluating a ProposalNetwork on the dataset"
        )
    with PathManager.open(proposal_file, "rb") as file:
        content = safe_pickle.load(file, allowed={**safe_pickle.ARRAYS_AND_CONTAINERS, **modes})
    if not isinstance(content, dict):
        raise DatasetError(f"proposal file {proposal_file} holds a {type(content).__name__}, not a dict")
    for old, new in (("indexes", "ids"), ("scores", "objectness_logits")):  # Names in Detectron's files.
        if old in content:
            content[new] = content.pop(old)
    lists = ("ids", "boxes", "objectness_logits")
    missing = sorted(set(lists) - content.keys())
    if missing:
        raise DatasetError(f"proposal file {proposal_file} lacks {missing}; it has {', '.join(map(repr, content))}")
    others = [name for name in lists if not isinstance(content[name], list | tuple | np.ndarray)]
    if others:
        raise DatasetError(f"proposal file {proposal_file} has no list of {', '.join(others)}, with an entry per image")
    lengths = {name: len(content[name]) for name in lists}
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"proposal file {proposal_file} has lists of unequal length, one entry per image: {lengths}")
    try:
        content["bbox_mode"] = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
    except ValueError:
        known = ", ".join(f"{mode.value} ({mode.name})" for mode in BoxMode)
        raise DatasetError(
            f"proposal file {proposal_file} has the bbox_mode {content['bbox_mode']!r}; known: {known}"
        ) from None
    return content


def print_instances_class_histogram(dataset_dicts: list[dict[str, Any]], class_names: list[str]) -> None:
    """Log how many objects of each class there are, crowd regions aside.

    Raises:
        DatasetError: an annotation's category_id names none of the classes.
    """
    counts = np.zeros(len(class_names), dtype=int)
    for sample in dataset_dicts:
        for annotation in sample.get("annotations", ()):
            if annotation.get("iscrowd", 0):
                continue
            category_id = annotation["category_id"]
            if not 0 <= category_id < len(class_names):
                raise DatasetError(
                    f"an annotation of {sample.get('file_name', 'an image')} has category_id {category_id}, but there "
                    f"are {len(class_names)} classes, numbered from 0: {', '.join(map(str, class_names))}"
                )
            counts[category_id] += 1
    table = _table(counts.tolist(), class_names, "objects")
    logger.info("Objects of each class in %d images:\n%s", len(dataset_dicts), table)


def print_label_histogram(dataset_dicts: list[dict[str, Any]], class_names: Sequence[str]) -> None:
    """Log how many images have each label; one with several counts for each of them.

    Raises:
        DatasetError: a label names none of the classes.
    """
    counts = np.zeros(len(class_names), dtype=int)
    for sample in dataset_dicts:
        for label in classes_of(sample):
            if not 0 <= label < len(class_names):
                raise DatasetError(
                    f"{sample.get('file_name', 'an image')} has the label {label}, but there are {len(class_names)} "
                    f"classes, numbered from 0: {', '.join(map(str, class_names))}"
                )
            counts[label] += 1
    table = _table(counts.tolist(), class_names, "images")
    logger.info("Images of each class, of %d in all:\n%s", len(dataset_dicts), table)


def _table(counts: list[int], class_names: Sequence[str], what: str, num_columns: int = 6) -> str:
    """Lay (class, number) pairs side by side, at most three in a row."""
    cells = list(itertools.chain.from_iterable(zip(class_names, counts, strict=True)))
    cells += ["total", sum(counts)]
    num_columns = min(num_columns, len(cells))
    rows = [cells[i : i + num_columns] for i in range(0, len(cells), num_columns)]
    return tabulate(rows, headers=["class", what] * (num_columns // 2), tablefmt="pipe", numalign="right")
