"""Metrics of image classification as functions of scores and labels: accuracy, confusion, precision, recall, AP.

Shapes: N samples, C classes. Metrics are in percent. Targets of several labels are (N, C): 1 for a class that is
there, 0 for one that is not, -1 for one that does not count (unknown, or in VOC's terms "difficult").
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ClassCounts",
    "accuracy_of_ranks",
    "average_precision",
    "confusion_matrix",
    "label_ranks",
    "multi_label_counts",
    "multi_label_metrics",
    "multi_label_predictions",
    "precision_recall_f1",
    "single_label_counts",
    "topk_accuracy",
]

Average = Literal["macro", "micro"]

DEFAULT_THR = 0.5
SHORT_NAMES = {"P": "precision", "R": "recall", "F1": "f1"}


class ClassCounts(NamedTuple):
    """How often each class is predicted rightly, predicted at all, and there: (C,) each."""

    hits: Tensor
    predicted: Tensor
    labels: Tensor


def topk_accuracy(
    scores: Tensor,
    labels: Tensor,
    topk: int | Sequence[int] = (1, 5),
    thrs: float | Sequence[float | None] | None = None,
) -> dict[str, float]:
    """Share of the samples whose label is among the k classes with the highest scores.

    Of classes with equal scores, the one with the lower index comes first.

    Args:
        scores: (N, C).
        labels: (N,) integers.
        topk: one k or several.
        thrs: a label must have more than this score, too; several give an accuracy for each, None is no threshold.

    Returns:
        ``{"top1": ..., "top5": ...}``, in which a threshold is part of the name: ``"top1_thr0.5"``. ``nan`` without
        samples.

    Raises:
        ValueError: a k is below 1 or above C.
    """
    topk = (topk,) if isinstance(topk, int) else tuple(topk)
    if wrong := [k for k in topk if not 0 < k <= scores.shape[1]]:
        raise ValueError(f"topk has {wrong[0]}, expected 1 to {scores.shape[1]}, the number of classes")
    label_scores = scores.gather(1, labels[:, None])[:, 0]
    return accuracy_of_ranks(label_ranks(scores, labels), label_scores, topk, thrs)


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the label of each sample: (N,), 0 for a label that is predicted.

    Args:
        scores: (N, C).
        labels: (N,) integers.
    """
    own = scores.gather(1, labels[:, None])  # (N, 1)
    indices = torch.arange(scores.shape[1], device=scores.device)
    # Counted from the end, as no comparison with NaN is true: a label whose score is NaN must not come first.
    not_before = (scores < own) | ((scores == own) & (indices >= labels[:, None]))
    return scores.shape[1] - not_before.sum(dim=1)


def accuracy_of_ranks(
    ranks: Tensor, label_scores: Tensor, topk: Sequence[int], thrs: float | Sequence[float | None] | None = None
) -> dict[str, float]:
    """:func:`topk_accuracy` of what is left of the scores: rank and score of each sample's label, (N,) each."""
    thrs = [thrs] if thrs is None or isinstance(thrs, (int, float)) else thrs
    accuracies = {}
    for thr in thrs:
        is_sure = torch.ones_like(ranks, dtype=torch.bool) if thr is None else label_scores > thr
        for k in topk:
            name = f"top{k}" if thr is None else f"top{k}_thr{thr:g}"
            accuracies[name] = 100 * ((ranks < k) & is_sure).double().mean().item()
    return accuracies


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count pairs of classes: (C, C), label x prediction.

    Args:
        predictions: (N,) integers from 0 to C - 1.
        labels: (N,) integers from 0 to C - 1.
        num_classes: C.
    """
    pairs = num_classes * labels + predictions
    return pairs.bincount(minlength=num_classes**2).reshape(num_classes, num_classes)


def single_label_counts(confusion: Tensor) -> ClassCounts:
    """Return the counts in a confusion matrix (C, C), label x prediction."""
    return ClassCounts(confusion.diagonal(), confusion.sum(dim=0), confusion.sum(dim=1))


def multi_label_counts(predictions: Tensor, targets: Tensor) -> ClassCounts:
    """Count predicted and true labels of samples with several each.

    Args:
        predictions: (N, C) bool.
        targets: (N, C) of 1, 0 and -1.
    """
    present, predicted = targets == 1, predictions & (targets >= 0)
    return ClassCounts((present & predicted).sum(dim=0), predicted.sum(dim=0), present.sum(dim=0))


def precision_recall_f1(counts: ClassCounts, average: Average | None = "macro") -> dict[str, Tensor]:
    """Precision, recall and their harmonic mean; 0 where nothing is predicted, or nothing is there.

    Args:
        counts: of each class.
        average: "macro" for the plain mean over all classes, "micro" for the values of all classes taken together,
            None for those of each class.

    Returns:
        "precision", "recall", "f1" in percent and "support", the number of labels: scalars, or (C,) without average.

    Raises:
        ValueError: there is no such average.
    """
    if average not in ("macro", "micro", None):
        raise ValueError(f"average is {average!r}, expected 'macro', 'micro' or None")
    if average == "micro":
        counts = ClassCounts(*(count.sum() for count in counts))
    hits = counts.hits.double()
    precision = 100 * hits / counts.predicted.clamp(min=1)
    recall = 100 * hits / counts.labels.clamp(min=1)
    both = precision + recall
    metrics = {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both.clamp(min=torch.finfo(both.dtype).eps),
    }
    if average == "macro":
        metrics = {name: values.mean() for name, values in metrics.items()}
    return {**metrics, "support": counts.labels if average is None else counts.labels.sum()}


def multi_label_predictions(scores: Tensor, thr: float | None = None, topk: int | None = None) -> Tensor:
    """Choose the classes of each sample: (N, C) bool.

    Args:
        scores: (N, C).
        thr: classes with at least this score; 0.5 when ``topk`` is not given either.
        topk: this many classes with the highest scores; without effect when ``thr`` is given.

    Raises:
        ValueError: ``topk`` is below 1 or above C.
    """
    if thr is not None or topk is None:
        return scores >= (DEFAULT_THR if thr is None else thr)
    if not 0 < topk <= scores.shape[1]:
        raise ValueError(f"topk is {topk}, expected 1 to {scores.shape[1]}, the number of classes")
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :topk]  # Stable: lower index first, as above.
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)


def multi_label_metrics(predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """Precision, recall and F1 as the mean over classes (C...) and of all labels taken together (O... for overall).

    CF1 is the mean of the classes' F1; some papers give the harmonic mean of CP and CR instead.

    Args:
        predictions: (N, C) bool.
        targets: (N, C) of 1, 0 and -1.

    Returns:
        "CP", "CR", "CF1", "OP", "OR" and "OF1".
    """
    counts = multi_label_counts(predictions, targets)
    metrics = {}
    for letter, average in (("C", "macro"), ("O", "micro")):
        values = precision_recall_f1(counts, average)
        metrics |= {f"{letter}{short}": values[name].item() for short, name in SHORT_NAMES.items()}
    return metrics


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean of the precisions at the ranks of the positives, not interpolated: (C,).

    Samples with equal scores keep their order. A class without a positive has ``nan``.

    Args:
        scores: (N, C).
        targets: (N, C) of 1, 0 and -1.
    """
    order = scores.argsort(dim=0, descending=True, stable=True)
    targets = targets.gather(0, order)
    positive, counted = targets == 1, targets >= 0
    precision = positive.cumsum(dim=0).double() / counted.cumsum(dim=0).clamp(min=1)
    return 100 * (precision * positive).sum(dim=0) / positive.sum(dim=0)
