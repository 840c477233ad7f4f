"""COCO evaluation with the matching done by faster_coco_eval, for the same numbers as pycocotools in less time."""

import numpy as np
from pycocotools.cocoeval import COCOeval

__all__ = ["COCOeval_opt"]


class COCOeval_opt(COCOeval):
    """``COCOeval`` whose ``evaluate`` and ``accumulate`` run in faster_coco_eval, which must be installed.

    ``evalImgs``, the matches of every image, stays empty: building that list is most of what pycocotools spends.
    """

    def evaluate(self) -> None:
        from faster_coco_eval import COCOeval_faster

        self.params.imgIds = list(np.unique(self.params.imgIds))
        self.params.catIds = list(np.unique(self.params.catIds)) if self.params.useCats else self.params.catIds
        self.params.maxDets = sorted(self.params.maxDets)
        self._fast = COCOeval_faster(self.cocoGt, self.cocoDt, self.params.iouType, print_function=_discard)
        for name, value in vars(self.params).items():
            setattr(self._fast.params, name, value)
        self._fast.evaluate()
        self.ious = self._fast.ious

    def accumulate(self) -> None:
        if not hasattr(self, "_fast"):
            raise RuntimeError("accumulate() was called before evaluate(); call evaluate() first")
        self._fast.accumulate()
        self.eval = self._fast.eval


def _discard(*_: object) -> None:
    pass
