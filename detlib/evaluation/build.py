"""The evaluator that fits a dataset, by the ``evaluator_type`` in its metadata."""

from collections.abc import Callable

from detlib.config import CfgNode
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.rotated_annotations import uses_rotated_boxes
from detlib.evaluation.cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detlib.evaluation.classification_evaluation import ClassificationEvaluator, MultiLabelEvaluator
from detlib.evaluation.coco_evaluation import COCOEvaluator
from detlib.evaluation.evaluator import DatasetEvaluator, DatasetEvaluators
from detlib.evaluation.lvis_evaluation import LVISEvaluator
from detlib.evaluation.panoptic_evaluation import COCOPanopticEvaluator
from detlib.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detlib.evaluation.rotated_coco_evaluation import RotatedCOCOEvaluator
from detlib.evaluation.sem_seg_evaluation import SemSegEvaluator
from detlib.utils.errors import DatasetError

__all__ = ["build_evaluator"]


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """Make the evaluator of a dataset, or several in one.

    Args:
        cfg: for what the metrics depend on besides the dataset: ``TEST.KEYPOINT_OKS_SIGMAS``, and whether the model
            predicts rotated boxes.
        dataset_name: of a registered dataset.
        output_folder: where predictions are written; otherwise none are.

    Raises:
        DatasetError: the metadata has no ``evaluator_type``, or one that is not known.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in EVALUATORS:
        raise DatasetError(
            f"dataset {dataset_name!r} has the evaluator_type {evaluator_type!r}; known are "
            f"{', '.join(sorted(EVALUATORS))}. Set MetadataCatalog.get({dataset_name!r}).evaluator_type to one of "
            "them, or override build_evaluator in a trainer of your own"
        )
    evaluators = EVALUATORS[evaluator_type](cfg, dataset_name, output_folder)
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _coco(cfg: CfgNode, name: str, folder: str | None) -> list[DatasetEvaluator]:
    if uses_rotated_boxes(cfg):
        return _rotated_coco(cfg, name, folder)
    return [COCOEvaluator(name, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)]


def _rotated_coco(cfg: CfgNode, name: str, folder: str | None) -> list[DatasetEvaluator]:
    return [RotatedCOCOEvaluator(name, output_dir=folder)]


def _sem_seg(cfg: CfgNode, name: str, folder: str | None) -> list[DatasetEvaluator]:
    return [SemSegEvaluator(name, output_dir=folder)]


def _coco_and_sem_seg(cfg: CfgNode, name: str, folder: str | None) -> list[DatasetEvaluator]:
    return [*_coco(cfg, name, folder), *_sem_seg(cfg, name, folder)]


def _panoptic(cfg: CfgNode, name: str, folder: str | None) -> list[DatasetEvaluator]:
    """Panoptic quality, and what the dataset has of label maps and instances."""
    metadata = MetadataCatalog.get(name)
    has_labels = metadata.get("sem_seg_root") or any(
        "sem_seg_label" in segment for sample in DatasetCatalog.get(name) for segment in sample["segments_info"]
    )
    evaluators = _sem_seg(cfg, name, folder) if has_labels else []
    evaluators += _coco(cfg, name, folder) if metadata.get("json_file") else []
    return [*evaluators, COCOPanopticEvaluator(name, folder)]


def _cityscapes_panoptic(cfg: CfgNode, name: str, folder: str | None) -> list[DatasetEvaluator]:
    evaluators = [CityscapesSemSegEvaluator(name), CityscapesInstanceEvaluator(name)]
    return [*evaluators, COCOPanopticEvaluator(name, folder)]


EVALUATORS: dict[str, Callable[[CfgNode, str, str | None], list[DatasetEvaluator]]] = {
    "cityscapes_instance": lambda cfg, name, folder: [CityscapesInstanceEvaluator(name)],
    "cityscapes_panoptic_seg": _cityscapes_panoptic,
    "cityscapes_sem_seg": lambda cfg, name, folder: [CityscapesSemSegEvaluator(name)],
    "coco": _coco,
    "coco_and_sem_seg": _coco_and_sem_seg,
    "coco_panoptic_seg": _panoptic,
    "image_classification": lambda cfg, name, folder: [ClassificationEvaluator(name, output_dir=folder)],
    "lvis": lambda cfg, name, folder: [LVISEvaluator(name, output_dir=folder)],
    "multi_label_classification": lambda cfg, name, folder: [MultiLabelEvaluator(name, output_dir=folder)],
    "pascal_voc": lambda cfg, name, folder: [PascalVOCDetectionEvaluator(name)],
    "rotated_coco": _rotated_coco,
    "sem_seg": _sem_seg,
}
