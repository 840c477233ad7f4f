"""Average recall of box proposals, which says how many objects a second stage could find at best.

"What makes for effective detection proposals?" (https://arxiv.org/abs/1502.05082), sec. 5, with COCO's thresholds.
"""

import logging
import os
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detlib.evaluation.tables import metric_table
from detlib.structures import Boxes, BoxMode, Instances, RotatedBoxes, pairwise_iou, pairwise_iou_rotated
from detlib.utils.file_io import PathManager

if TYPE_CHECKING:
    from pycocotools.coco import COCO

__all__ = ["average_recalls", "evaluate_box_proposals", "save_box_proposals"]

logger = logging.getLogger(__name__)

LIMITS = (100, 1000)
AREAS = {
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
    "96-128": (96**2, 128**2),
    "128-256": (128**2, 256**2),
    "256-512": (256**2, 512**2),
    "512-inf": (512**2, 1e10),
}
SUFFIXES = {"all": "", "small": "s", "medium": "m", "large": "l"}


def average_recalls(predictions: Sequence[dict[str, Any]], coco_gt: "COCO") -> dict[str, float]:
    """Return ``AR@100``, ``ARs@100``, ``ARm@100``, ``ARl@100`` and the same ``@1000``, in percent; logged as a table.

    Args:
        predictions: each with ``image_id`` and ``proposals``.
        coco_gt: the ground truth.
    """
    results = {
        f"AR{suffix}@{limit}": 100 * evaluate_box_proposals(predictions, coco_gt, area=area, limit=limit)["ar"]
        for limit in LIMITS
        for area, suffix in SUFFIXES.items()
    }
    logger.info("Evaluation results for box proposals:\n%s", metric_table(results))
    return results


def evaluate_box_proposals(
    predictions: Sequence[dict[str, Any]],
    coco_gt: "COCO",
    thresholds: Sequence[float] | None = None,
    area: str = "all",
    limit: int | None = None,
) -> dict[str, Any]:
    """Recall of objects, crowds aside, when each object is paired with one proposal at most.

    Args:
        predictions: each with ``image_id`` and ``proposals``, `Instances` with ``proposal_boxes`` and
            ``objectness_logits``.
        coco_gt: the ground truth.
        thresholds: of IoU; COCO's 0.5, 0.55, ..., 0.95 if not given.
        area: a key of ``AREAS``: count objects of this size only.
        limit: how many of the best proposals of an image count.

    Returns:
        ``ar``, the mean of ``recalls`` over ``thresholds``, ``nan`` if there is no object; ``gt_overlaps``, the IoU of
        each object with its proposal; ``num_pos``, the number of objects.
    """
    if area not in AREAS:
        raise ValueError(f"area must be one of {', '.join(AREAS)}; got {area!r}")
    thresholds = np.arange(0.5, 0.96, 0.05) if thresholds is None else np.asarray(thresholds)
    # Images without any proposal count too: their objects are missed.
    overlaps = [
        _best_overlaps(prediction["proposals"], coco_gt.imgToAnns.get(prediction["image_id"], ()), AREAS[area], limit)
        for prediction in predictions
    ]
    gt_overlaps = np.sort(np.concatenate([*overlaps, np.zeros(0)]))
    num_pos = len(gt_overlaps)
    # The tolerance keeps an IoU of 0.55 in float32 above 0.55.
    hits = num_pos - np.searchsorted(gt_overlaps, thresholds - 1e-7)  # (T,)
    recalls = hits / num_pos if num_pos else np.full(len(thresholds), np.nan)
    return {
        "ar": float(recalls.mean()),
        "recalls": recalls,
        "thresholds": thresholds,
        "gt_overlaps": gt_overlaps,
        "num_pos": num_pos,
    }


def save_box_proposals(predictions: Sequence[dict[str, Any]], folder: str) -> None:
    """Write ``box_proposals.pkl``, which ``DATASETS.PROPOSAL_FILES_TRAIN`` takes: plain containers of numpy arrays."""
    proposals = [prediction["proposals"] for prediction in predictions]
    rotated = any(isinstance(p.proposal_boxes, RotatedBoxes) for p in proposals)
    content = {
        "ids": [prediction["image_id"] for prediction in predictions],
        "boxes": [p.proposal_boxes.tensor.numpy() for p in proposals],  # (N, 4) each, (N, 5) if rotated
        "objectness_logits": [p.objectness_logits.numpy() for p in proposals],  # (N,) each
        "bbox_mode": (BoxMode.XYWHA_ABS if rotated else BoxMode.XYXY_ABS).value,
    }
    PathManager.mkdirs(folder)
    with PathManager.open(os.path.join(folder, "box_proposals.pkl"), "wb") as file:
        pickle.dump(content, file)


def _best_overlaps(
    proposals: Instances, annotations: Sequence[dict[str, Any]], area_range: tuple[float, float], limit: int | None
) -> np.ndarray:
    """IoU of each of the G objects with the proposal it is paired with, 0 if there is none left. (G,)"""
    low, high = area_range
    objects = [a for a in annotations if not a["iscrowd"] and low <= a["area"] <= high]
    best_first = proposals.objectness_logits.argsort(descending=True, stable=True)[:limit]
    iou = _pairwise_iou(proposals.proposal_boxes[best_first], [a["bbox"] for a in objects]).numpy().copy()  # (P, G)
    overlaps = np.zeros(len(objects))
    for _ in range(min(iou.shape)):  # The closest pair first; neither of the two is available to others afterwards.
        proposal, gt = np.unravel_index(iou.argmax(), iou.shape)
        if iou[proposal, gt] <= 0:
            break
        overlaps[gt] = iou[proposal, gt]
        iou[proposal] = iou[:, gt] = -1
    return overlaps


def _pairwise_iou(proposal_boxes: Boxes, gt_boxes: list[list[float]]) -> torch.Tensor:
    """Overlaps of P proposals with G boxes of a COCO file, (P, G)."""
    if isinstance(proposal_boxes, RotatedBoxes):
        from detlib.evaluation.rotated_coco_api import RotatedCOCOeval

        return pairwise_iou_rotated(proposal_boxes, RotatedBoxes(RotatedCOCOeval.boxlist_to_tensor(gt_boxes, 5)))
    boxes_xywh = torch.tensor(gt_boxes, dtype=torch.float32).reshape(-1, 4)
    return pairwise_iou(proposal_boxes, Boxes(BoxMode.convert(boxes_xywh, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)))
