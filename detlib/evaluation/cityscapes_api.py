"""The metrics of the Cityscapes benchmark (https://arxiv.org/abs/1604.01685, sec. 3.2 and 4.2), on arrays.

Ground truth are maps of instance ids: ``1000 * label + number`` for an instance, the label alone for a region without
instances or of several that nobody told apart. Labels outside of ``LABELS`` are void and not evaluated.

Shapes: K classes, P predicted instances and G ids of the ground truth in an image, T = 10 thresholds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detlib.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

__all__ = [
    "CATEGORIES",
    "LABELS",
    "MEAN_SIZES",
    "THRESHOLDS",
    "ImageInstances",
    "LabelCounts",
    "average_precision",
    "compare_instances",
    "compare_labels",
]

LABELS = {category["name"]: category["id"] for category in CITYSCAPES_CATEGORIES}
"""Class -> label id, of the classes that are evaluated."""

CATEGORIES = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}

# Mean number of pixels of an instance, by which the benchmark weights the pixels of large and small ones alike.
MEAN_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
MIN_PIXELS = 100  # Smaller instances need not be found.

NAMES = tuple(LABELS)
NUM_LABELS = len(NAMES)
INDEX_OF_LABEL = np.full(256, NUM_LABELS)  # Label id -> index into NAMES; the last index stands for void.
INDEX_OF_LABEL[list(LABELS.values())] = np.arange(NUM_LABELS)
MEMBERS = np.array([[name in members for name in NAMES] for members in CATEGORIES.values()])  # (7, 19)


@dataclass
class LabelCounts:
    """Pixels of label maps, of one image or summed over many."""

    confusion: np.ndarray  # (19, 19) prediction x ground truth; void pixels are left out.
    instance_hits: np.ndarray  # (19,) weighted pixels of instances with the right class
    instance_pixels: np.ndarray  # (19,) weighted pixels of instances
    category_hits: np.ndarray  # (19,) weighted pixels of instances with the right category, by class

    @classmethod
    def zeros(cls) -> "LabelCounts":
        """Of no image."""
        size = NUM_LABELS
        return cls(np.zeros((size, size), dtype=np.int64), np.zeros(size), np.zeros(size), np.zeros(size))

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        return LabelCounts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def class_iou(self) -> np.ndarray:
        """IoU of each class (19,); ``nan`` where there is neither prediction nor truth."""
        return _iou(self.confusion)

    def category_iou(self) -> np.ndarray:
        """IoU of each category (7,)."""
        return _iou(MEMBERS @ self.confusion @ MEMBERS.T)

    def class_instance_iou(self) -> np.ndarray:
        """IoU of classes with instances, each instance with the same weight (19,); ``nan`` for the others."""
        errors = self.confusion.sum(axis=1) - self.confusion.diagonal()
        iou = _ratio(self.instance_hits, self.instance_pixels + errors)
        return np.where([name in MEAN_SIZES for name in NAMES], iou, np.nan)

    def category_instance_iou(self) -> np.ndarray:
        """The same of categories with instances (7,)."""
        confusion = MEMBERS @ self.confusion @ MEMBERS.T
        errors = confusion.sum(axis=1) - confusion.diagonal()
        iou = _ratio(MEMBERS @ self.category_hits, MEMBERS @ self.instance_pixels + errors)
        return np.where([members[0] in MEAN_SIZES for members in CATEGORIES.values()], iou, np.nan)


def compare_labels(predicted: np.ndarray, instance_ids: np.ndarray) -> LabelCounts:
    """Count the pixels of one image.

    Args:
        predicted: indices into ``NAMES`` (H, W).
        instance_ids: of the ground truth (H, W).
    """
    values, places = np.unique(instance_ids, return_inverse=True)  # (G,) and (H, W)
    truth = INDEX_OF_LABEL[_label_of(values)]  # (G,)
    pixels = np.bincount(places.ravel() * NUM_LABELS + predicted.ravel(), minlength=len(values) * NUM_LABELS)
    pixels = pixels.reshape(len(values), NUM_LABELS)  # of each id, with each predicted class
    confusion = np.zeros((NUM_LABELS + 1, NUM_LABELS), dtype=np.int64)
    np.add.at(confusion, truth, pixels)

    mean_sizes = np.array([MEAN_SIZES.get(name, 0.0) for name in NAMES] + [0.0])
    weights = np.where(values >= 1000, mean_sizes[truth] / np.maximum(pixels.sum(axis=1), 1), 0.0)  # (G,)
    known = np.minimum(truth, NUM_LABELS - 1)  # Void has no weight.
    same_category = (MEMBERS.T @ MEMBERS)[known]  # (G, 19)
    hits = (
        weights * pixels[np.arange(len(values)), known],
        weights * pixels.sum(axis=1),
        weights * (pixels * same_category).sum(axis=1),
    )
    return LabelCounts(confusion[:-1].T, *(np.bincount(known, x, minlength=NUM_LABELS) for x in hits))


@dataclass
class ImageInstances:
    """Predicted instances of one image, and how they overlap the ground truth."""

    labels: np.ndarray  # (P,) label ids
    scores: np.ndarray  # (P,)
    pixels: np.ndarray  # (P,)
    gt_ids: np.ndarray  # (G,)
    gt_pixels: np.ndarray  # (G,)
    shared: np.ndarray  # (P, G) pixels


def compare_instances(
    masks: np.ndarray, labels: np.ndarray, scores: np.ndarray, instance_ids: np.ndarray
) -> ImageInstances:
    """Measure overlaps; instances without a pixel are dropped.

    Args:
        masks: (P, H, W) of bool.
        labels: label ids (P,).
        scores: (P,).
        instance_ids: of the ground truth (H, W).
    """
    gt_ids, places, gt_pixels = np.unique(instance_ids, return_inverse=True, return_counts=True)
    instance, pixel = np.nonzero(masks.reshape(len(masks), instance_ids.size))
    size = (len(masks), len(gt_ids))
    shared = np.bincount(instance * size[1] + places.ravel()[pixel], minlength=size[0] * size[1]).reshape(size)
    seen = shared.any(axis=1)
    shared = shared[seen]
    return ImageInstances(labels[seen], scores[seen], shared.sum(axis=1), gt_ids, gt_pixels, shared)


def average_precision(images: Sequence[ImageInstances], label: int) -> np.ndarray:
    """Average precision of a class at each threshold (T,); ``nan`` if it has no instance that must be found."""
    parts = [_classify(image, label) for image in images]
    scores = np.concatenate([part[0] for part in parts])
    hit, error = (np.concatenate([part[i] for part in parts], axis=1) for i in (1, 2))  # (T, P)
    num_gt = sum(part[3] for part in parts)
    if num_gt == 0:
        return np.full(len(THRESHOLDS), np.nan)
    return np.array([_area_under_curve(scores, h, e, num_gt) for h, e in zip(hit, error, strict=True)])


def _classify(image: ImageInstances, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Scores (P,), which are right and which are wrong (T, P) each, and the number of instances to find.

    An instance that overlaps a region which need not be found is neither right nor wrong, nor is one that has more
    than the threshold's share of its pixels on void and such regions.
    """
    chosen = image.labels == label
    gt_labels = _label_of(image.gt_ids)
    of_class = gt_labels == label
    scores, pixels, shared = image.scores[chosen], image.pixels[chosen], image.shared[chosen]
    # Caravans and trailers that have numbers are not void here, unlike in label maps.
    is_void = (image.gt_ids < 1000) & (INDEX_OF_LABEL[gt_labels] == NUM_LABELS)
    on_void = shared[:, is_void].sum(axis=1)  # (P,)
    shared, gt_ids, gt_pixels = shared[:, of_class], image.gt_ids[of_class], image.gt_pixels[of_class]
    required = (gt_ids >= 1000) & (gt_pixels >= MIN_PIXELS)  # (G,)

    iou = shared / (pixels[:, None] + gt_pixels[None, :] - shared)  # (P, G)
    overlaps = iou > THRESHOLDS[:, None, None]  # (T, P, G)
    # Of several on one instance, the best score is right and the others are wrong.
    rank = np.argsort(np.argsort(-scores, kind="stable"), kind="stable")
    best = np.where(overlaps, rank[:, None], len(scores)).min(axis=1, initial=len(scores))  # (T, G)
    hit = (overlaps & (rank[:, None] == best[:, None]) & required).any(axis=2)
    duplicate = (overlaps & required).any(axis=2) & ~hit
    # The benchmark counts a small region of several instances twice.
    excuses = (gt_ids < 1000) * 1 + (gt_pixels < MIN_PIXELS) * 1  # (G,)
    excused = (on_void + shared @ excuses) / pixels > THRESHOLDS[:, None]  # (T, P)
    alone = ~overlaps.any(axis=2)
    return scores, hit, duplicate | (alone & ~excused), int(required.sum())


def _area_under_curve(scores: np.ndarray, hit: np.ndarray, error: np.ndarray, num_gt: int) -> float:
    """By the trapezoidal rule through one point for each different score and the point of recall 0 and precision 1."""
    counted = hit | error
    best_first = np.argsort(-scores[counted], kind="stable")
    scores, hit = scores[counted][best_first], hit[counted][best_first]
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, True)) if scores.size else np.zeros(0, dtype=np.int64)
    hits = np.cumsum(hit)[ends]
    precision = np.concatenate([[1.0], hits / (ends + 1)])
    recall = np.concatenate([[0.0], hits / num_gt])
    return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


def _label_of(instance_ids: np.ndarray) -> np.ndarray:
    return np.where(instance_ids >= 1000, instance_ids // 1000, instance_ids)


def _iou(confusion: np.ndarray) -> np.ndarray:
    hits = confusion.diagonal()
    return _ratio(hits, confusion.sum(axis=0) + confusion.sum(axis=1) - hits)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
