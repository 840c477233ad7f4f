"""Average precision as Pascal VOC defines it, of 2007 and of 2010 to 2012 (development kit, sec. 3.4).

Boxes are VOC's here: x and y from 1, and the last pixel belongs to the box. Shapes: D detections of a class by falling
score, G objects of the class in all images.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detlib.data import MetadataCatalog
from detlib.data.datasets.pascal_voc import read_xml
from detlib.evaluation.evaluator import DatasetEvaluator
from detlib.evaluation.predictions import gather_predictions
from detlib.evaluation.tables import metric_table, rows_table
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["PascalVOCDetectionEvaluator", "parse_rec", "voc_ap", "voc_eval"]

logger = logging.getLogger(__name__)

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))

Record = list[dict[str, Any]]


class PascalVOCDetectionEvaluator(DatasetEvaluator):
    """Average precision of boxes by VOC's own rules: pixels at both ends belong to a box, difficult objects are free.

    Results are ``AP``, over the IoU thresholds 0.5, 0.55, ..., 0.95, ``AP50``, which is VOC's number, ``AP75``, and
    ``AP-{class}``, in percent. Datasets of the year 2007 are measured at 11 recalls, others by the area under the
    curve. A class without objects is ``nan`` and left out of averages. Scores and boxes are not rounded.

    Args:
        dataset_name: of a registered dataset with ``dirname``, ``split``, ``year`` and ``thing_classes`` in its
            metadata. All images of the split count, also those without predictions.
    """

    def __init__(self, dataset_name: str) -> None:
        self._dataset_name = dataset_name
        metadata = MetadataCatalog.get(dataset_name)
        missing = [key for key in ("dirname", "split", "year", "thing_classes") if metadata.get(key) is None]
        if missing:
            raise DatasetError(
                f"{dataset_name!r} lacks {', '.join(missing)} in its metadata; register it with register_pascal_voc"
            )
        self._annotations = os.path.join(metadata.dirname, "Annotations", "{}.xml")
        self._image_set = os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
        self._class_names = list(metadata.thing_classes)
        self._use_07_metric = int(metadata.year) == 2007
        self.reset()

    def reset(self) -> None:
        self._predictions: list[tuple[str, np.ndarray, np.ndarray, np.ndarray] | None] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the boxes of each image.

        Args:
            inputs: each with an ``image_id``, the name of its file without the ending.
            outputs: each with ``instances`` on the scale of the image file.
        """
        for image, output in zip(inputs, outputs, strict=True):
            if "instances" not in output:
                self._predictions.append(None)
                continue
            instances = output["instances"].to("cpu")
            boxes = instances.pred_boxes.tensor.double().numpy() + np.array([1, 1, 0, 0])  # (N, 4)
            scores, classes = instances.scores.double().numpy(), instances.pred_classes.numpy()
            self._predictions.append((str(image["image_id"]), boxes, scores, classes))

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics.

        Returns:
            ``{"bbox": {"AP": ..., "AP50": ..., "AP75": ..., "AP-{class}": ...}}``; ``None`` in processes other than
            the main one, and when the model returns no ``instances``.
        """
        predictions = gather_predictions(self._predictions, self._dataset_name, field="instances")
        if predictions is None:
            return None
        image_ids = np.array([image_id for image_id, *_ in predictions])
        image_of = np.repeat(image_ids, [len(scores) for _, _, scores, _ in predictions])
        boxes, scores, classes = (np.concatenate(column) for column in list(zip(*predictions, strict=True))[1:])
        if classes.size and classes.max() >= len(self._class_names):
            raise DatasetError(
                f"The model predicted class {classes.max()}, but {self._dataset_name!r} has {len(self._class_names)} "
                "classes; set the model's NUM_CLASSES to their number"
            )
        records = {image_id: parse_rec(self._annotations.format(image_id)) for image_id in _lines(self._image_set)}
        precisions = np.full((len(self._class_names), len(THRESHOLDS)), np.nan)
        for index, name in enumerate(self._class_names):
            chosen = classes == index
            matches = _match(image_of[chosen], boxes[chosen], scores[chosen], _Objects.of_class(records, name))
            precisions[index] = [voc_ap(*matches.curve(t), self._use_07_metric) for t in THRESHOLDS]
        return OrderedDict(bbox=self._results(100 * precisions))

    def _results(self, precisions: np.ndarray) -> dict[str, float]:
        """From percents (K classes, T thresholds)."""
        known = precisions[~np.isnan(precisions[:, 0])]
        means = known.mean(axis=0) if len(known) else np.full(len(THRESHOLDS), np.nan)
        at_50, at_75 = THRESHOLDS.index(0.5), THRESHOLDS.index(0.75)
        summary = {"AP": float(means.mean()), "AP50": float(means[at_50]), "AP75": float(means[at_75])}
        rows = {
            name: [row.mean(), row[at_50], row[at_75]] for name, row in zip(self._class_names, precisions, strict=True)
        }
        logger.info(
            "Evaluation results for bbox, VOC %s metric:\n%s",
            "2007" if self._use_07_metric else "2012",
            metric_table(summary),
        )
        logger.info("bbox AP per class:\n%s", rows_table(rows, ["AP", "AP50", "AP75"]))
        return {**summary, **{f"AP-{name}": float(row[0]) for name, row in rows.items()}}


def voc_ap(rec: np.ndarray, prec: np.ndarray, use_07_metric: bool = False) -> float:
    """Average precision from a curve.

    Args:
        rec: rising recalls (D,).
        prec: precision at each of them (D,).
        use_07_metric: mean of the best precision at a recall of at least 0, 0.1, ..., 1; otherwise the area under the
            curve, after each precision is raised to the best at the same or a higher recall.
    """
    rec, prec = np.asarray(rec, dtype=np.float64), np.asarray(prec, dtype=np.float64)
    if np.isnan(rec).any():
        return float("nan")
    # best[i] is the highest precision from point i on; past the end it is 0.
    best = np.append(np.maximum.accumulate(prec[::-1])[::-1], 0.0)
    if use_07_metric:
        return float(best[np.searchsorted(rec, np.arange(0.0, 1.1, 0.1), side="left")].mean())
    return float((np.diff(rec, prepend=0.0) * best[:-1]).sum())


def voc_eval(
    detpath: str,
    annopath: str,
    imagesetfile: str,
    classname: str,
    ovthresh: float = 0.5,
    use_07_metric: bool = False,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Evaluate files in VOC's format.

    Args:
        detpath: path of the detections with ``{}`` for the class; lines of image, score, x0, y0, x1, y1.
        annopath: path of the annotations with ``{}`` for the image.
        imagesetfile: path of the list of images.
        classname: class to evaluate.
        ovthresh: IoU that a detection has to exceed.
        use_07_metric: see :func:`voc_ap`.

    Returns:
        recall (D,), precision (D,), average precision.
    """
    records = {image_id: parse_rec(annopath.format(image_id)) for image_id in _lines(imagesetfile)}
    rows = [line.split() for line in _lines(detpath.format(classname))]
    numbers = np.array([row[1:] for row in rows], dtype=np.float64).reshape(-1, 5)
    image_ids = np.array([row[0] for row in rows], dtype=str)
    matches = _match(image_ids, numbers[:, 1:], numbers[:, 0], _Objects.of_class(records, classname))
    rec, prec = matches.curve(ovthresh)
    return rec, prec, voc_ap(rec, prec, use_07_metric)


