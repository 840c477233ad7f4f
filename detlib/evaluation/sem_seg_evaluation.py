"""Intersection over union and accuracy of label maps, also along the boundaries of the classes.

Shapes: N classes, H x W pixels. Matrices are (N + 1, N + 1) counts of pixels, prediction x ground truth, in which the
last row and column stand for "none of the classes".
"""

import itertools
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.label_maps import semantic_labels_of
from detlib.evaluation.evaluator import DatasetEvaluator
from detlib.evaluation.predictions import gather_predictions, save_predictions, write_json
from detlib.evaluation.tables import metric_table, rows_table
from detlib.utils.errors import ConfigError, DatasetError
from detlib.utils.file_io import PathManager

__all__ = ["SemSegEvaluator", "load_image_into_numpy_array"]

logger = logging.getLogger(__name__)

BOUNDARY_RATIO = 0.02  # Width of the boundary as part of the image's diagonal (arXiv:2103.16562, sec. 4).


def load_image_into_numpy_array(filename: str, dtype: np.dtype | str | None = None) -> np.ndarray:
    """Read an image file without any conversion: (H, W) for a label map."""
    with PathManager.open(filename, "rb") as file:
        return np.array(Image.open(file), dtype=dtype)


class SemSegEvaluator(DatasetEvaluator):
    """Metrics of ``sem_seg``, the scores (N, H, W) that a model gives each pixel; the best one is its class.

    In percent, over all pixels of the dataset that are not ignored. Of a class without a pixel in the ground truth
    they are ``nan``, and averages leave it out.

    * ``mIoU``, ``IoU-{class}``: intersection over union; ``fwIoU``: its average weighted by the frequency of classes.
    * ``mACC``, ``ACC-{class}``: share of the pixels of a class that are found; ``pACC``: of all pixels.
    * ``BoundaryIoU-{class}``: IoU of the pixels within 2 % of the diagonal from the boundary of the class
      (https://arxiv.org/abs/2103.16562); ``min(IoU, B-Iou)-{class}``: the lower of both.

    Args:
        dataset_name: of a registered dataset whose samples have ``file_name`` and ``sem_seg_file_name``, or panoptic
            segments with a ``sem_seg_label``. Its metadata must have ``stuff_classes``; ``ignore_label`` and
            ``stuff_dataset_id_to_contiguous_id`` are optional.
        distributed: add up the pixels of all processes; otherwise each evaluates its own.
        output_dir: where to write ``sem_seg_predictions.json`` (run-length codes in COCO's form) and
            ``sem_seg_evaluation.pth``; otherwise nothing is written.
        sem_seg_loading_fn: reads a label map; takes the file name and ``dtype``.
        num_classes: deprecated; it is the length of ``stuff_classes``.
        ignore_label: deprecated; it is read from the metadata.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
        num_classes: int | None = None,
        ignore_label: int | None = None,
    ) -> None:
        samples = DatasetCatalog.get(dataset_name)  # Some datasets know their classes only then.
        metadata = MetadataCatalog.get(dataset_name)
        for name, value in (("num_classes", num_classes), ("ignore_label", ignore_label)):
            if value is not None:
                warnings.warn(f"{name} of SemSegEvaluator is deprecated; set it in the metadata", DeprecationWarning, 2)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._class_names = _class_names(dataset_name, num_classes)
        self._num_classes = len(self._class_names)
        self._ignore_label = metadata.get("ignore_label") if ignore_label is None else ignore_label
        contiguous_ids = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        self._dataset_ids = {contiguous: original for original, contiguous in contiguous_ids.items()}
        self.input_file_to_gt_file = {
            sample["file_name"]: sample["sem_seg_file_name"] for sample in samples if "sem_seg_file_name" in sample
        }
        self._panoptic_samples = {
            sample["file_name"]: sample for sample in samples if sample["file_name"] not in self.input_file_to_gt_file
        }
        self.sem_seg_loading_fn = sem_seg_loading_fn
        self.reset()

    def reset(self) -> None:
        size = (self._num_classes + 1, self._num_classes + 1)
        self._confusion = np.zeros(size, dtype=np.int64)
        self._boundary_confusion = np.zeros(size, dtype=np.int64)
        self._num_images = self._num_predicted = 0
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of each image.

        Args:
            inputs: each with a ``file_name`` of the dataset.
            outputs: each with ``sem_seg`` (N, H, W) on the scale of the label map.
        """
        for image, output in zip(inputs, outputs, strict=True):
            self._num_images += 1
            if "sem_seg" not in output:
                continue
            predicted = output["sem_seg"].argmax(dim=0).cpu().numpy()  # (H, W)
            self._count(predicted, self._load_labels(image["file_name"]), image["file_name"])
            self._num_predicted += 1
            if self._output_dir:
                self._predictions.extend(self.encode_json_sem_seg(predicted, image["file_name"]))

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics.

        Returns:
            ``{"sem_seg": {"mIoU": ..., ...}}``; ``None`` in processes other than the main one, and when the model
            returns no ``sem_seg``.
        """
        share = (self._confusion, self._boundary_confusion, self._predictions) if self._num_predicted else None
        shares = [share] if self._num_images else []
        gathered = gather_predictions(shares, self._dataset_name, self._distributed, field="sem_seg")
        if gathered is None:
            return None
        confusions, boundary_confusions, predictions = zip(*gathered, strict=True)
        if self._output_dir:
            write_json(list(itertools.chain(*predictions)), self._output_dir, "sem_seg_predictions.json")
        metrics = self._metrics(sum(confusions), sum(boundary_confusions))
        if self._output_dir:
            save_predictions(metrics, self._output_dir, "sem_seg_evaluation.pth")
        return OrderedDict(sem_seg=metrics)

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict[str, Any]]:
        """Return the mask of each class that occurs in a label map (H, W), as run-length code."""
        from pycocotools import mask as mask_api

        rows = []
        for label in np.unique(sem_seg).tolist():
            if self._dataset_ids and label not in self._dataset_ids:
                raise DatasetError(
                    f"the model predicted class {label} on {input_file_name}, which stuff_dataset_id_to_contiguous_id "
                    f"of {self._dataset_name!r} does not know; set the model's NUM_CLASSES to {self._num_classes}"
                )
            code = mask_api.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            code["counts"] = code["counts"].decode("ascii")
            category = self._dataset_ids.get(label, label)
            rows.append({"file_name": input_file_name, "category_id": category, "segmentation": code})
        return rows

    def _load_labels(self, file_name: str) -> np.ndarray:
        """The label map (H, W) of an image, in which pixels to ignore are N."""
        path = self.input_file_to_gt_file.get(file_name)
        if path is not None:
            labels = self.sem_seg_loading_fn(path, dtype=np.int64)
        else:
            sample = self._panoptic_samples.get(file_name, {})
            path, labels = sample.get("pan_seg_file_name"), semantic_labels_of(sample)
        if labels is None:
            raise DatasetError(
                f"{file_name} has no label map in {self._dataset_name!r}; the evaluator needs samples with "
                "sem_seg_file_name. Was the model run on another dataset than the evaluator was made for?"
            )
        labels = labels.astype(np.int64)
        ignored = labels == self._ignore_label
        wrong = labels[~ignored & ((labels < 0) | (labels >= self._num_classes))]
        if wrong.size:
            raise DatasetError(
                f"{path} has the label {wrong[0]}, but {self._dataset_name!r} has {self._num_classes} classes and the "
                f"ignore_label {self._ignore_label}; set stuff_classes or ignore_label in its metadata"
            )
        return np.where(ignored, self._num_classes, labels)

    def _count(self, predicted: np.ndarray, labels: np.ndarray, file_name: str) -> None:
        if predicted.shape != labels.shape:
            raise DatasetError(
                f"the prediction for {file_name} is {predicted.shape} pixels large and its label map {labels.shape}; "
                "'height' and 'width' of the input must be those of the label map"
            )
        n = self._num_classes
        if predicted.max(initial=0) >= n:
            raise DatasetError(
                f"the model predicted class {predicted.max()}, but {self._dataset_name!r} has {n} classes; "
                "set MODEL.SEM_SEG_HEAD.NUM_CLASSES to their number"
            )
        valid = labels != n
        self._confusion += _confusion(predicted[valid], labels[valid], n)
        # Where the truth is unknown the prediction is too, so that both end there and neither gains from it.
        predicted = np.where(valid, predicted, n)
        thin_predicted = np.where(_near_boundary(predicted, n), predicted, n)
        thin_labels = np.where(_near_boundary(labels, n), labels, n)
        self._boundary_confusion += _confusion(thin_predicted[valid], thin_labels[valid], n)

    def _metrics(self, confusion: np.ndarray, boundary_confusion: np.ndarray) -> dict[str, float]:
        hits, num_gt = confusion.diagonal()[:-1], confusion.sum(axis=0)[:-1]  # (N,) each
        present = num_gt > 0
        accuracy = _ratio(hits, num_gt)
        iou = np.where(present, _iou(confusion), np.nan)
        boundary_iou = np.where(present, _iou(boundary_confusion), np.nan)
        summary = {
            "mIoU": _mean(iou[present]),
            "fwIoU": _mean(iou[present], num_gt[present]),
            "mACC": _mean(accuracy[present]),
            "pACC": float(100 * hits.sum() / num_gt.sum()) if present.any() else float("nan"),
        }
        columns = {
            "IoU": iou,
            "BoundaryIoU": boundary_iou,
            "min(IoU, B-Iou)": np.minimum(iou, boundary_iou),
            "ACC": accuracy,
        }
        logger.info("Semantic segmentation on %s:\n%s", self._dataset_name, metric_table(summary))
        rows = zip(self._class_names, (100 * np.stack(list(columns.values()), axis=1)).tolist(), strict=True)
        logger.info("Semantic segmentation per class:\n%s", rows_table(dict(rows), list(columns)))
        per_class = {
            f"{metric}-{name}": float(100 * value)
            for metric, values in columns.items()
            for name, value in zip(self._class_names, values, strict=True)
        }
        return {**summary, **per_class}


def _class_names(dataset_name: str, num_classes: int | None) -> list[str]:
    names = MetadataCatalog.get(dataset_name).get("stuff_classes")
    if names is None:
        raise DatasetError(
            f"{dataset_name!r} has no names of classes; set MetadataCatalog.get({dataset_name!r}).stuff_classes"
        )
    if num_classes not in (None, len(names)):
        raise ConfigError(f"num_classes is {num_classes}, but {dataset_name!r} has {len(names)} stuff_classes")
    return list(names)


def _confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pairs of (predicted, label), each in 0 to N."""
    size = num_classes + 1
    return np.bincount((size * predicted + labels).ravel(), minlength=size**2).reshape(size, size)


def _near_boundary(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Whether a pixel (H, W) has another label, or the end of the image, within the width of a boundary.

    Lowest and highest label around a pixel differ from its own in the same places as the eroded mask of its class
    differs from the mask; so one pass serves all classes.
    """
    distance = max(1, round(BOUNDARY_RATIO * float(np.hypot(*labels.shape))))
    outside = num_classes + 1
    padded = np.pad(labels, 1, constant_values=outside).astype(np.uint16 if outside < 2**16 else np.float32)
    kernel = np.ones((3, 3), dtype=np.uint8)
    lowest = cv2.erode(padded, kernel, iterations=distance)[1:-1, 1:-1]
    highest = cv2.dilate(padded, kernel, iterations=distance)[1:-1, 1:-1]
    return (lowest != labels) | (highest != labels)


def _iou(confusion: np.ndarray) -> np.ndarray:
    hits = confusion.diagonal()
    return _ratio(hits, confusion.sum(axis=0) + confusion.sum(axis=1) - hits)[:-1]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    result = np.full(len(numerator), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > 0)


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    return float(100 * np.average(values, weights=weights)) if values.size else float("nan")
