"""The public datasets that are known by name, once their files are in the folder of datasets.

That folder is ``$DETLIB_DATASETS``, else ``$DETECTRON2_DATASETS``, else ``./datasets``. Registering reads no file.
"""

import functools
import os

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.builtin_meta import (
    ADE20K_SEM_SEG_CATEGORIES,
    CITYSCAPES_CATEGORIES,
    COCO_CATEGORIES,
    instance_metadata,
    panoptic_metadata,
    person_keypoint_metadata,
    separated_metadata,
)
from detlib.data.datasets.cifar import CIFAR10, CIFAR100, register_cifar
from detlib.data.datasets.cityscapes import load_cityscapes_instances, load_cityscapes_semantic
from detlib.data.datasets.coco import load_sem_seg, register_coco_instances
from detlib.data.datasets.coco_panoptic import register_coco_panoptic, register_coco_panoptic_separated
from detlib.data.datasets.files import datasets_root, require_files
from detlib.data.datasets.image_folder import register_image_folder
from detlib.data.datasets.lvis import register_lvis_with_categories_of, version_files
from detlib.data.datasets.pascal_voc import register_pascal_voc

__all__ = [
    "datasets_root",
    "register_all_ade20k",
    "register_all_cifar",
    "register_all_cityscapes",
    "register_all_coco",
    "register_all_imagenet",
    "register_all_lvis",
    "register_all_pascal_voc",
]

# Name after "coco_" -> folder of images, file of boxes; below <root>/coco and <root>/coco/annotations.
COCO_INSTANCES = {
    "2014_train": ("train2014", "instances_train2014.json"),
    "2014_val": ("val2014", "instances_val2014.json"),
    "2014_minival": ("val2014", "instances_minival2014.json"),
    "2014_valminusminival": ("val2014", "instances_valminusminival2014.json"),
    "2017_train": ("train2017", "instances_train2017.json"),
    "2017_val": ("val2017", "instances_val2017.json"),
    "2017_test": ("test2017", "image_info_test2017.json"),
    "2017_test-dev": ("test2017", "image_info_test-dev2017.json"),
    "2017_val_100": ("val2017", "instances_val2017_100.json"),
}
COCO_KEYPOINTS = ("2014_train", "2014_val", "2014_minival", "2014_valminusminival", "2017_train", "2017_val")
COCO_KEYPOINTS += ("2017_val_100",)
STUFF_REMEDY = "Of these, coco/panoptic_stuff_* are made by `python tools/prepare_panoptic_fpn.py`."
COCO_PANOPTIC = ("2017_train", "2017_val", "2017_val_100")
# Version -> split -> file below <root>/lvis.
LVIS = {
    "lvis_v1": {
        "train": "lvis_v1_train.json",
        "val": "lvis_v1_val.json",
        "test_dev": "lvis_v1_image_info_test_dev.json",
        "test_challenge": "lvis_v1_image_info_test_challenge.json",
    },
    "lvis_v0.5": {
        "train": "lvis_v0.5_train.json",
        "val": "lvis_v0.5_val.json",
        "val_rand_100": "lvis_v0.5_val_rand_100.json",
        "test": "lvis_v0.5_image_info_test.json",
        "train_cocofied": "lvis_v0.5_train_cocofied.json",
        "val_cocofied": "lvis_v0.5_val_cocofied.json",
    },
}
PASCAL_VOC = {2007: ("train", "val", "trainval", "test"), 2012: ("train", "val", "trainval")}


def register_all_coco(root: str) -> None:
    """Register COCO of 2014 and 2017: instances, person keypoints, and panoptic in three forms.

    Args:
        root: folder that holds ``coco/``.
    """
    for split, (images, json_name) in COCO_INSTANCES.items():
        paths = _paths(root, f"annotations/{json_name}", images)
        register_coco_instances(f"coco_{split}", instance_metadata(COCO_CATEGORIES), *paths)
        require_files(f"coco_{split}", root, paths)
    for split in COCO_KEYPOINTS:
        images, json_name = COCO_INSTANCES[split]
        paths = _paths(root, f"annotations/{json_name.replace('instances', 'person_keypoints')}", images)
        register_coco_instances(f"keypoints_coco_{split}", person_keypoint_metadata(), *paths)
        require_files(f"keypoints_coco_{split}", root, paths)
    for split in COCO_PANOPTIC:
        _register_panoptic(root, split)


def _register_panoptic(root: str, split: str) -> None:
    name = f"coco_{split}_panoptic"
    images, instances_name = COCO_INSTANCES[split]
    suffix = instances_name.removeprefix("instances_").removesuffix(".json")  # Such as val2017_100.
    image_root, panoptic_root, panoptic_json, stuff_root, instances_json = _paths(
        root,
        images,
        f"panoptic_{suffix}",
        f"annotations/panoptic_{suffix}.json",
        f"panoptic_stuff_{suffix}",
        f"annotations/{instances_name}",
    )
    register_coco_panoptic(
        name, panoptic_metadata(COCO_CATEGORIES), image_root, panoptic_root, panoptic_json, instances_json
    )
    require_files(name, root, (image_root, panoptic_root, panoptic_json))
    register_coco_panoptic_separated(
        name,
        separated_metadata(COCO_CATEGORIES),
        image_root,
        panoptic_root,
        panoptic_json,
        stuff_root,
        instances_json,
    )
    require_files(f"{name}_separated", root, (image_root, stuff_root, instances_json), STUFF_REMEDY)
    require_files(f"{name}_stuffonly", root, (image_root, stuff_root), STUFF_REMEDY)


