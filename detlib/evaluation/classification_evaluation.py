"""Accuracy, precision, recall and average precision of image classifiers on a dataset.

Shapes: N samples, C classes.
"""

import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.evaluation.classification_metrics import (
    accuracy_of_ranks,
    average_precision,
    confusion_matrix,
    label_ranks,
    multi_label_counts,
    multi_label_metrics,
    multi_label_predictions,
    precision_recall_f1,
    single_label_counts,
)
from detlib.evaluation.classification_report import ClassReport, describe_confusion, write_confusion
from detlib.evaluation.evaluator import DatasetEvaluator
from detlib.evaluation.predictions import gather_predictions, write_json
from detlib.utils.errors import ConfigError, DatasetError

__all__ = ["ClassificationEvaluator", "MultiLabelEvaluator"]

logger = logging.getLogger(__name__)

DEFAULT_TOPK = (1, 5)


class ClassificationEvaluator(DatasetEvaluator):
    """Metrics of ``pred_score``, the scores (C,) that a model gives an image; the best one is its class.

    In percent:

    * ``top1``, ``top5``: share of the images whose label is among the 1 or 5 best classes; of equal scores, the class
      with the lower index is the better one.
    * ``precision``, ``recall``, ``f1``: mean over the classes; a class without images counts as 0.
    * ``f1-{class}``: of one class.

    Precision, recall, F1 and number of images of each class and the confusion matrix are logged. Of a model that
    returns only ``pred_label``, there is no accuracy but ``top1``.

    Args:
        dataset_name: of a registered dataset whose samples have a ``label`` (int). Its metadata must have ``classes``.
        topk: which accuracies; of the default, those with more than C classes are left out.
        output_dir: where to write ``classification_predictions.json``, ``classification_metrics.json`` (with the
            values of each class) and ``confusion_matrix.csv``; otherwise nothing is written.
        distributed: collect predictions from all processes; otherwise each evaluates its own.
        thrs: further accuracies, ``top1_thr0.5``, for which the label must also have more than this score; None among
            them is the accuracy without threshold.
        average: over classes, "macro", or all images taken together, "micro", which makes precision, recall and f1
            equal to ``top1``.
    """

    def __init__(
        self,
        dataset_name: str,
        topk: int | Sequence[int] = DEFAULT_TOPK,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        thrs: float | Sequence[float | None] | None = None,
        average: Literal["macro", "micro"] = "macro",
    ) -> None:
        if average not in ("macro", "micro"):
            raise ConfigError(f"average is {average!r}, expected 'macro' or 'micro'")
        self._dataset_name = dataset_name
        self._ground_truth = _GroundTruth(dataset_name, "label")
        self._class_names = self._ground_truth.class_names
        self._topk = _checked_topk(topk, len(self._class_names), dataset_name)
        self._output_dir = output_dir
        self._distributed = distributed
        self._thrs = thrs
        self._average = average
        self.reset()

    def reset(self) -> None:
        self._batches: list[dict[str, Any] | None] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compare the scores of each image with its label.

        Args:
            inputs: each with a ``label``, or with the ``image_id`` or ``file_name`` of a labelled image of the dataset.
            outputs: each with ``pred_score`` (C,) or ``pred_label`` (int).
        """
        if not inputs:
            return
        ids = [_id_of(sample) for sample, _ in zip(inputs, outputs, strict=True)]
        labels = torch.tensor([self._ground_truth.of(sample)[0][0] for sample in inputs])  # (N,)
        batch: dict[str, Any] = {"ids": ids, "labels": labels}
        if "pred_score" in outputs[0]:
            scores = _stacked_scores(outputs, self._class_names, self._dataset_name)
            batch["scores"], batch["predictions"] = scores.max(dim=1)
            batch["ranks"] = label_ranks(scores, labels)
            batch["label_scores"] = scores.gather(1, labels[:, None])[:, 0]
        elif "pred_label" in outputs[0]:
            predicted = [int(output["pred_label"]) for output in outputs]
            _check_predicted(predicted, self._class_names, self._dataset_name)
            batch["predictions"] = torch.tensor(predicted)
        self._batches.append(batch if "predictions" in batch else None)

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics.

        Returns:
            ``{"classification": {"top1": ..., ...}}``; ``None`` in processes other than the main one, and when the
            model returns neither ``pred_score`` nor ``pred_label``.
        """
        batches = gather_predictions(self._batches, self._dataset_name, self._distributed, field="pred_score")
        if batches is None:
            return None
        samples = _join(batches, self._dataset_name)
        confusion = confusion_matrix(samples["predictions"], samples["labels"], len(self._class_names))
        counts = single_label_counts(confusion)
        means = precision_recall_f1(counts, self._average)
        metrics = self._accuracies(samples) | {name: means[name].item() for name in ("precision", "recall", "f1")}
        report = ClassReport(metrics, precision_recall_f1(counts, None), self._class_names)
        report.log(f"Classification on {self._dataset_name}")
        logger.info("%s", describe_confusion(confusion, self._class_names))
        if self._output_dir:
            write_json(_prediction_rows(samples), self._output_dir, "classification_predictions.json")
            report.write(self._output_dir, "classification_metrics.json")
            write_confusion(confusion, self._class_names, self._output_dir)
        return OrderedDict(classification=report.with_classes("f1"))

    def _accuracies(self, samples: dict[str, Any]) -> dict[str, float]:
        if "ranks" in samples:
            return accuracy_of_ranks(samples["ranks"], samples["label_scores"], self._topk, self._thrs)
        logger.warning("The model returns no 'pred_score' for %r, so only top1 is computed", self._dataset_name)
        is_wrong = (samples["predictions"] != samples["labels"]).long()
        return accuracy_of_ranks(is_wrong, is_wrong, topk=(1,))


