#!/usr/bin/env python
"""Make what Cityscapes' download lacks: label maps of train ids, and panoptic labels in COCO's format.

Writes *_gtFine_labelTrainIds.png beside *_gtFine_labelIds.png, and gtFine/cityscapes_panoptic_{split} with its JSON
file for train and val. Files that exist are written anew.
"""

import argparse
import json
import os
import sys

import numpy as np
from PIL import Image
from tqdm import tqdm

from detlib.data.datasets.builtin import datasets_root
from detlib.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detlib.data.datasets.cityscapes import INSTANCE_DIVISOR, CityscapesFiles, cityscapes_files
from detlib.engine.setup import run_tool
from detlib.utils.errors import MissingFileError

EXAMPLES = """
Example, for files in the folder of datasets (DETLIB_DATASETS):
  {prog}
"""

CATEGORY_OF_ID = {category["id"]: category for category in CITYSCAPES_CATEGORIES}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = os.path.join(datasets_root(), "cityscapes")
    parser.add_argument("--root", default=default, metavar="DIR", help=f"folder of the dataset (default: {default})")
    parser.add_argument("--splits", nargs="+", default=["train", "val"], metavar="NAME", help="(default: train val)")
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    for split in args.splits:
        gt_dir = os.path.join(args.root, "gtFine")
        files = cityscapes_files(os.path.join(args.root, "leftImg8bit", split), os.path.join(gt_dir, split))
        output_dir = os.path.join(gt_dir, f"cityscapes_panoptic_{split}")
        os.makedirs(output_dir, exist_ok=True)
        images, annotations = [], []
        for file in tqdm(files, desc=split, disable=None):
            Image.fromarray(train_ids(read_ids(file.label_ids))).save(file.train_ids)
            image, annotation = write_panoptic(file, output_dir)
            images.append(image)
            annotations.append(annotation)
        content = {"images": images, "annotations": annotations, "categories": categories()}
        with open(f"{output_dir}.json", "w", encoding="utf-8") as stream:
            json.dump(content, stream)
        print(f"{len(files)} label maps -> {gt_dir}/{split}, panoptic labels -> {output_dir}")


def read_ids(path: str) -> np.ndarray:
    if not os.path.isfile(path):
        raise MissingFileError(f"label map {path!r} does not exist; unpack gtFine_trainvaltest.zip")
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.int64)


def train_ids(label_ids: np.ndarray) -> np.ndarray:
    """Map ids of labels (H, W) to 0 ... 18, and those of classes that do not count to 255."""
    table = np.full(256, 255, dtype=np.uint8)
    for category in CITYSCAPES_CATEGORIES:
        table[category["id"]] = category["trainId"]
    return table[label_ids]


def write_panoptic(file: CityscapesFiles, output_dir: str) -> tuple[dict, dict]:
    """Write the PNG of segment ids, which are those of instanceIds; return the entries of image and annotation."""
    ids = read_ids(file.instance_ids)
    colors = np.zeros((*ids.shape, 3), dtype=np.uint8)
    segments = []
    for segment_id in np.unique(ids).tolist():
        is_object = segment_id >= INSTANCE_DIVISOR
        category = CATEGORY_OF_ID.get(segment_id // INSTANCE_DIVISOR if is_object else segment_id)
        if category is not None:
            mask = ids == segment_id
            colors[mask] = (segment_id % 256, segment_id // 256, 0)
            is_crowd = bool(category["isthing"]) and not is_object
            segments.append({"id": segment_id, "category_id": category["id"], "iscrowd": int(is_crowd), **extent(mask)})
    name = os.path.basename(file.instance_ids).removesuffix("_instanceIds.png")
    image_id, png_name = name.removesuffix("_gtFine"), f"{name}_panoptic.png"
    Image.fromarray(colors).save(os.path.join(output_dir, png_name))
    image = {"id": image_id, "height": ids.shape[0], "width": ids.shape[1], "file_name": f"{name}_leftImg8bit.png"}
    return image, {"image_id": image_id, "file_name": png_name, "segments_info": segments}


def extent(mask: np.ndarray) -> dict:
    """Return the area and the XYWH box of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return {"area": int(mask.sum()), "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]}


def categories() -> list[dict]:
    keys = ("id", "name", "color", "isthing")
    return [{**{key: c[key] for key in keys}, "supercategory": ""} for c in CITYSCAPES_CATEGORIES]


if __name__ == "__main__":
    run_tool(run)
