"""Panoptic quality, "Panoptic Segmentation" (https://arxiv.org/abs/1801.00868), sec. 4.

Shapes: H x W pixels, G segments of the ground truth and P predicted ones in an image, K categories.
"""

import functools
import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from detlib.data import MetadataCatalog
from detlib.data.datasets.json_files import read_json
from detlib.data.datasets.paths import Folder
from detlib.data.label_maps import read_segment_ids
from detlib.evaluation.evaluator import DatasetEvaluator
from detlib.evaluation.predictions import gather_predictions, write_json
from detlib.evaluation.tables import rows_table
from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["COCOPanopticEvaluator", "SegmentMatches", "match_segments"]

logger = logging.getLogger(__name__)

VOID = 0  # Segment id of pixels without a label.


@dataclass
class SegmentMatches:
    """What the segments of one image, or of many, add up to; each field is an array (K,)."""

    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    iou: np.ndarray  # Sum over the true positives.

    @classmethod
    def zeros(cls, num_categories: int) -> "SegmentMatches":
        """Of no segment."""
        counts = (np.zeros(num_categories, dtype=np.int64) for _ in range(3))
        return cls(*counts, np.zeros(num_categories))

    def __add__(self, other: "SegmentMatches") -> "SegmentMatches":
        return SegmentMatches(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def qualities(self) -> np.ndarray:
        """PQ, SQ and RQ of each category (3, K); ``nan`` where there is no segment."""
        tp = self.true_positives
        size = tp + 0.5 * self.false_positives + 0.5 * self.false_negatives
        seen = size > 0
        recognition = np.divide(tp, size, out=np.full(len(tp), np.nan), where=seen)
        segmentation = np.divide(self.iou, tp, out=np.where(seen, 0.0, np.nan), where=tp > 0)
        return np.stack([segmentation * recognition, segmentation, recognition])


class COCOPanopticEvaluator(DatasetEvaluator):
    """Panoptic quality of ``panoptic_seg``, computed while predictions come in, so that none is kept.

    Results are ``PQ``, ``SQ`` and ``RQ``, the same with ``_th`` for things and ``_st`` for stuff, and
    ``PQ-{category}``, in percent. Averages are over categories that occur in the ground truth or in predictions.

    Args:
        dataset_name: of a registered dataset with ``panoptic_json`` and ``panoptic_root`` in its metadata.
        output_dir: where to write ``predictions.json`` and, in the folder ``predictions``, a PNG per image, in COCO's
            panoptic format; otherwise nothing is written.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._output_dir = output_dir
        panoptic_json = self._metadata.get("panoptic_json")
        content = _read_panoptic_json(dataset_name, panoptic_json)
        self._panoptic_json = panoptic_json
        self._categories = content["categories"]
        self._index_of_category = {category["id"]: i for i, category in enumerate(self._categories)}
        self._annotations = {annotation["image_id"]: annotation for annotation in content.get("annotations", ())}
        self.reset()

    @functools.cached_property
    def _label_maps(self) -> Folder:
        allow_outside = self._metadata.get("allow_outside", False)
        return Folder(self._metadata.panoptic_root, self._panoptic_json, allow_outside, "panoptic_root")

    def reset(self) -> None:
        self._matches = SegmentMatches.zeros(len(self._categories))
        self._num_images = self._num_predicted = 0
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Compare each image with the ground truth.

        Args:
            inputs: each with ``image_id`` and ``file_name``.
            outputs: each with ``panoptic_seg``: a map of segment ids (H, W), and a dict for each segment with ``id``,
                ``category_id`` and ``isthing``. Without ``isthing``, the category is one of the dataset's. The list
                may be ``None``; ids are ``category_id * label_divisor + number`` then, and -1 where there is none.
        """
        # Some datasets know their classes only when they have been loaded, which is the case here.
        self._dataset_ids = {
            kind: {contiguous: original for original, contiguous in self._metadata.get(key, {}).items()}
            for kind, key in ((True, "thing_dataset_id_to_contiguous_id"), (False, "stuff_dataset_id_to_contiguous_id"))
        }
        for image, output in zip(inputs, outputs, strict=True):
            self._num_images += 1
            if "panoptic_seg" not in output:
                continue
            segment_map, segments = output["panoptic_seg"]
            ids = segment_map.cpu().numpy().astype(np.int64)  # (H, W)
            if segments is None:
                ids, segments = self._segments_of_ids(ids)
            segments = [self._with_dataset_category(segment) for segment in segments]
            self._matches += self._match(image["image_id"], ids, segments)
            self._num_predicted += 1
            if self._output_dir:
                self._predictions.append(self._save(image, ids, segments))

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics.

        Returns:
            ``{"panoptic_seg": {"PQ": ..., ...}}``; ``None`` in processes other than the main one, and when the model
            returns no ``panoptic_seg``, as a PanopticFPN without ``MODEL.PANOPTIC_FPN.COMBINE.ENABLED``.
        """
        share = (self._matches, self._predictions) if self._num_predicted else None
        shares = [share] if self._num_images else []
        gathered = gather_predictions(shares, self._dataset_name, field="panoptic_seg")
        if gathered is None:
            return None
        matches, predictions = zip(*gathered, strict=True)
        if self._output_dir:
            content = {"annotations": list(itertools.chain(*predictions)), "categories": self._categories}
            write_json(content, self._output_dir, "predictions.json")
        return OrderedDict(panoptic_seg=self._metrics(sum(matches, SegmentMatches.zeros(len(self._categories)))))

    def _segments_of_ids(self, ids: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        divisor = self._metadata.get("label_divisor")
        if divisor is None:
            raise DatasetError(
                f"the model returns no list of segments, and {self._dataset_name!r} has no label_divisor in its "
                "metadata to tell categories from ids; set it"
            )
        things = self._dataset_ids[True]
        segments = [
            {"id": i + 1, "category_id": i // divisor, "isthing": i // divisor in things}
            for i in np.unique(ids).tolist()
            if i != -1
        ]
        return ids + 1, segments  # 0 is void from here on.

    def _with_dataset_category(self, segment: dict[str, Any]) -> dict[str, Any]:
        category, is_thing = segment["category_id"], segment.get("isthing")
        if is_thing is not None:
            category = self._dataset_ids[bool(is_thing)].get(category)
        if category not in self._index_of_category:
            kind = {None: "", True: "thing ", False: "stuff "}[None if is_thing is None else bool(is_thing)]
            raise DatasetError(
                f"the model predicted {kind}category {segment['category_id']}, which {self._dataset_name!r} does not "
                "have; set the model's NUM_CLASSES to the number of its classes, and load weights trained with them"
            )
        return {"id": int(segment["id"]), "category_id": int(category)}

    def _match(self, image_id: Any, ids: np.ndarray, segments: Sequence[dict[str, Any]]) -> SegmentMatches:
        if image_id not in self._annotations:
            raise DatasetError(
                f"image_id {image_id!r} is not in {self._metadata.panoptic_json}. Was the model run on another dataset "
                "than the evaluator was made for?"
            )
        annotation = self._annotations[image_id]
        path = self._label_maps.join(annotation["file_name"], f"image {image_id!r}")
        gt_ids = read_segment_ids(path)
        if gt_ids.shape != ids.shape:
            raise DatasetError(
                f"the prediction for image {image_id!r} is {ids.shape} pixels large and {path} {gt_ids.shape}; "
                "'height' and 'width' of the input must be those of the image file"
            )
        gt_segments = [s for s in annotation["segments_info"] if s["category_id"] in self._index_of_category]
        return match_segments(gt_ids, gt_segments, ids, segments, self._index_of_category)

    def _save(self, image: dict[str, Any], ids: np.ndarray, segments: list[dict[str, Any]]) -> dict[str, Any]:
        """Write the map of one image and return its entry in ``predictions.json``."""
        name = os.path.splitext(os.path.basename(image["file_name"]))[0] + ".png"
        folder = os.path.join(self._output_dir, "predictions")
        PathManager.mkdirs(folder)
        channels = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=2).astype(np.uint8)
        with PathManager.open(os.path.join(folder, name), "wb") as file:
            Image.fromarray(channels).save(file, format="PNG")
        return {"image_id": image["image_id"], "file_name": name, "segments_info": segments}

    def _metrics(self, matches: SegmentMatches) -> dict[str, float]:
        qualities = 100 * matches.qualities()  # (3, K)
        is_thing = np.array([bool(category["isthing"]) for category in self._categories], dtype=bool)
        groups = {"": np.ones_like(is_thing), "_th": is_thing, "_st": ~is_thing}
        results = {
            f"{metric}{suffix}": _mean_of_known(qualities[row, members])
            for suffix, members in groups.items()
            for row, metric in enumerate(("PQ", "SQ", "RQ"))
        }
        rows = {
            kind: [
                *(results[f"{metric}{suffix}"] for metric in ("PQ", "SQ", "RQ")),
                _num_known(qualities, groups[suffix]),
            ]
            for kind, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
        }
        logger.info("Panoptic quality:\n%s", rows_table(rows, ["PQ", "SQ", "RQ", "#categories"]))
        names = [category.get("name", str(category["id"])) for category in self._categories]
        per_category = dict(zip(names, qualities.T.tolist(), strict=True))
        logger.info("Panoptic quality per category:\n%s", rows_table(per_category, ["PQ", "SQ", "RQ"]))
        return {**results, **{f"PQ-{name}": values[0] for name, values in per_category.items()}}


def match_segments(
    gt_ids: np.ndarray,
    gt_segments: Sequence[dict[str, Any]],
    ids: np.ndarray,
    segments: Sequence[dict[str, Any]],
    index_of_category: dict[int, int],
) -> SegmentMatches:
    """Match the segments of one image: those of one category whose IoU is above 0.5, of which there is one at most.

    Void pixels do not count in the union, and a segment that is void, or a crowd of its category, for more than its
    half is no false positive. A crowd is never missed (sec. 4.1 and 4.2).

    Args:
        gt_ids: map of segment ids (H, W). Ids that are not described are void.
        gt_segments: dicts with ``id``, ``category_id`` and optional ``iscrowd``.
        ids: predicted map of segment ids (H, W).
        segments: dicts with ``id`` and ``category_id``; those without a pixel are left out.
        index_of_category: ``category_id`` -> place in the results.

    Raises:
        DatasetError: a predicted pixel has an id that is neither 0 nor described.
    """
    overlap = _overlaps(gt_ids, [s["id"] for s in gt_segments], ids, [s["id"] for s in segments])  # (1 + G, 1 + P)
    gt_category = np.array([index_of_category[s["category_id"]] for s in gt_segments], dtype=np.int64)  # (G,)
    category = np.array([index_of_category[s["category_id"]] for s in segments], dtype=np.int64)  # (P,)
    is_crowd = np.array([bool(s.get("iscrowd", 0)) for s in gt_segments], dtype=bool)  # (G,)
    gt_area, area = overlap.sum(axis=1)[1:], overlap.sum(axis=0)[1:]
    on_void, shared = overlap[0, 1:], overlap[1:, 1:]  # (P,) and (G, P)

    same = gt_category[:, None] == category[None, :]
    union = gt_area[:, None] + area[None, :] - shared - on_void[None, :]
    iou = np.where(same & ~is_crowd[:, None], shared / np.maximum(union, 1), 0.0)
    gt_matched, matched = (iou > 0.5).any(axis=1), (iou > 0.5).any(axis=0)
    excusable = on_void + (shared * (same & is_crowd[:, None])).sum(axis=0)
    false_positive = ~matched & (area > 0) & (excusable <= 0.5 * area)
    false_negative = ~gt_matched & ~is_crowd & (gt_area > 0)

    def count(members: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(members, weights, minlength=len(index_of_category))

    return SegmentMatches(
        true_positives=count(category[matched]),
        false_positives=count(category[false_positive]),
        false_negatives=count(gt_category[false_negative]),
        iou=count(category[matched], iou.max(axis=0, initial=0.0)[matched]),
    )


def _overlaps(gt_ids: np.ndarray, known_gt: list[int], ids: np.ndarray, known: list[int]) -> np.ndarray:
    """Number of pixels that each pair of segments shares, (1 + G, 1 + P); row and column 0 are void."""
    gt_values, gt_places = np.unique(gt_ids, return_inverse=True)
    values, places = np.unique(ids, return_inverse=True)
    gt_row = {segment_id: row for row, segment_id in enumerate(known_gt, start=1)}
    column = {segment_id: row for row, segment_id in enumerate(known, start=1)}
    column.setdefault(VOID, 0)
    unknown = [value for value in values.tolist() if value not in column]
    if unknown:
        raise DatasetError(
            f"the predicted map has the segment id {unknown[0]}, which is not among its segments "
            f"{sorted(known)[:10]}; give each id an entry in the list, or set its pixels to 0"
        )
    rows = np.array([gt_row.get(value, 0) for value in gt_values.tolist()])[gt_places.ravel()]
    columns = np.array([column[value] for value in values.tolist()])[places.ravel()]
    width = len(known) + 1
    counts = np.bincount(rows * width + columns, minlength=(len(known_gt) + 1) * width)
    return counts.reshape(len(known_gt) + 1, width)


def _read_panoptic_json(dataset_name: str, path: str | None) -> dict[str, Any]:
    if path is None:
        raise DatasetError(f"{dataset_name!r} has no panoptic_json in its metadata; register it with it")
    if not PathManager.isfile(path):
        raise MissingFileError(f"panoptic annotation file {path!r} of {dataset_name!r} does not exist; check the path")
    content = read_json(path)
    if not isinstance(content, dict) or "categories" not in content:
        raise DatasetError(f"{path} has no 'categories' with id and isthing, which panoptic quality needs")
    return content


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _num_known(qualities: np.ndarray, members: np.ndarray) -> int:
    return int((~np.isnan(qualities[0]) & members).sum())
