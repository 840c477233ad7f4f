"""LVIS's average precision for boxes and masks."""

import copy
import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from detlib.config import CfgNode
from detlib.data import MetadataCatalog
from detlib.evaluation.coco_evaluation import instances_to_coco_json
from detlib.evaluation.evaluator import DatasetEvaluator
from detlib.evaluation.predictions import (
    class_of_category,
    gather_predictions,
    save_predictions,
    to_dataset_categories,
    write_json,
)
from detlib.evaluation.proposal_recall import average_recalls, save_box_proposals
from detlib.evaluation.tables import metric_table
from detlib.utils.errors import DatasetError
from detlib.utils.file_io import PathManager

__all__ = ["LVISEvaluator"]

logger = logging.getLogger(__name__)

FIELDS = {"bbox": "bbox", "segm": "segmentation"}  # Task -> what a detection needs for it.
MAX_DETECTIONS = 300  # Per image, over all classes (arXiv:1908.03195).


class LVISEvaluator(DatasetEvaluator):
    """Average precision of ``instances`` by the federated rules of LVIS, and average recall of ``proposals``.

    An image counts only for classes that were checked in it, see :mod:`detlib.evaluation.lvis_api`. Results are
    ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, and ``APr``, ``APc``, ``APf`` over rare, common and frequent
    classes, in percent, ``nan`` where undefined.

    Args:
        dataset_name: of a registered dataset with a ``json_file`` in LVIS's format in its metadata.
        tasks: some of ``"bbox"`` and ``"segm"``; otherwise those that predictions have fields for.
        distributed: collect predictions from all processes; otherwise each evaluates its own.
        output_dir: where to write ``lvis_instances_results.json`` (LVIS's result format),
            ``instances_predictions.pth`` and, for proposals, ``box_proposals.pkl``; otherwise nothing is written.
        max_dets_per_image: highest scoring detections that count per image, over all classes: 300 in LVIS.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ) -> None:
        from detlib.evaluation.lvis_api import load_lvis

        self._dataset_name = dataset_name
        self._tasks = None if isinstance(tasks, CfgNode) else _check_tasks(tasks)  # Older projects pass a config.
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = max_dets_per_image or MAX_DETECTIONS
        self._metadata = MetadataCatalog.get(dataset_name)
        json_file = self._metadata.get("json_file")
        if json_file is None:
            raise DatasetError(f"{dataset_name!r} has no json_file in its metadata; register it with it")
        self._lvis_api = load_lvis(PathManager.get_local_path(json_file))
        self._do_evaluation = bool(self._lvis_api.dataset.get("annotations"))  # Test sets come without.
        self.reset()

    def reset(self) -> None:
        self._predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Convert and keep the ``instances`` of each output, and its ``proposals``.

        Args:
            inputs: each with an ``image_id``.
            outputs: each with ``instances`` or ``proposals`` on the scale of the image file.
        """
        for image, output in zip(inputs, outputs, strict=True):
            prediction = {"image_id": image["image_id"]}
            if "instances" in output:
                prediction["instances"] = instances_to_coco_json(output["instances"].to("cpu"), image["image_id"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to("cpu")
            self._predictions.append(prediction)

    def evaluate(self) -> dict[str, Any] | None:
        """Compute the metrics.

        Returns:
            such as ``{"bbox": {"AP": 22.5, ..., "APr": 9.1}}``; ``None`` in processes other than the main one.
        """
        predictions = gather_predictions(self._predictions, self._dataset_name, self._distributed)
        if predictions is None:
            return None
        results: dict[str, Any] = OrderedDict()
        kinds = set().union(*predictions)
        if "proposals" in kinds:
            if self._output_dir:
                save_box_proposals(predictions, self._output_dir)
            if self._do_evaluation:
                results["box_proposals"] = average_recalls(predictions, self._lvis_api)
        if "instances" in kinds:
            results.update(self._evaluate_instances(predictions))
        if not kinds & {"instances", "proposals"}:
            logger.warning("The model returns neither 'instances' nor 'proposals', so there is no AP to compute")
        return copy.deepcopy(results)

    def _evaluate_instances(self, predictions: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        from detlib.evaluation.lvis_api import evaluate_on_lvis

        if self._output_dir:
            content = [{k: v for k, v in p.items() if k != "proposals"} for p in predictions]
            save_predictions(content, self._output_dir, "instances_predictions.pth")
        detections = list(itertools.chain(*(prediction.get("instances", ()) for prediction in predictions)))
        class_of = class_of_category(self._metadata, self._lvis_api.getCatIds())
        detections = to_dataset_categories(detections, class_of, self._dataset_name)
        if self._output_dir:
            write_json(detections, self._output_dir, "lvis_instances_results.json")
        if not self._do_evaluation:
            logger.info("%r has no annotations, so there is nothing to compare with", self._dataset_name)
            return {}
        fields = set().union(*detections)
        results = {}
        for task in self._tasks or [task for task, field in FIELDS.items() if task == "bbox" or field in fields]:
            results[task] = evaluate_on_lvis(self._lvis_api, detections, task, self._max_dets_per_image)
            logger.info("Evaluation results for %s:\n%s", task, metric_table(results[task]))
        return results


def _check_tasks(tasks: Sequence[str] | None) -> list[str] | None:
    if tasks is None:
        return None
    if isinstance(tasks, str) or not set(tasks) <= FIELDS.keys():
        raise ValueError(f"tasks must be a sequence of {', '.join(FIELDS)}; got {tasks!r}")
    return list(tasks)
