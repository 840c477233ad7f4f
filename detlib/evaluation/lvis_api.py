"""Average precision of LVIS (https://arxiv.org/abs/1908.03195, sec. 2 and 5), on arrays and without its own package.

LVIS does not say of every image which of its 1200 classes it shows. A class is evaluated on the images where it is
annotated, and on those of ``neg_category_ids``, where it is known to be absent; detections elsewhere are left out. In
images that list a class under ``not_exhaustive_category_ids``, some of its objects are unannotated, so a detection
without a match is no error there. The published package does the same and does not run on numpy from 1.24 on.

Shapes: I images, K classes, D detections and G objects of a class in an image, A = 4 ranges of area, T = 10 thresholds.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from detlib.evaluation.coco_api import load_ground_truth
from detlib.utils.errors import ConfigError, DatasetError

__all__ = ["evaluate_on_lvis", "load_lvis"]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # All, small, medium, large.
FREQUENCIES = ("r", "c", "f")

Row = dict[str, Any]


def load_lvis(json_file: str) -> COCO:
    """Read an LVIS file.

    Raises:
        DatasetError: it lacks what makes it one: for each image the classes that were checked.
    """
    lvis = load_ground_truth(json_file)
    images = lvis.dataset.get("images", ())
    if lvis.dataset.get("annotations") and any("neg_category_ids" not in image for image in images):
        raise DatasetError(
            f"{json_file} has images without neg_category_ids, so it is not in LVIS's format; evaluate it with "
            "COCOEvaluator, by the evaluator_type 'coco' in the metadata"
        )
    return lvis


def evaluate_on_lvis(lvis: COCO, detections: Sequence[Row], task: str, max_dets: int) -> dict[str, float]:
    """Compare detections with the ground truth.

    Args:
        detections: in COCO's result format, with category ids of the dataset; may be empty.
        task: ``"bbox"`` or ``"segm"``.
        max_dets: highest scoring detections that count per image.

    Returns:
        metrics in percent, ``nan`` where there is no object.
    """
    _check(lvis, detections, task)
    precision = np.full((len(AREAS), len(THRESHOLDS), len(lvis.cats), len(RECALLS)), np.nan)
    outcomes = _outcomes(lvis, _best_of_each_image(detections, max_dets), task)
    for k, category in enumerate(sorted(lvis.cats)):
        if category in outcomes:
            precision[:, :, k] = _precision(*outcomes[category])
    return _summary(precision, [lvis.cats[category].get("frequency") for category in sorted(lvis.cats)])


def _check(lvis: COCO, detections: Sequence[Row], task: str) -> None:
    unknown = {detection["image_id"] for detection in detections} - lvis.imgs.keys()
    if unknown:
        raise DatasetError(
            f"{len(unknown)} images with predictions are not in the ground truth, such as image_id {min(unknown)!r}. "
            "Was the model run on another dataset than the evaluator was made for?"
        )
    if task == "segm" and any("segmentation" not in detection for detection in detections):
        raise ConfigError(
            "Task 'segm' was asked for, but the model predicts no segmentation; leave it out or switch on MODEL.MASK_ON"
        )
    if task == "segm" and any("segmentation" not in annotation for annotation in lvis.anns.values()):
        raise DatasetError("some annotations have no 'segmentation'; add it, or evaluate with tasks=['bbox']")


def _best_of_each_image(detections: Sequence[Row], max_dets: int) -> list[Row]:
    """By falling score within an image."""
    by_image = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    return [
        detection
        for rows in by_image.values()
        for detection in sorted(rows, key=lambda row: row["score"], reverse=True)[:max_dets]
    ]


def _outcomes(lvis: COCO, detections: Sequence[Row], task: str) -> dict[int, tuple[np.ndarray, ...]]:
    """For each class with an object or a detection that counts: scores (D,), hits and errors (A, T, D), objects (A,).

    D runs over the images by rising id.
    """
    objects, found = defaultdict(list), defaultdict(list)
    for annotation in lvis.anns.values():
        objects[annotation["image_id"], annotation["category_id"]].append(annotation)
    negative = {(i, category) for i, image in lvis.imgs.items() for category in image["neg_category_ids"]}
    not_exhaustive = {
        (i, category) for i, image in lvis.imgs.items() for category in image.get("not_exhaustive_category_ids", ())
    }
    for detection in detections:
        pair = (detection["image_id"], detection["category_id"])
        if pair in objects or pair in negative:
            found[pair].append(detection)
    parts = defaultdict(list)
    for pair in sorted(objects.keys() | found.keys(), key=lambda pair: (pair[1], pair[0])):
        part = _match(lvis, found.get(pair, []), objects.get(pair, []), task, pair in not_exhaustive)
        parts[pair[1]].append(part)
    return {
        category: (*(np.concatenate(x, axis=-1) for x in list(zip(*rows))[:3]), sum(row[3] for row in rows))
        for category, rows in parts.items()
    }


def _match(
    lvis: COCO, detections: list[Row], objects: list[Row], task: str, not_exhaustive: bool
) -> tuple[np.ndarray, ...]:
    """Pair detections of one class in one image, best score first, with the objects they overlap most.

    An object outside of the range of area is taken only if no other will do, and frees its detection from counting.
    """
    ranges = AREAS[:, :, None]  # (A, 2, 1)
    gt_area = np.array([thing["area"] for thing in objects], dtype=np.float64)
    gt_free = (gt_area < ranges[:, 0]) | (gt_area > ranges[:, 1])  # (A, G)
    gt_free |= np.array([bool(thing.get("ignore", 0)) for thing in objects], dtype=bool)
    iou, area = _overlaps(lvis, detections, objects, task)  # (D, G) and (D,)
    size = (len(AREAS), len(THRESHOLDS))
    hit = np.zeros((*size, len(detections)), dtype=bool)
    free = np.zeros_like(hit)  # Paired with an object that does not count.
    open_objects = np.ones((*size, len(objects)), dtype=bool)
    limits = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    for d in np.flatnonzero(iou.max(axis=1, initial=0.0) >= limits.min()):
        eligible = open_objects & (iou[d] >= limits)  # (A, T, G)
        counted = eligible & ~gt_free[:, None]
        eligible = np.where(counted.any(axis=2, keepdims=True), counted, eligible)
        # Of equal overlaps the object that comes last is taken.
        choice = iou.shape[1] - 1 - np.where(eligible, iou[d], -1.0)[..., ::-1].argmax(axis=2)  # (A, T)
        some = eligible.any(axis=2)
        areas, thresholds = np.nonzero(some)
        open_objects[areas, thresholds, choice[some]] = False
        on_free = np.take_along_axis(gt_free, choice, axis=1)
        hit[..., d], free[..., d] = some & ~on_free, some & on_free
    outside = (area < ranges[:, 0]) | (area > ranges[:, 1])  # (A, D)
    error = ~hit & ~free & ~outside[:, None] & (not not_exhaustive)
    scores = np.array([detection["score"] for detection in detections], dtype=np.float64)
    return scores, hit, error, (~gt_free).sum(axis=1)


def _overlaps(lvis: COCO, detections: list[Row], objects: list[Row], task: str) -> tuple[np.ndarray, np.ndarray]:
    """IoU (D, G), and the area of each detection (D,)."""
    if task == "segm":
        regions = [detection["segmentation"] for detection in detections]
        area = np.array(mask_api.area(regions) if regions else [], dtype=np.float64)
    else:
        regions = [detection["bbox"] for detection in detections]
        area = np.array([width * height for _, _, width, height in regions], dtype=np.float64)
    if not detections or not objects:
        return np.zeros((len(detections), len(objects))), area
    gt_regions = [lvis.annToRLE(thing) if task == "segm" else thing["bbox"] for thing in objects]
    return np.asarray(mask_api.iou(regions, gt_regions, [0] * len(objects))), area


def _precision(scores: np.ndarray, hit: np.ndarray, error: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """Precision (A, T, R) of a class at each recall; ``nan`` for areas without objects."""
    best_first = np.argsort(-scores, kind="stable")
    hits = np.cumsum(hit[..., best_first], axis=-1)  # (A, T, D)
    errors = np.cumsum(error[..., best_first], axis=-1)
    precision = hits / np.maximum(hits + errors, np.spacing(1))
    # The best precision at this or a higher recall; 0 past the last detection.
    best = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    best = np.concatenate([best, np.zeros((*best.shape[:2], 1))], axis=-1)
    recall = hits / np.maximum(num_objects, 1)[:, None, None]
    result = np.full((*hits.shape[:2], len(RECALLS)), np.nan)
    for a, t in np.ndindex(hits.shape[:2]):
        if num_objects[a]:
            result[a, t] = best[a, t, np.searchsorted(recall[a, t], RECALLS, side="left")]
    return result


def _summary(precision: np.ndarray, frequencies: Sequence[str | None]) -> dict[str, float]:
    """From precisions (A, T, K, R)."""
    by_frequency = {f: np.array([frequency == f for frequency in frequencies], dtype=bool) for f in FREQUENCIES}
    parts = {
        "AP": precision[0],
        "AP50": precision[0, np.isclose(THRESHOLDS, 0.5)],
        "AP75": precision[0, np.isclose(THRESHOLDS, 0.75)],
        **{f"AP{name}": precision[area] for area, name in enumerate("sml", start=1)},
        **{f"AP{f}": precision[0][:, members] for f, members in by_frequency.items()},
    }
    means = {name: values[~np.isnan(values)] for name, values in parts.items()}
    return {name: float(100 * values.mean()) if values.size else float("nan") for name, values in means.items()}