def register_all_lvis(root: str) -> None:
    """Register LVIS v1 and v0.5, and v0.5 with COCO's 80 classes.

    Args:
        root: folder that holds ``lvis/`` and ``coco/``.
    """
    for version, splits in LVIS.items():
        for split, json_name in splits.items():
            name, is_cocofied = f"{version}_{split}", split.endswith("cocofied")
            images, json_file = os.path.join(root, "coco/"), os.path.join(root, "lvis", json_name)
            metadata = instance_metadata(COCO_CATEGORIES) if is_cocofied else {}
            # Names may come from the dataset's own file, counts only from the training set's.
            training_file, *other_files = version_files(version, root)
            category_files = (training_file, json_file, *other_files)
            register_lvis_with_categories_of(name, metadata, json_file, images, category_files, root)
            remedy = f"{json_name} is made by `python tools/prepare_cocofied_lvis.py`." if is_cocofied else ""
            require_files(name, root, (images, json_file), remedy)


def register_all_cityscapes(root: str) -> None:
    """Register instances and label maps of Cityscapes' fine annotations.

    Args:
        root: folder that holds ``cityscapes/``.
    """
    things = [category for category in CITYSCAPES_CATEGORIES if category["isthing"]]
    metadata = {
        "thing_classes": [category["name"] for category in things],
        "thing_colors": [category["color"] for category in things],
        "stuff_classes": [category["name"] for category in CITYSCAPES_CATEGORIES],
        "stuff_colors": [category["color"] for category in CITYSCAPES_CATEGORIES],
    }
    for split in ("train", "val", "test"):
        folders = [os.path.join(root, "cityscapes", kind, split) for kind in ("leftImg8bit", "gtFine")]
        for kind, load, values in (
            ("instance_seg", load_cityscapes_instances, {"evaluator_type": "cityscapes_instance"}),
            ("sem_seg", load_cityscapes_semantic, {"evaluator_type": "cityscapes_sem_seg", "ignore_label": 255}),
        ):
            name = f"cityscapes_fine_{kind}_{split}"
            DatasetCatalog.register(name, functools.partial(load, *folders))
            MetadataCatalog.get(name).set(image_dir=folders[0], gt_dir=folders[1], **values, **metadata)
            require_files(name, root, folders)


def register_all_pascal_voc(root: str) -> None:
    """Register Pascal VOC of 2007 and 2012.

    Args:
        root: folder that holds ``VOC2007/`` and ``VOC2012/``.
    """
    for year, splits in PASCAL_VOC.items():
        for split in splits:
            name, folder = f"voc_{year}_{split}", os.path.join(root, f"VOC{year}")
            register_pascal_voc(name, folder, split, year)
            image_set = os.path.join(folder, f"ImageSets/Main/{split}.txt")
            require_files(
                name, root, (os.path.join(folder, "JPEGImages"), os.path.join(folder, "Annotations"), image_set)
            )


def register_all_cifar(root: str) -> None:
    """Register CIFAR-10 and CIFAR-100.

    Args:
        root: folder that holds ``cifar-10-batches-py/`` and ``cifar-100-python/``.
    """
    for name, version in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        for split, files in version.files_of_split.items():
            register_cifar(f"{name}_{split}", root, split, version)
            needed = [os.path.join(root, version.folder, file) for file in (*files, version.meta_file)]
            require_files(f"{name}_{split}", root, needed, f"They are in {version.url}.")


def register_all_imagenet(root: str) -> None:
    """Register the 1000 classes of ImageNet's challenge of 2012, named by their ids of WordNet such as "n01440764".

    Args:
        root: folder that holds ``imagenet/``.
    """
    for split in ("train", "val"):
        folder = os.path.join(root, "imagenet", split)
        register_image_folder(f"imagenet_1k_{split}", folder)
        require_files(f"imagenet_1k_{split}", root, [folder])


def register_all_ade20k(root: str) -> None:
    """Register the scene parsing challenge of 2016 on ADE20k: label maps of 150 classes.

    Args:
        root: folder that holds ``ADEChallengeData2016/``.
    """
    for split, folder in (("train", "training"), ("val", "validation")):
        name = f"ade20k_sem_seg_{split}"
        images = os.path.join(root, "ADEChallengeData2016/images", folder)
        labels = os.path.join(root, "ADEChallengeData2016/annotations_detectron2", folder)
        DatasetCatalog.register(name, functools.partial(load_sem_seg, labels, images))
        MetadataCatalog.get(name).set(
            stuff_classes=ADE20K_SEM_SEG_CATEGORIES[:],
            image_root=images,
            sem_seg_root=labels,
            evaluator_type="sem_seg",
            ignore_label=255,
        )
        remedy = "Of these, annotations_detectron2 is made by `python tools/prepare_ade20k_sem_seg.py`."
        require_files(name, root, (images, labels), remedy)


def _paths(root: str, *relative: str) -> list[str]:
    return [os.path.join(root, "coco", path) for path in relative]
