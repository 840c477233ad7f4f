"""COCO's average precision for boxes, masks and keypoints, and average recall for proposals."""

import copy
import itertools
import logging
import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detlib.config import CfgNode
from detlib.data import MetadataCatalog
from detlib.data.datasets.coco import convert_to_coco_json
from detlib.evaluation.evaluator import DatasetEvaluator
from detlib.evaluation.predictions import (
    class_of_category,
    gather_predictions,
    save_predictions,
    to_dataset_categories,
    write_json,
)
from detlib.evaluation.proposal_recall import average_recalls, save_box_proposals
from detlib.evaluation.tables import class_table, metric_table
from detlib.evaluation.zero_ap import explain_zero_ap
from detlib.structures import BoxMode, Instances, RotatedBoxes
from detlib.utils.errors import ConfigError
from detlib.utils.file_io import PathManager

if TYPE_CHECKING:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from detlib.evaluation.coco_api import COCOevalMaxDets

__all__ = ["COCOEvaluator", "COCOevalMaxDets", "instances_to_coco_json"]

# In percent. Below the first one, mistakes in classes and boxes are looked for; below the other, there is something to
# say even if none is found.
LOW_AP50, ZERO_AP50 = 5.0, 0.1

METRICS = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl"),
}


class COCOEvaluator(DatasetEvaluator):
    """Average precision, over all classes and per class, of the ``instances`` that a model predicts.

    Of ``proposals``, where a model returns them, average recall is computed: the results of ``"box_proposals"``.

    Metrics are in percent, ``nan`` where undefined. Inputs need an ``image_id`` of the dataset, and boxes must be on
    the scale of the image file, as ``height`` and ``width`` of the input make them.

    Args:
        dataset_name: of a registered dataset. Without a ``json_file`` in its metadata, it is converted first.
        tasks: some of ``"bbox"``, ``"segm"`` and ``"keypoints"``; otherwise those that predictions have fields for.
        distributed: collect predictions from all processes; otherwise each evaluates its own.
        output_dir: where to write ``coco_instances_results.json`` (COCO's result format),
            ``instances_predictions.pth`` and, for proposals, ``box_proposals.pkl``, which trains Fast R-CNN; otherwise
            nothing is written.
        max_dets_per_image: highest scoring detections that count per image and class, 100 in COCO.
        use_fast_impl: compute with faster_coco_eval if it is installed. The numbers are the same.
        kpt_oks_sigmas: per keypoint, how far off it may be (cocodataset.org, keypoint evaluation); needed for
            keypoints other than COCO's 17.
        allow_cached_coco: reuse an earlier conversion of the dataset found in ``output_dir``.
    """

    _known_tasks = tuple(METRICS)
    _rotated = False

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        if isinstance(tasks, CfgNode):  # COCOEvaluator(name, cfg, ...) is how older projects call it.
            kpt_oks_sigmas = kpt_oks_sigmas or tasks.TEST.KEYPOINT_OKS_SIGMAS
            tasks = None
        self._logger = logging.getLogger(__name__)
        self._dataset_name = dataset_name
        self._tasks = _check_tasks(tasks, self._known_tasks)
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = max_dets_per_image or 100
        self._use_fast_impl = use_fast_impl
        self._kpt_oks_sigmas = kpt_oks_sigmas
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._coco_api = self._load_ground_truth(allow_cached_coco)
        self._do_evaluation = "annotations" in self._coco_api.dataset  # Test sets come without.
        self.reset()

    def reset(self) -> None:
        self._predictions: list[dict[str, Any]] = []
        self._results: dict[str, dict[str, float]] = OrderedDict()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Convert and keep the ``instances`` of each output, and its ``proposals``.

        Args:
            inputs: each with an ``image_id``.
            outputs: each with ``instances`` or ``proposals`` on the scale of the image file.
        """
        for image, output in zip(inputs, outputs, strict=True):
            prediction = {"image_id": image["image_id"]}
            if "instances" in output:
                instances = output["instances"].to(self._cpu_device)
                prediction["instances"] = self.instances_to_json(instances, image["image_id"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to(self._cpu_device)
            self._predictions.append(prediction)

    def instances_to_json(self, instances: Instances, img_id: Any) -> list[dict[str, Any]]:
        """Convert the detections on one image; subclasses may override it."""
        if instances.has("pred_boxes") and isinstance(instances.pred_boxes, RotatedBoxes):
            raise ConfigError(
                f"the model predicts rotated boxes, which {type(self).__name__} would not compare as such; "
                "use RotatedCOCOEvaluator"
            )
        return instances_to_coco_json(instances, img_id)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Compute the metrics.

        Args:
            img_ids: evaluate on these images only.

        Returns:
            such as ``{"bbox": {"AP": 37.4, ..., "AP-person": 52.2}}``; empty in processes other than the main one.
        """
        predictions = gather_predictions(self._predictions, self._dataset_name, self._distributed)
        if predictions is None:
            return {}
        self._results = OrderedDict()
        kinds = set().union(*predictions)
        if "proposals" in kinds:
            self._eval_box_proposals([p for p in predictions if img_ids is None or p["image_id"] in img_ids])
            predictions = [{k: v for k, v in p.items() if k != "proposals"} for p in predictions]
        if "instances" in kinds:
            if self._output_dir:
                save_predictions(predictions, self._output_dir, "instances_predictions.pth")
            self._eval_predictions(predictions, img_ids)
        if not kinds & {"instances", "proposals"}:
            self._logger.warning("The model returns neither 'instances' nor 'proposals', so there is no AP to compute")
        return copy.deepcopy(self._results)

    def _load_ground_truth(self, allow_cached: bool) -> "COCO":
        from detlib.evaluation.coco_api import load_ground_truth

        json_file = self._metadata.get("json_file")
        if json_file is not None:
            return load_ground_truth(PathManager.get_local_path(json_file), self._rotated)
        self._logger.info("%r has no json_file in its metadata; converting it to COCO format", self._dataset_name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = self._output_dir or temporary
            converted = os.path.join(folder, f"{self._dataset_name}_coco_format.json")
            convert_to_coco_json(self._dataset_name, converted, allow_cached=allow_cached)
            return load_ground_truth(converted, self._rotated)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        fields = set().union(*predictions)
        return ["bbox"] + [
            task for task, field in (("segm", "segmentation"), ("keypoints", "keypoints")) if field in fields
        ]

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Fill ``_results`` for every task."""
        detections = list(itertools.chain(*(prediction.get("instances", ()) for prediction in predictions)))
        detections = self._to_dataset_categories(detections)
        if self._output_dir:
            write_json(detections, self._output_dir, "coco_instances_results.json")
        if not self._do_evaluation:
            self._logger.info("%r has no annotations, so there is nothing to compare with", self._dataset_name)
            return
        for task in self._tasks or self._tasks_from_predictions(detections):
            evaluation = self._evaluate_task(task, detections, img_ids)
            self._results[task] = self._derive_coco_results(evaluation, task, self._metadata.get("thing_classes"))
            self._hint_at_zero(task, detections, img_ids)

    def _eval_box_proposals(self, predictions: list[dict[str, Any]]) -> None:
        if self._output_dir:
            save_box_proposals(predictions, self._output_dir)
        if self._do_evaluation:
            self._results["box_proposals"] = average_recalls(predictions, self._coco_api)

    def _to_dataset_categories(self, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return to_dataset_categories(detections, self._class_of_category(), self._dataset_name)

    def _class_of_category(self) -> dict[int, int]:
        return class_of_category(self._metadata, self._coco_api.getCatIds())

    def _evaluate_task(self, task: str, detections: list[dict[str, Any]], img_ids: Sequence[int] | None) -> "COCOeval":
        from detlib.evaluation.coco_api import evaluate_on_coco

        return evaluate_on_coco(
            self._coco_api,
            detections,
            task,
            max_dets=self._max_dets_per_image,
            kpt_oks_sigmas=self._kpt_oks_sigmas,
            img_ids=img_ids,
            evaluation_class=self._evaluation_class(),
        )

    def _evaluation_class(self) -> "type[COCOeval]":
        from detlib.evaluation.coco_api import evaluation_class

        return evaluation_class(self._use_fast_impl)

    def _derive_coco_results(
        self, coco_eval: "COCOeval", iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Metrics in percent, with those per class if there are several; also logged as tables.

        Args:
            coco_eval: finished.
        """
        metrics = METRICS[iou_type]
        results = {name: _percent(value) for name, value in zip(metrics, coco_eval.stats, strict=False)}
        self._logger.info("Evaluation results for %s:\n%s", iou_type, metric_table(results))
        if class_names is None or len(class_names) <= 1:
            return results
        per_class = self._per_class_ap(coco_eval, class_names)
        self._logger.info("%s AP per class:\n%s", iou_type, class_table(per_class))
        return {**results, **{f"AP-{name}": ap for name, ap in per_class.items()}}

    def _per_class_ap(self, coco_eval: "COCOeval", class_names: Sequence[str]) -> dict[str, float]:
        precision = coco_eval.eval["precision"]  # (IoUs, recalls, K, areas, detection limits), -1 without ground truth
        class_of = self._class_of_category()
        per_class = {}
        for index, category in enumerate(coco_eval.params.catIds):
            values = precision[:, :, index, 0, -1]
            values = values[values > -1]
            if category in class_of:
                per_class[class_names[class_of[category]]] = float(100 * values.mean()) if values.size else math.nan
        return per_class

    def _hint_at_zero(self, task: str, detections: list[dict[str, Any]], img_ids: Sequence[int] | None) -> None:
        ap50 = self._results[task].get("AP50", math.nan)
        if ap50 >= LOW_AP50:
            return
        reasons = explain_zero_ap(self._coco_api, detections, self._dataset_name, img_ids)
        if not reasons and ap50 < ZERO_AP50:
            reasons = [
                "Neither classes nor boxes look mistaken: the model has not learnt enough, its weights were not "
                "loaded, or inputs are normalised in another way than in training (INPUT.FORMAT, MODEL.PIXEL_MEAN, "
                "MODEL.PIXEL_STD)"
            ]
        if reasons:
            self._logger.warning("The AP50 of %s is %.3g. %s", task, ap50, ". ".join(reasons))


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict[str, Any]]:
    """Convert detections on one image to COCO's result format, boxes as (x, y, width, height).

    Rotated boxes stay (center x, center y, width, height, angle).

    Args:
        instances: on the CPU, with ``pred_boxes``, ``scores``, ``pred_classes``; optional ``pred_masks`` (N, H, W)
            of bool become run-length codes, optional ``pred_keypoints`` (N, K, 3) a list of 3 K numbers.
    """
    if len(instances) == 0:
        return []
    boxes = instances.pred_boxes.tensor
    if boxes.shape[1] == 4:
        boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    columns: dict[str, list[Any]] = {
        "category_id": instances.pred_classes.tolist(),
        "bbox": boxes.tolist(),
        "score": instances.scores.tolist(),
    }
    if instances.has("pred_masks"):
        columns["segmentation"] = [_run_lengths(mask) for mask in instances.pred_masks]
    if instances.has("pred_keypoints"):
        keypoints = instances.pred_keypoints.clone()
        keypoints[:, :, :2] -= 0.5  # Ours are continuous, with the middle of a pixel at .5; COCO's are pixel indices.
        columns["keypoints"] = keypoints.flatten(1).tolist()
    rows = zip(*columns.values(), strict=True)
    return [{"image_id": img_id, **dict(zip(columns, row, strict=True))} for row in rows]


def _run_lengths(mask: torch.Tensor) -> dict[str, Any]:
    from pycocotools import mask as mask_api

    encoded = mask_api.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def _check_tasks(tasks: Sequence[str] | None, known: Sequence[str]) -> list[str] | None:
    if tasks is None:
        return None
    unknown = [task for task in tasks if task not in known]
    if unknown or isinstance(tasks, str):
        raise ValueError(f"tasks must be a sequence of {', '.join(known)}; got {tasks!r}")
    return list(tasks)


def _percent(value: float) -> float:
    return float(100 * value) if value >= 0 else math.nan


def __getattr__(name: str) -> Any:
    if name == "COCOevalMaxDets":  # pycocotools is imported by those who evaluate only.
        from detlib.evaluation.coco_api import COCOevalMaxDets

        return COCOevalMaxDets
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
