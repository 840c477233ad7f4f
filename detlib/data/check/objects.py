"""Mistakes in the boxes, masks, keypoints and classes of objects, all of which a file of the right form can have."""

import collections
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from detlib.data.check.dataset import CheckedDataset, Objects, Settings
from detlib.data.preparation import filter_images_with_few_keypoints, filter_images_with_only_crowd_annotations
from detlib.data.sample_classes import classes_of, is_labelled

__all__ = ["OBJECT_CHECKS", "count_classes", "find_unusable"]

TOLERANCE = 1.0  # pixels; sizes and boxes are rounded


def find_invalid_boxes(data: CheckedDataset, settings: Settings) -> None:
    for index in np.flatnonzero(~np.isfinite(data.objects.boxes_xyxy).all(axis=1)):
        annotation = data.objects.annotations[index]
        data.report_object(
            "box-invalid", index, f"its box is {annotation.get('bbox')}, {annotation.get('bbox_mode')!r}"
        )


def find_flat_boxes(data: CheckedDataset, settings: Settings) -> None:
    for index in np.flatnonzero(_is_flat(data.objects)):
        data.report_object("box-flat", index, f"its box {_box(data, index)} has no width, or no height")


def _is_flat(objects: Objects) -> np.ndarray:
    sizes = objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]
    return (sizes <= 0).any(axis=1)  # NaN is not.


def find_boxes_outside(data: CheckedDataset, settings: Settings) -> None:
    """Those out of the image, and those that reach beyond its border.

    If many do, and all would fit as the corners that they may be, this is said of the dataset.
    """
    objects, sizes_wh = data.objects, _image_sizes(data.samples)
    if not len(objects):
        return
    limits = sizes_wh[objects.images]
    x0y0, x1y1 = objects.boxes_xyxy[:, :2], objects.boxes_xyxy[:, 2:]
    with np.errstate(invalid="ignore"):
        is_usual = ~_is_flat(objects) & ~objects.is_rotated
        outside = is_usual & ((x1y1 <= 0) | (x0y0 >= limits)).any(axis=1)
        over = is_usual & ~outside & ((x0y0 < -TOLERANCE) | (x1y1 > limits + TOLERANCE)).any(axis=1)
        as_corners = x1y1 - x0y0  # What came in the place of width and height.
        fit_as_corners = ((as_corners > x0y0) & (as_corners <= limits + TOLERANCE)).all(axis=1)
    beyond = outside | over
    if beyond.sum() > len(objects) / 10 and fit_as_corners.all():
        message = f"{beyond.sum()} of {len(objects)} boxes leave their images, but none would as [x0, y0, x1, y1]"
        data.report("box-corners", message)
    for kind, found, what in (
        ("box-outside", outside, "is not in the image"),
        ("box-over-edge", over, "reaches beyond the image"),
    ):
        for index in np.flatnonzero(found):
            width, height = limits[index]
            data.report_object(kind, index, f"its box {_box(data, index)} {what} of {width:g} x {height:g}")


def _image_sizes(samples: list[dict[str, Any]]) -> np.ndarray:
    """(N, 2) widths and heights; infinite where they are not stated."""
    sizes = [(sample.get("width", np.inf), sample.get("height", np.inf)) for sample in samples]
    return np.array(sizes, dtype=np.float64).reshape(-1, 2)


def _box(data: CheckedDataset, index: int) -> str:
    x0, y0, x1, y1 = data.objects.boxes_xyxy[index]
    return f"from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g})"


def find_repeated_objects(data: CheckedDataset, settings: Settings) -> None:
    """Those with class and box of another one in the image, crowd regions aside."""
    objects = data.objects
    own = np.flatnonzero(np.isfinite(objects.boxes_xyxy).all(axis=1) & ~objects.is_crowd & ~objects.is_rotated)
    columns = np.column_stack([objects.boxes_xyxy[own], objects.class_ids[own], objects.images[own]])
    order = np.lexsort(columns.T)
    is_same = (columns[order][1:] == columns[order][:-1]).all(axis=1)
    for place in np.flatnonzero(is_same):
        first, second = sorted(own[order[place : place + 2]].tolist())
        other = objects.annotations[first].get("id")
        with_other = "" if other is None else f" by annotation {other!r}, too"
        data.report_object("box-repeated", second, f"its box {_box(data, second)} is there{with_other or ' twice'}")


def find_unknown_classes(data: CheckedDataset, settings: Settings) -> None:
    num_classes = len(data.class_names)
    if not num_classes:
        return
    objects = data.objects
    unknown = (objects.class_ids < 0) | (objects.class_ids >= num_classes)
    for index in np.flatnonzero(unknown & ~objects.is_crowd):
        found = objects.annotations[index].get("category_id")
        data.report_object("class-outside", index, f"its category_id is {found!r}; there are 0 to {num_classes - 1}")
    for index, sample in enumerate(data.samples):
        for label in classes_of(sample) if is_labelled(sample) else ():
            if not 0 <= label < num_classes:
                data.report_image("class-outside", index, f"its label is {label}; there are 0 to {num_classes - 1}")


def find_mask_mistakes(data: CheckedDataset, settings: Settings) -> None:
    if settings.uses_masks:
        _find_missing(data, "segmentation", "mask-missing", "MODEL.MASK_ON")
    severity = None if settings.uses_masks else "warning"
    for index, annotation in _objects_with(data, "segmentation"):
        mask = annotation["segmentation"]
        if isinstance(mask, list):
            for polygon in mask:
                if len(polygon) < 6 or len(polygon) % 2:
                    data.report_object(
                        "mask-polygon", index, f"a polygon has {len(polygon)} values", severity or "error"
                    )
            continue
        sample = data.samples[data.objects.images[index]]
        size = mask.get("size") if isinstance(mask, dict) else getattr(mask, "shape", None)
        stated = [sample.get("height"), sample.get("width")]
        if None not in stated and list(size or ()) != stated:
            data.report_object("mask-size", index, f"its mask is {size}, the image {stated} (height, width)", severity)
        if settings.uses_masks and settings.mask_format == "polygon":
            data.report_object("mask-format", index, "its mask is a bitmap, or RLE")


