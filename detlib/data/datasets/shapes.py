"""The embedded dataset: pictures of shapes with boxes, polygons, crowds, keypoints, panoptic and semantic labels.

It is drawn once, on first use, into ``$DETLIB_CACHE`` (``~/.cache/detlib`` if unset), in COCO's formats and with
COCO's names: ``shapes_{train,val}``, and the same with ``_keypoints``, ``_panoptic``, ``_panoptic_separated``,
``_panoptic_stuffonly``, ``_sem_seg`` and ``_multi_task``, which has the objects and the label maps of ``_sem_seg``.
Category ids have gaps, so that code which forgets to map them shows.
"""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from iopath.common.file_io import file_lock
from PIL import Image

from detlib.data.catalog import DatasetCatalog, MetadataCatalog
from detlib.data.datasets.builtin_meta import (
    categories_with_colors,
    instance_metadata,
    panoptic_metadata,
    separated_metadata,
)
from detlib.data.datasets.coco import load_coco_json, load_sem_seg, register_coco_instances
from detlib.data.datasets.coco_panoptic import (
    register_coco_panoptic,
    register_coco_panoptic_separated,
    with_label_maps,
)
from detlib.data.datasets.lazy import prepare_before_loading
from detlib.data.datasets.mask_outlines import mask_to_polygons, mask_to_rle
from detlib.data.datasets.shapes_drawing import CLASSES, HANDLE_NAMES, TEXTURES, Scene, Thing, draw_scene

__all__ = ["SHAPES_CATEGORIES", "draw_shapes", "register_shapes", "shapes_root"]

logger = logging.getLogger(__name__)

VERSION = 1  # Raise it with every change that alters a file, also in shapes_drawing: it names the cache folder.
SEED = 20240
NUM_IMAGES = {"train": 1000, "val": 100}
THING_IDS = (1, 2, 4, 5, 7, 8)
STUFF_IDS = (11, 12, 15, 16)
JPEG_QUALITY = 95

SHAPES_CATEGORIES = categories_with_colors(
    [(THING_IDS[i], name, True) for i, name in enumerate(CLASSES)]
    + [(STUFF_IDS[i], name, False) for i, name in enumerate(TEXTURES)]
)
KEYPOINTS = {
    "keypoint_names": HANDLE_NAMES,
    "keypoint_flip_map": (("left", "right"),),
    "keypoint_connection_rules": [("top", "bottom", (102, 204, 255)), ("left", "right", (255, 128, 0))],
}
SEM_SEG_CLASSES = TEXTURES + CLASSES
IGNORE_LABEL = 255
SUFFIXES = ("", "_keypoints", "_panoptic", "_panoptic_separated", "_panoptic_stuffonly", "_sem_seg", "_multi_task")


def shapes_root() -> Path:
    """Return the folder of the dataset, which need not exist yet."""
    cache = os.environ.get("DETLIB_CACHE") or "~/.cache/detlib"
    return Path(cache).expanduser().absolute() / f"shapes-v{VERSION}"


def register_shapes(root: str | os.PathLike[str]) -> None:
    """Register all variants; they are drawn into ``root`` when one of them is first loaded."""
    root = Path(root)
    for split in NUM_IMAGES:
        _register_split(root, split)
        for suffix in SUFFIXES:
            prepare_before_loading(f"shapes_{split}{suffix}", lambda: draw_shapes(root))


def _register_split(root: Path, split: str) -> None:
    name = f"shapes_{split}"
    images, labels = str(root / split), str(root / f"sem_seg_{split}")
    instances_json = str(root / f"annotations/instances_{split}.json")
    panoptic = (str(root / f"panoptic_{split}"), str(root / f"annotations/panoptic_{split}.json"))
    metadata = instance_metadata(SHAPES_CATEGORIES)
    register_coco_instances(name, metadata, instances_json, images)
    register_coco_instances(f"{name}_keypoints", {**metadata, **KEYPOINTS}, instances_json, images)
    register_coco_panoptic(f"{name}_panoptic", panoptic_metadata(SHAPES_CATEGORIES), images, *panoptic, instances_json)
    register_coco_panoptic_separated(
        f"{name}_panoptic",
        separated_metadata(SHAPES_CATEGORIES),
        images,
        *panoptic,
        str(root / f"panoptic_stuff_{split}"),
        instances_json,
    )
    colors = {category["name"]: category["color"] for category in SHAPES_CATEGORIES}
    label_maps = {
        "image_root": images,
        "sem_seg_root": labels,
        "ignore_label": IGNORE_LABEL,
        "stuff_classes": list(SEM_SEG_CLASSES),
        "stuff_colors": [colors[name] for name in SEM_SEG_CLASSES],
    }
    DatasetCatalog.register(f"{name}_sem_seg", lambda: load_sem_seg(labels, images))
    MetadataCatalog.get(f"{name}_sem_seg").set(evaluator_type="sem_seg", **label_maps)
    both = f"{name}_multi_task"
    DatasetCatalog.register(
        both, lambda: with_label_maps(load_coco_json(instances_json, images, both), load_sem_seg(labels, images))
    )
    MetadataCatalog.get(both).set(evaluator_type="coco_and_sem_seg", json_file=instances_json, **metadata, **label_maps)