def parse_rec(filename: str) -> Record:
    """Read the objects of an annotation file: ``name``, ``pose``, ``truncated``, ``difficult``, ``bbox`` (four int).

    Raises:
        MissingFileError: there is no such file.
        DatasetError: it is no VOC annotation, or it defines a document type, which could hold harmful entities.
    """
    root = read_xml(filename)
    try:
        return [
            {
                "name": element.findtext("name"),
                "pose": element.findtext("pose", "Unspecified"),
                "truncated": int(element.findtext("truncated", "0")),
                "difficult": int(element.findtext("difficult", "0")),
                "bbox": [
                    int(float(element.find("bndbox").findtext(side))) for side in ("xmin", "ymin", "xmax", "ymax")
                ],
            }
            for element in root.iter("object")
        ]
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(f"{filename} is not an annotation of Pascal VOC: {error}") from error


@dataclass
class _Objects:
    """The objects of one class: boxes and whether they are difficult, image after image."""

    boxes: np.ndarray  # (G, 4)
    difficult: np.ndarray  # (G,)
    rows_of: dict[str, slice]  # Image -> its objects.

    @classmethod
    def of_class(cls, records: Mapping[str, Record], name: str) -> "_Objects":
        chosen, rows_of = [], {}
        for image_id, record in records.items():
            start = len(chosen)
            chosen += [thing for thing in record if thing["name"] == name]
            rows_of[image_id] = slice(start, len(chosen))
        boxes = np.array([thing["bbox"] for thing in chosen], dtype=np.float64).reshape(-1, 4)
        return cls(boxes, np.array([thing["difficult"] for thing in chosen], dtype=bool), rows_of)


