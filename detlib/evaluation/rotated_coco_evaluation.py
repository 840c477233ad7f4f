"""COCO's average precision for rotated boxes."""

from typing import TYPE_CHECKING, Any

from detlib.evaluation.coco_evaluation import COCOEvaluator, instances_to_coco_json
from detlib.structures import Instances

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

    from detlib.evaluation.rotated_coco_api import RotatedCOCOeval

__all__ = ["RotatedCOCOEvaluator", "RotatedCOCOeval"]


class RotatedCOCOEvaluator(COCOEvaluator):
    """Average precision of boxes, with the overlap of rotated ones.

    The boxes of objects have five numbers, center x, center y, width, height and angle in degrees, or are COCO's
    upright ones; those of ``instances`` are ``RotatedBoxes`` or ``Boxes``. The only task is ``"bbox"``. Arguments and
    results are those of :class:`COCOEvaluator`; ``use_fast_impl`` has no effect.
    """

    _known_tasks = ("bbox",)
    _rotated = True

    def instances_to_json(self, instances: Instances, img_id: Any) -> list[dict[str, Any]]:
        return instances_to_coco_json(instances, img_id)

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        return ["bbox"]

    def _evaluation_class(self) -> "type[COCOeval]":
        from detlib.evaluation.rotated_coco_api import RotatedCOCOeval

        return RotatedCOCOeval


def __getattr__(name: str) -> Any:
    if name == "RotatedCOCOeval":  # pycocotools is imported by those who evaluate only.
        from detlib.evaluation.rotated_coco_api import RotatedCOCOeval

        return RotatedCOCOeval
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