class MultiLabelEvaluator(DatasetEvaluator):
    """Metrics of ``pred_score``, the scores (C,) of an image that may have several classes, or none.

    In percent; classes among the ``ignored_labels`` of an image do not count there:

    * ``mAP``: mean of ``AP-{class}``, the average precision, not interpolated. Of a class that is in no image it is
      ``nan``, and the mean leaves it out.
    * ``CP``, ``CR``, ``CF1``: precision, recall and F1 of the predicted classes, mean over the classes.
    * ``OP``, ``OR``, ``OF1``: the same of all predicted classes taken together.

    Args:
        dataset_name: of a registered dataset whose samples have ``labels`` (list of ints), and perhaps
            ``ignored_labels``, which may repeat some of them. Its metadata must have ``classes``.
        output_dir: where to write ``multi_label_predictions.json`` and ``multi_label_metrics.json``; otherwise nothing
            is written.
        distributed: collect predictions from all processes; otherwise each evaluates its own.
        thr: lowest score of a class that counts as predicted.
        topk: number of classes that count as predicted; ``thr`` goes first. With neither of them these are the model's
            own ``pred_label``, or else the classes with a score of at least 0.5.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        thr: float | None = None,
        topk: int | None = None,
    ) -> None:
        self._dataset_name = dataset_name
        self._ground_truth = _GroundTruth(dataset_name, "labels")
        self._class_names = self._ground_truth.class_names
        self._output_dir = output_dir
        self._distributed = distributed
        self._thr = thr
        self._topk = None if topk is None else _checked_topk(topk, len(self._class_names), dataset_name)[0]
        self.reset()

    def reset(self) -> None:
        self._batches: list[dict[str, Any] | None] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep scores and labels of each image.

        Args:
            inputs: each with ``labels``, or with the ``image_id`` or ``file_name`` of a labelled image of the dataset.
            outputs: each with ``pred_score`` (C,), and perhaps ``pred_label`` (list of ints).
        """
        if not inputs:
            return
        if "pred_score" not in outputs[0]:
            self._batches.append(None)
            return
        scores = _stacked_scores(outputs, self._class_names, self._dataset_name)
        labels, ignored = zip(*(self._ground_truth.of(sample) for sample in inputs), strict=True)
        targets = _multi_hot(labels, scores.shape[1])  # (N, C)
        targets[_multi_hot(ignored, scores.shape[1]) == 1] = -1
        ids = [_id_of(sample) for sample, _ in zip(inputs, outputs, strict=True)]
        predictions = self._predictions(outputs, scores)
        self._batches.append({"ids": ids, "scores": scores, "targets": targets, "predictions": predictions})

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics.

        Returns:
            ``{"multi_label_classification": {"mAP": ..., ...}}``; ``None`` in processes other than the main one, and
            when the model returns no ``pred_score``.
        """
        batches = gather_predictions(self._batches, self._dataset_name, self._distributed, field="pred_score")
        if batches is None:
            return None
        samples = _join(batches, self._dataset_name)
        predictions, targets = samples["predictions"], samples["targets"]
        ap = average_precision(samples["scores"], targets)
        metrics = {"mAP": ap.nanmean().item(), **multi_label_metrics(predictions, targets)}
        columns = {"AP": ap, **precision_recall_f1(multi_label_counts(predictions, targets), None)}
        report = ClassReport(metrics, columns, self._class_names)
        report.log(f"Multi-label classification on {self._dataset_name}")
        if self._output_dir:
            write_json(_multi_label_prediction_rows(samples), self._output_dir, "multi_label_predictions.json")
            report.write(self._output_dir, "multi_label_metrics.json")
        return OrderedDict(multi_label_classification=report.with_classes("AP"))

    def _predictions(self, outputs: list[dict[str, Any]], scores: Tensor) -> Tensor:
        if self._thr is None and self._topk is None and "pred_label" in outputs[0]:
            labels = [output["pred_label"] for output in outputs]
            return _multi_hot([[i] if isinstance(i, int) else i for i in labels], scores.shape[1]).bool()
        return multi_label_predictions(scores, self._thr, self._topk)


class _GroundTruth:
    """The labels of a dataset and the names of its classes.

    Args:
        dataset_name: of a registered dataset.
        field: "label" or "labels", whichever its samples need.
    """

    def __init__(self, dataset_name: str, field: str) -> None:
        self._dataset_name = dataset_name
        self._field = field
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("classes") is None:
            DatasetCatalog.get(dataset_name)  # Some datasets know their classes only then.
        if metadata.get("classes") is None:
            raise DatasetError(
                f"{dataset_name!r} has no names of classes; set MetadataCatalog.get({dataset_name!r}).classes"
            )
        self.class_names = _distinct(list(metadata.classes))

    def of(self, sample: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Classes of a sample, and classes that do not count for it; from the dataset if the mapper dropped them."""
        found = sample
        if sample.get(self._field) is None and _id_of(sample) is not None:
            found = self._samples.get(_id_of(sample), sample)
        classes = found.get(self._field)
        if classes is None:
            raise DatasetError(self._what_is_missing(sample))
        labels = [int(i) for i in ([classes] if self._field == "label" else classes)]
        ignored = [int(i) for i in found.get("ignored_labels", ())]
        if wrong := [i for i in labels + ignored if not 0 <= i < len(self.class_names)]:
            raise DatasetError(
                f"the sample {_id_of(sample)!r} has the label {wrong[0]}, but {self._dataset_name!r} has "
                f"{len(self.class_names)} classes, numbered from 0; correct the label, or classes in its metadata"
            )
        return labels, ignored

    @cached_property
    def _samples(self) -> dict[Hashable, dict[str, Any]]:
        """Labels by sample; without the images, which some datasets hold in memory."""
        fields = (self._field, "ignored_labels")
        samples = DatasetCatalog.get(self._dataset_name)
        return {_id_of(sample): {name: sample[name] for name in fields if name in sample} for sample in samples}

    def _what_is_missing(self, sample: dict[str, Any]) -> str:
        kind, other, other_type = {
            "label": ("an int", "labels", "multi_label_classification"),
            "labels": ("a list of ints", "label", "image_classification"),
        }[self._field]
        message = (
            f"the sample {_id_of(sample)!r} has no {self._field!r}, neither in the input of the model nor in the "
            f"dataset {self._dataset_name!r}; evaluation needs {kind} for each sample"
        )
        return message + (f". It has {other!r}: set evaluator_type to {other_type!r}" if other in sample else "")