def find_keypoint_mistakes(data: CheckedDataset, settings: Settings) -> None:
    if settings.uses_keypoints:
        _find_missing(data, "keypoints", "keypoints-missing", "MODEL.KEYPOINT_ON")
    names = data.keypoint_names
    if settings.uses_keypoints and data.is_train and names is None and data.samples:
        data.report("keypoints-missing", "no category says the names of its keypoints, which MODEL.KEYPOINT_ON needs")
    sizes_wh = _image_sizes(data.samples)
    for index, annotation in _objects_with(data, "keypoints"):
        if np.size(annotation["keypoints"]) % 3:
            message = f"it has {np.size(annotation['keypoints'])} numbers, not three for each"
            data.report_object("keypoints-count", index, message)
            continue
        keypoints = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
        if names is not None and len(keypoints) != len(names):
            message = f"it has {len(keypoints)} keypoints, but {len(names)} have names"
            data.report_object("keypoints-count", index, message, None if settings.uses_keypoints else "warning")
        limits = sizes_wh[data.objects.images[index]]
        points = keypoints[keypoints[:, 2] > 0, :2]
        outside = points[((points < -TOLERANCE) | (points > limits + TOLERANCE)).any(axis=1)]
        if len(outside):
            x, y = outside[0]
            image = f"the image of {limits[0]:g} x {limits[1]:g}"
            message = f"{len(outside)} of its keypoints, as ({x:g}, {y:g}), are not in {image}"
            data.report_object("keypoints-outside", index, message)


def _objects_with(data: CheckedDataset, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Those that are learned, crowd regions aside."""
    pairs = zip(itertools.count(), data.objects.annotations, data.objects.is_crowd.tolist())
    return ((index, annotation) for index, annotation, is_crowd in pairs if not is_crowd and key in annotation)


def _find_missing(data: CheckedDataset, key: str, kind: str, option: str) -> None:
    """Objects without something that others of their image have; or the dataset, if none has it."""
    objects = data.objects
    own = np.flatnonzero(~objects.is_crowd)
    has = np.array([key in objects.annotations[index] for index in own], dtype=bool)
    if len(own) and not has.any():
        data.report(kind, f"no object has {key}, which {option} is for")
        return
    images_with = np.unique(objects.images[own[has]])
    for index in own[~has & np.isin(objects.images[own], images_with)]:
        data.report_object(kind, index, f"it has no {key}, but other objects of the image do")


def find_images_without_objects(data: CheckedDataset, settings: Settings) -> None:
    fate = ", so it is not trained on (DATALOADER.FILTER_EMPTY_ANNOTATIONS)" if settings.filter_empty else ""
    for index, sample in enumerate(data.samples):
        if "annotations" in sample and all(a.get("iscrowd", 0) for a in sample["annotations"]):
            nothing = "nothing but crowd regions is annotated" if sample["annotations"] else "no object is annotated"
            data.report_image("image-without-objects", index, nothing + fate * data.is_train)


def find_unused_classes(data: CheckedDataset, settings: Settings) -> None:
    for name, count in count_classes(data)[1].items():
        if count == 0:
            data.report("category-unused", repr(name), severity="warning" if data.is_train else "note")


OBJECT_CHECKS = (
    find_invalid_boxes,
    find_flat_boxes,
    find_boxes_outside,
    find_repeated_objects,
    find_unknown_classes,
    find_mask_mistakes,
    find_keypoint_mistakes,
    find_images_without_objects,
    find_unused_classes,
)
"""Each is called with a dataset and the settings, and reports to the dataset."""


def count_classes(data: CheckedDataset) -> tuple[str, dict[str, int]]:
    """What is counted, "objects" or "images", and the number of each class; crowd regions aside."""
    names = [str(name) for name in data.class_names]
    if any("annotations" in sample for sample in data.samples):
        unit, class_ids = "objects", data.objects.class_ids[~data.objects.is_crowd].tolist()
    elif any(is_labelled(sample) for sample in data.samples):
        unit, class_ids = "images", itertools.chain.from_iterable(classes_of(sample) for sample in data.samples)
    else:
        return "images", {}
    counts = collections.Counter(class_ids)
    return unit, {name: counts[index] for index, name in enumerate(names)}


def find_unusable(datasets: list[CheckedDataset], settings: Settings) -> None:
    """Say so where no image is left of the training data of a task, after the filters of the loader."""
    if not settings.uses_annotations:
        return
    tasks = collections.defaultdict(list)
    for data in datasets:
        if data.is_train:
            tasks[data.metadata.get("task")].append(data)
    for own in tasks.values():
        samples = [sample for data in own for sample in data.samples if "annotations" in sample]
        if samples and not _usable(samples, settings):
            names = ", ".join(data.name for data in own)
            own[0].report("no-usable-images", f"none of the {len(samples)} images of {names} is left by the filters")


def _usable(samples: list[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    if settings.filter_empty:
        samples = filter_images_with_only_crowd_annotations(samples)
    if settings.min_keypoints:
        with contextlib.suppress(TypeError, IndexError):  # Keypoints that are none, which are reported already.
            samples = filter_images_with_few_keypoints(samples, settings.min_keypoints)
    return samples