def draw_shapes(root: str | os.PathLike[str]) -> None:
    """Draw the dataset unless it is there; processes that start at once wait for the first one."""
    root = Path(root)
    if root.is_dir():
        return
    with file_lock(str(root)):
        if root.is_dir():
            return
        logger.info(f"Drawing the shapes dataset into {root} (once, about ten seconds)")
        unfinished = tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}-")
        try:
            os.chmod(unfinished, 0o755)  # mkdtemp lets nobody else in, yet a cache may be shared.
            for index, (split, num_images) in enumerate(NUM_IMAGES.items()):
                _draw_split(Path(unfinished), split, index, num_images)
            os.rename(unfinished, root)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def _draw_split(root: Path, split: str, split_index: int, num_images: int) -> None:
    images, annotations, panoptic = [], [], []
    for folder in (split, f"sem_seg_{split}", f"panoptic_{split}", f"panoptic_stuff_{split}", "annotations"):
        (root / folder).mkdir(exist_ok=True)
    for image_id in range(1, num_images + 1):
        # A stream per image: none changes when their number or another image does.
        scene = draw_scene(np.random.Generator(np.random.PCG64([SEED, split_index, image_id])))
        stem = f"{image_id:06d}"
        height, width = scene.textures.shape
        Image.fromarray(scene.image).save(root / split / f"{stem}.jpg", quality=JPEG_QUALITY, subsampling=0)
        images.append({"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width})
        for thing in scene.things:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_annotation(thing)})
        segments, ids = _segments(scene)
        panoptic.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments})
        channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(channels).save(root / f"panoptic_{split}" / f"{stem}.png")
        labels, stuff_labels = _label_maps(scene)
        Image.fromarray(labels).save(root / f"sem_seg_{split}" / f"{stem}.png")
        Image.fromarray(stuff_labels).save(root / f"panoptic_stuff_{split}" / f"{stem}.png")
    things = [{"id": c["id"], "name": c["name"], "supercategory": "shape"} for c in SHAPES_CATEGORIES if c["isthing"]]
    for category in things:
        category.update(keypoints=HANDLE_NAMES, skeleton=[[1, 3], [2, 4]])
    _write(root / f"annotations/instances_{split}.json", images, annotations, things)
    _write(root / f"annotations/panoptic_{split}.json", images, panoptic, SHAPES_CATEGORIES)


def _write(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    info = {"description": "Shapes drawn by detlib", "version": str(VERSION)}
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")


def _annotation(thing: Thing) -> dict[str, Any]:
    keypoints = thing.keypoints.copy()
    keypoints[keypoints[:, 2] > 0, :2] -= 0.5  # COCO counts from the center of the first pixel.
    return {
        "category_id": THING_IDS[thing.class_index],
        "bbox": _box(thing.mask),
        "area": int(thing.mask.sum()),
        "iscrowd": int(thing.is_crowd),
        "segmentation": mask_to_rle(thing.mask) if thing.is_crowd else mask_to_polygons(thing.mask),
        "keypoints": keypoints.round(2).reshape(-1).tolist(),
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
    }


def _box(mask: np.ndarray) -> list[int]:
    """Return the tight box around the pixels, XYWH."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = columns[0], rows[0]
    return [int(x), int(y), int(columns[-1] + 1 - x), int(rows[-1] + 1 - y)]


def _segments(scene: Scene) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return COCO's ``segments_info`` and the map of segment ids, 1000 * category + number of the instance."""
    ids = np.array(STUFF_IDS)[scene.textures] * 1000
    is_crowd = {}
    for number, thing in enumerate(scene.things, start=1):
        segment_id = THING_IDS[thing.class_index] * 1000 + number
        ids[thing.mask] = segment_id
        is_crowd[segment_id] = int(thing.is_crowd)
    segments = [
        {
            "id": segment_id,
            "category_id": segment_id // 1000,
            "area": int((ids == segment_id).sum()),
            "bbox": _box(ids == segment_id),
            "iscrowd": is_crowd.get(segment_id, 0),
        }
        for segment_id in np.unique(ids).tolist()
    ]
    return segments, ids


def _label_maps(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Return indices into SEM_SEG_CLASSES with crowds ignored, and stuff from 1 on with 0 for all things."""
    labels, stuff_labels = scene.textures.copy(), scene.textures + np.uint8(1)
    for thing in scene.things:
        labels[thing.mask] = IGNORE_LABEL if thing.is_crowd else len(TEXTURES) + thing.class_index
        stuff_labels[thing.mask] = 0
    return labels, stuff_labels