@dataclass
class _Matches:
    """The object each detection overlaps most, -1 if the image has none, and the IoU with it; best scores first."""

    iou: np.ndarray  # (D,)
    nearest: np.ndarray  # (D,)
    difficult: np.ndarray  # (G,)

    def curve(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Recall (D,), ``nan`` without an object to find, and precision (D,)."""
        overlaps = self.iou > threshold
        free = np.append(self.difficult, False)[self.nearest] & overlaps
        claims = np.flatnonzero(overlaps & ~free)
        _, first = np.unique(self.nearest[claims], return_index=True)  # Whoever comes later is a duplicate.
        hit = np.zeros(len(self.iou), dtype=bool)
        hit[claims[first]] = True
        hits, errors = np.cumsum(hit), np.cumsum(~hit & ~free)
        num_objects = int((~self.difficult).sum())
        precision = hits / np.maximum(hits + errors, 1)
        if num_objects == 0:  # One point at least, so that the average precision is nan and not 0.
            return np.full(max(1, len(hits)), np.nan), np.resize(precision, max(1, len(hits)))
        return hits / num_objects, precision


def _match(image_ids: np.ndarray, boxes: np.ndarray, scores: np.ndarray, objects: _Objects) -> _Matches:
    """Find the nearest object of each of D detections (D,), (D, 4), (D,)."""
    unknown = set(image_ids.tolist()) - objects.rows_of.keys()
    if unknown:
        raise DatasetError(
            f"there are predictions for {len(unknown)} images that are not in the image set, such as {min(unknown)!r}. "
            "Was the model run on another dataset than the evaluator was made for?"
        )
    best_first = np.argsort(-scores, kind="stable")
    image_ids, boxes = image_ids[best_first], boxes[best_first]
    iou, nearest = np.zeros(len(boxes)), np.full(len(boxes), -1)
    by_image = np.argsort(image_ids, kind="stable")
    names, starts = np.unique(image_ids[by_image], return_index=True)
    for name, rows in zip(names.tolist(), np.split(by_image, starts[1:]), strict=False):
        place = objects.rows_of[name]
        if place.stop > place.start:
            pairs = _iou_of_pixels(boxes[rows], objects.boxes[place])
            iou[rows], nearest[rows] = pairs.max(axis=1), place.start + pairs.argmax(axis=1)
    return _Matches(iou, nearest, objects.difficult)


def _iou_of_pixels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (A, B) of boxes whose last pixel belongs to them."""

    def area(boxes: np.ndarray) -> np.ndarray:
        return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2] + 1, 0), axis=-1)

    corners = np.concatenate(
        [np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])], axis=2
    )
    shared = area(corners)
    return shared / (area(a)[:, None] + area(b)[None, :] - shared)


def _lines(path: str) -> Sequence[str]:
    if not PathManager.isfile(path):
        raise MissingFileError(f"{path} does not exist; check the dataset's folder")
    with PathManager.open(path) as file:
        return [line.strip() for line in file if line.strip()]
