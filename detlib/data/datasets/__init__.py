"""Datasets: readers of annotation formats, and the datasets known by name, registered when this is imported."""

from detlib.data.datasets import builtin as _builtin
from detlib.data.datasets import shapes as _shapes
from detlib.data.datasets.coco import convert_to_coco_json, load_coco_json, load_sem_seg, register_coco_instances
from detlib.data.datasets.coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated
from detlib.data.datasets.register import register_datasets

__all__ = [
    "convert_to_coco_json",
    "load_coco_json",
    "load_sem_seg",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
    "register_datasets",
]

_builtin.register_all_coco(_builtin.datasets_root())
_shapes.register_shapes(_shapes.shapes_root())
