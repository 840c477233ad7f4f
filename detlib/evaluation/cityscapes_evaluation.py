"""Instances and label maps measured as the Cityscapes benchmark does."""

import logging
import os
from collections import OrderedDict
from typing import Any

import numpy as np
from PIL import Image

from detlib.data import MetadataCatalog
from detlib.evaluation.cityscapes_api import (
    CATEGORIES,
    LABELS,
    MEAN_SIZES,
    THRESHOLDS,
    ImageInstances,
    LabelCounts,
    average_precision,
    compare_instances,
    compare_labels,
)
from detlib.evaluation.evaluator import DatasetEvaluator
from detlib.evaluation.predictions import gather_predictions
from detlib.evaluation.tables import class_table, metric_table, rows_table
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["CityscapesEvaluator", "CityscapesInstanceEvaluator", "CityscapesSemSegEvaluator"]

logger = logging.getLogger(__name__)

SUFFIX_OF_IMAGES, SUFFIX_OF_LABELS = "_leftImg8bit.png", "_gtFine_instanceIds.png"


class CityscapesEvaluator(DatasetEvaluator):
    """What both Cityscapes evaluators share: names of classes, and where the ground truth of an image is.

    Args:
        dataset_name: of a registered dataset with ``gt_dir`` in its metadata, which has a folder of
            ``*_gtFine_instanceIds.png`` for each city.
    """

    names_key: str  # Where the metadata has the names of the model's classes.

    def __init__(self, dataset_name: str) -> None:
        self._dataset_name = dataset_name
        metadata = MetadataCatalog.get(dataset_name)
        missing = [key for key in ("gt_dir", self.names_key) if metadata.get(key) is None]
        if missing:
            raise DatasetError(f"{dataset_name!r} lacks {', '.join(missing)} in its metadata; set it")
        self._gt_dir = metadata.gt_dir
        self._class_names = list(metadata.get(self.names_key))
        unknown = [name for name in self._class_names if name not in LABELS]
        if unknown:
            raise DatasetError(
                f"{self.names_key} of {dataset_name!r} has {unknown[0]!r}, which is no class of the benchmark; "
                f"known are {', '.join(LABELS)}"
            )
        self.reset()

    def _load_instance_ids(self, file_name: str) -> np.ndarray:
        """Ground truth (H, W) of an image."""
        name = os.path.basename(file_name)
        if not name.endswith(SUFFIX_OF_IMAGES):
            raise DatasetError(f"{file_name} is no image of Cityscapes: its name does not end with {SUFFIX_OF_IMAGES}")
        city = name.split("_")[0]
        path = os.path.join(self._gt_dir, city, name.removesuffix(SUFFIX_OF_IMAGES) + SUFFIX_OF_LABELS)
        if not PathManager.isfile(path):
            raise MissingFileError(f"{path}, the ground truth of {name}, does not exist; check gt_dir in the metadata")
        with PathManager.open(path, "rb") as file:
            return np.array(Image.open(file), dtype=np.int64)

    def _check(self, classes: np.ndarray, size: tuple[int, ...], gt_size: tuple[int, ...], file_name: str) -> None:
        if classes.max(initial=0) >= len(self._class_names):
            raise DatasetError(
                f"The model predicted class {classes.max()}, but {self._dataset_name!r} has {len(self._class_names)} "
                "classes; set the model's NUM_CLASSES to their number"
            )
        if size != gt_size:
            raise DatasetError(
                f"the prediction for {file_name} is {size} pixels large and its ground truth {gt_size}; 'height' and "
                "'width' of the input must be those of the image file"
            )


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """Average precision of the masks in ``instances``, of which every one that is returned counts.

    Results are ``AP``, over the IoU thresholds 0.5, 0.55, ..., 0.95, ``AP50``, and both per class, in percent. Void and
    regions of several instances excuse what is found there. A class without instances is ``nan`` and left out.
    """

    names_key = "thing_classes"

    def reset(self) -> None:
        self._predictions: list[ImageInstances | None] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Measure the overlaps with the ground truth, and forget the masks.

        Args:
            inputs: each with the ``file_name`` of the image.
            outputs: each with ``instances`` on the scale of the image file, with ``pred_masks``.
        """
        ids = np.array([LABELS[name] for name in self._class_names])
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                self._predictions.append(None)
                continue
            gt = self._load_instance_ids(image["file_name"])
            instances = output["instances"].to("cpu")
            classes, scores = instances.pred_classes.numpy(), instances.scores.double().numpy()
            self._check(classes, instances.image_size, gt.shape, image["file_name"])
            masks = np.zeros((0, *gt.shape), dtype=bool)
            if len(instances):
                masks = np.asarray(instances.pred_masks, dtype=bool)
            self._predictions.append(compare_instances(masks, ids[classes], scores, gt))

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics.

        Returns:
            ``{"segm": {"AP": ..., "AP50": ..., "AP-person": ..., "AP50-person": ...}}``; ``None`` in processes other
            than the main one, and when the model returns no ``instances``.
        """
        images = gather_predictions(self._predictions, self._dataset_name, field="instances")
        if images is None:
            return None
        names = [name for name in self._class_names if name in MEAN_SIZES]  # Of some datasets, it lists stuff too.
        precision = 100 * np.stack([average_precision(images, LABELS[name]) for name in names])  # (K, T)
        at_50 = precision[:, np.isclose(THRESHOLDS, 0.5)].ravel()
        summary = {"AP": _mean(precision), "AP50": _mean(at_50)}
        rows = {name: [p.mean(), p50] for name, p, p50 in zip(names, precision, at_50, strict=True)}
        logger.info("Evaluation results for segm, Cityscapes metric:\n%s", metric_table(summary))
        logger.info("segm AP per class:\n%s", rows_table(rows, ["AP", "AP50"]))
        per_class = {
            f"{metric}-{name}": float(row[i]) for i, metric in enumerate(("AP", "AP50")) for name, row in rows.items()
        }
        return OrderedDict(segm={**summary, **per_class})


