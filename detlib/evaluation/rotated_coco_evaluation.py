"""COCO's average precision for rotated boxes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detlib.config import CfgNode
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

    _rotated = True

    def __init__(self, dataset_name: str, tasks: Sequence[str] | None = None, *args: Any, **kwargs: Any) -> None:
        if tasks is not None and not isinstance(tasks, CfgNode) and list(tasks) != ["bbox"]:
            raise ValueError(f"tasks of rotated boxes can only be ['bbox']; got {tasks!r}")
        super().__init__(dataset_name, tasks, *args, **kwargs)

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
