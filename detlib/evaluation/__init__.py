"""Metrics of predictions on a dataset, and the loop that collects the predictions."""

from detlib.evaluation.build import build_evaluator
from detlib.evaluation.cityscapes_evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detlib.evaluation.classification_evaluation import ClassificationEvaluator, MultiLabelEvaluator
from detlib.evaluation.coco_evaluation import COCOEvaluator
from detlib.evaluation.evaluator import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from detlib.evaluation.lvis_evaluation import LVISEvaluator
from detlib.evaluation.neighbour_evaluation import evaluate_neighbours
from detlib.evaluation.panoptic_evaluation import COCOPanopticEvaluator
from detlib.evaluation.pascal_voc_evaluation import PascalVOCDetectionEvaluator
from detlib.evaluation.rotated_coco_evaluation import RotatedCOCOEvaluator
from detlib.evaluation.sem_seg_evaluation import SemSegEvaluator
from detlib.evaluation.testing import print_csv_format, verify_results

__all__ = [
    "COCOEvaluator",
    "COCOPanopticEvaluator",
    "CityscapesInstanceEvaluator",
    "CityscapesSemSegEvaluator",
    "ClassificationEvaluator",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "LVISEvaluator",
    "MultiLabelEvaluator",
    "PascalVOCDetectionEvaluator",
    "RotatedCOCOEvaluator",
    "SemSegEvaluator",
    "build_evaluator",
    "evaluate_neighbours",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
    "verify_results",
]