class CityscapesSemSegEvaluator(CityscapesEvaluator):
    """Intersection over union of ``sem_seg``, the scores (K, H, W) that a model gives each pixel.

    Results, in percent, are averages: ``IoU`` over classes, ``IoU_sup`` over categories, ``iIoU`` and ``iIoU_sup`` the
    same over those with instances, each instance with the same weight; and ``IoU-{class}``.
    """

    names_key = "stuff_classes"

    def reset(self) -> None:
        self._counts = LabelCounts.zeros()
        self._num_images = self._num_predicted = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of each image.

        Args:
            inputs: each with the ``file_name`` of the image.
            outputs: each with ``sem_seg`` (K, H, W) on the scale of the image file.
        """
        order = list(LABELS)
        index = np.array([order.index(name) for name in self._class_names])
        for image, output in zip(inputs, outputs, strict=True):
            self._num_images += 1
            if "sem_seg" not in output:
                continue
            gt = self._load_instance_ids(image["file_name"])
            predicted = output["sem_seg"].argmax(dim=0).cpu().numpy()  # (H, W)
            self._check(predicted, predicted.shape, gt.shape, image["file_name"])
            self._counts += compare_labels(index[predicted], gt)
            self._num_predicted += 1

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics.

        Returns:
            ``{"sem_seg": {"IoU": ..., "iIoU": ..., "IoU_sup": ..., "iIoU_sup": ..., "IoU-road": ...}}``; ``None`` in
            processes other than the main one, and when the model returns no ``sem_seg``.
        """
        share = self._counts if self._num_predicted else None
        shares = gather_predictions([share] if self._num_images else [], self._dataset_name, field="sem_seg")
        if shares is None:
            return None
        counts = sum(shares, LabelCounts.zeros())
        iou, category_iou = 100 * counts.class_iou(), 100 * counts.category_iou()
        summary = {
            "IoU": _mean(iou),
            "iIoU": _mean(100 * counts.class_instance_iou()),
            "IoU_sup": _mean(category_iou),
            "iIoU_sup": _mean(100 * counts.category_instance_iou()),
        }
        per_class = dict(zip(LABELS, iou.tolist(), strict=True))
        logger.info("Evaluation results for sem_seg, Cityscapes metric:\n%s", metric_table(summary))
        logger.info("IoU per class:\n%s", class_table(per_class, "IoU"))
        logger.info("IoU per category:\n%s", class_table(dict(zip(CATEGORIES, category_iou.tolist())), "IoU"))
        return OrderedDict(sem_seg={**summary, **{f"IoU-{name}": per_class[name] for name in self._class_names}})


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