def _id_of(sample: dict[str, Any]) -> Hashable:
    """What tells a sample from the others; None if nothing does."""
    return sample.get("image_id", sample.get("file_name"))


def _distinct(names: list[str]) -> list[str]:
    """Names with their number where several classes have the same one, as the two cranes of ImageNet."""
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _checked_topk(topk: int | Sequence[int], num_classes: int, dataset_name: str) -> tuple[int, ...]:
    topk = (topk,) if isinstance(topk, int) else tuple(topk)
    possible = tuple(k for k in topk if 0 < k <= num_classes)
    if possible == topk:
        return topk
    if topk != DEFAULT_TOPK:
        raise ConfigError(f"topk is {topk}, but {dataset_name!r} has {num_classes} classes; expected 1 to that many")
    logger.info("%r has %d classes; accuracy is computed for topk %s only", dataset_name, num_classes, possible)
    return possible


def _stacked_scores(outputs: list[dict[str, Any]], class_names: list[str], dataset_name: str) -> Tensor:
    """(N, C) scores on the CPU."""
    scores = torch.stack([output["pred_score"] for output in outputs]).float().cpu()
    if scores.shape[1:] != (len(class_names),):
        raise DatasetError(
            f"the model gives {scores[0].numel()} scores per image, but {dataset_name!r} has {len(class_names)} "
            f"classes; set MODEL.CLASSIFIER.NUM_CLASSES: {len(class_names)}, and load weights trained with them"
        )
    return scores


