"""COCO's matching of detections and objects with the overlap of rotated boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from detlib.layers.rotated_boxes import pairwise_iou_rotated
from detlib.structures import BoxMode
from detlib.utils.errors import DatasetError

__all__ = ["RotatedCOCOeval"]

BoxList = Sequence[Sequence[float]] | np.ndarray


class RotatedCOCOeval(COCOeval):
    """``COCOeval`` for boxes of five numbers: center x, center y, width, height and angle in degrees.

    If detections or objects are rotated, boxes of four numbers among them count as upright. ``iouType`` is ``bbox``.
    """

    @staticmethod
    def is_rotated(box_list: BoxList) -> bool:
        """Whether there are boxes, and all have five numbers."""
        return len(box_list) > 0 and all(len(box) == 5 for box in box_list)

    @staticmethod
    def boxlist_to_tensor(boxlist: BoxList, output_box_dim: int) -> Tensor:
        """Boxes of COCO files, XYWH or XYWHA, as a float64 tensor (N, ``output_box_dim``).

        Raises:
            DatasetError: ``output_box_dim`` is 4 and there are boxes of five numbers, or there are others.
        """
        if any(len(box) not in (4, 5) or len(box) > output_box_dim for box in boxlist):
            raise DatasetError(
                f"boxes to compare are {4 if output_box_dim == 4 else '4 or 5'} numbers each, got "
                f"{sorted({len(box) for box in boxlist})}"
            )
        if output_box_dim == 5:
            boxlist = [
                box if len(box) == 5 else BoxMode.convert(list(box), BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS)
                for box in boxlist
            ]
        return torch.from_numpy(np.array(boxlist, dtype=np.float64).reshape(-1, output_box_dim))

    def compute_iou_dt_gt(self, dt: BoxList, gt: BoxList, is_crowd: Sequence[int]) -> np.ndarray:
        """Overlaps of D detections and G objects, (D, G).

        Args:
            dt: boxes of detections; gt: of objects.
            is_crowd: 1 for objects that are crowds, whose overlap is the share of the detection within them.
        """
        if not self.is_rotated(dt) and not self.is_rotated(gt):
            boxes = (self.boxlist_to_tensor(boxes, 4).numpy() for boxes in (dt, gt))
            return coco_mask.iou(*boxes, is_crowd)
        dt_boxes, gt_boxes = (self.boxlist_to_tensor(boxes, 5) for boxes in (dt, gt))
        iou = pairwise_iou_rotated(dt_boxes, gt_boxes)
        dt_area, gt_area = dt_boxes[:, 2:4].prod(dim=1)[:, None], gt_boxes[:, 2:4].prod(dim=1)
        intersection = iou * (dt_area + gt_area) / (1 + iou)
        within = torch.where(dt_area > 0, intersection / dt_area, 0)
        return torch.where(torch.tensor(is_crowd, dtype=torch.bool), within, iou).numpy()

    def computeIoU(self, imgId: Any, catId: int) -> np.ndarray | list[Any]:
        """Overlaps of the best detections of an image and class, by falling score, with its objects."""
        if self.params.useCats:
            gt, dt = self._gts[imgId, catId], self._dts[imgId, catId]
        else:
            gt, dt = ([a for c in self.params.catIds for a in part[imgId, c]] for part in (self._gts, self._dts))
        if not gt and not dt:
            return []
        # Matching takes the same order, hence the same sort.
        order = np.argsort([-detection["score"] for detection in dt], kind="mergesort")
        best = [dt[i]["bbox"] for i in order[: self.params.maxDets[-1]]]
        return self.compute_iou_dt_gt(best, [g["bbox"] for g in gt], [int(g["iscrowd"]) for g in gt])
