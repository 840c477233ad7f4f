"""Datasets: readers of annotation formats, and the datasets known by name, registered when this is imported."""

from detlib.data.datasets import builtin as _builtin
from detlib.data.datasets import shapes as _shapes
from detlib.data.datasets.cifar import load_cifar, register_cifar
from detlib.data.datasets.cityscapes_panoptic import register_all_cityscapes_panoptic as _register_cityscapes_panoptic
from detlib.data.datasets.coco import convert_to_coco_json, load_coco_json, load_sem_seg, register_coco_instances
from detlib.data.datasets.coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated
from detlib.data.datasets.image_folder import (
    load_image_folder,
    load_image_list,
    load_images,
    register_image_folder,
    register_images,
)
from detlib.data.datasets.lvis import get_lvis_instances_meta, load_lvis_json, register_lvis_instances
from detlib.data.datasets.pascal_voc import (
    load_voc_instances,
    load_voc_labels,
    register_pascal_voc,
    register_voc_multi_label,
)
from detlib.data.datasets.register import register_datasets

__all__ = [
    "convert_to_coco_json",
    "get_lvis_instances_meta",
    "load_cifar",
    "load_coco_json",
    "load_image_folder",
    "load_image_list",
    "load_images",
    "load_lvis_json",
    "load_sem_seg",
    "load_voc_instances",
    "load_voc_labels",
    "register_cifar",
    "register_coco_instances",
    "register_coco_panoptic",
    "register_coco_panoptic_separated",
    "register_datasets",
    "register_image_folder",
    "register_images",
    "register_lvis_instances",
    "register_pascal_voc",
    "register_voc_multi_label",
]

for _register in (
    _builtin.register_all_coco,
    _builtin.register_all_lvis,
    _builtin.register_all_cityscapes,
    _register_cityscapes_panoptic,
    _builtin.register_all_pascal_voc,
    _builtin.register_all_ade20k,
    _builtin.register_all_cifar,
    _builtin.register_all_imagenet,
):
    _register(_builtin.datasets_root())
_shapes.register_shapes(_shapes.shapes_root())