def _check_predicted(predicted: list[int], class_names: list[str], dataset_name: str) -> None:
    if not 0 <= min(predicted) <= max(predicted) < len(class_names):
        raise DatasetError(
            f"the model predicted the classes {min(predicted)} to {max(predicted)}, but {dataset_name!r} has "
            f"{len(class_names)} classes; set MODEL.CLASSIFIER.NUM_CLASSES: {len(class_names)}"
        )


def _multi_hot(classes: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """(N, C) int8: 1 for the classes of each sample."""
    hot = torch.zeros(len(classes), num_classes, dtype=torch.int8)
    rows = [row for row, labels in enumerate(classes) for _ in labels]
    hot[rows, [int(label) for labels in classes for label in labels]] = 1
    return hot


def _join(batches: list[dict[str, Any]], dataset_name: str) -> dict[str, Any]:
    """Concatenate the batches, each sample once: samplers repeat some so that all processes have equally many."""
    ids = list(itertools.chain(*(batch["ids"] for batch in batches)))
    first = {("no id", i) if key is None else key: i for i, key in reversed(list(enumerate(ids)))}
    kept = sorted(first.values())
    if len(kept) < len(ids):
        logger.info("%d of %d predictions on %r are repetitions", len(ids) - len(kept), len(ids), dataset_name)
    names = set.intersection(*(set(batch) for batch in batches)) - {"ids"}
    joined: dict[str, Any] = {name: torch.cat([batch[name] for batch in batches])[kept] for name in names}
    return joined | {"ids": [ids[i] for i in kept]}


def _prediction_rows(samples: dict[str, Any]) -> list[dict[str, Any]]:
    columns = {"label": samples["labels"], "pred_label": samples["predictions"]}
    if "scores" in samples:
        columns["score"] = samples["scores"]
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [
        {"id": key, **dict(zip(columns, row, strict=True))} for key, row in zip(samples["ids"], values, strict=True)
    ]


def _multi_label_prediction_rows(samples: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": key,
            "labels": (targets == 1).nonzero()[:, 0].tolist(),
            "pred_labels": predictions.nonzero()[:, 0].tolist(),
            "scores": scores.tolist(),
        }
        for key, targets, predictions, scores in zip(
            samples["ids"], samples["targets"], samples["predictions"], samples["scores"], strict=True
        )
    ]
