#!/usr/bin/env python
"""Make label maps of stuff from panoptic PNG files, as Panoptic FPN and semantic FPN learn them.

In these maps 0 stands for all things, 1, 2, ... for stuff by rising category id, and 255 for pixels without a label.
"""

import argparse
import json
import os
import sys

import numpy as np
from PIL import Image
from tqdm import tqdm

from detlib.data.datasets.builtin import COCO_PANOPTIC, datasets_root
from detlib.engine.setup import run_tool
from detlib.utils.errors import ConfigError, DatasetError, MissingFileError

EXAMPLES = """
Examples:
  COCO's train2017 and val2017 in the folder of datasets (DETLIB_DATASETS):
      {prog}
  own data in COCO's panoptic format:
      {prog} --panoptic-json panoptic.json --panoptic-root panoptic/ --output-dir panoptic_stuff/
"""

IGNORE_LABEL = 255


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--panoptic-json", metavar="FILE", help="own data: description of segments and categories")
    parser.add_argument("--panoptic-root", metavar="DIR", help="own data: PNG files of segment ids")
    parser.add_argument("--output-dir", metavar="DIR", help="own data: for the label maps")
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    own = (args.panoptic_json, args.panoptic_root, args.output_dir)
    if any(own) and not all(own):
        raise ConfigError("own data needs --panoptic-json, --panoptic-root and --output-dir")
    for paths in [own] if any(own) else coco_paths():
        convert(*paths)


def coco_paths() -> list[tuple[str, str, str]]:
    """JSON file, PNG folder and output folder of each split of COCO that is there."""
    root = os.path.join(datasets_root(), "coco")
    splits = [split.replace("2017_train", "train2017").replace("2017_val", "val2017") for split in COCO_PANOPTIC]
    json_files = {split: os.path.join(root, f"annotations/panoptic_{split}.json") for split in splits}
    found = [split for split in splits if os.path.isfile(json_files[split])]
    if not found:
        raise MissingFileError(
            f"none of {', '.join(json_files.values())} exists; set DETLIB_DATASETS to the folder that holds coco/, or "
            "name own data with --panoptic-json"
        )
    return [
        (json_files[s], os.path.join(root, f"panoptic_{s}"), os.path.join(root, f"panoptic_stuff_{s}")) for s in found
    ]


def convert(panoptic_json: str, panoptic_root: str, output_dir: str) -> None:
    """Write one label map for each annotation."""
    if not os.path.isfile(panoptic_json):
        raise MissingFileError(f"panoptic annotation file {panoptic_json!r} does not exist; check the path")
    try:
        with open(panoptic_json, encoding="utf-8") as file:
            content = json.load(file)
        labels = labels_of_categories(content["categories"])
        annotations = content["annotations"]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{panoptic_json} is not in COCO's panoptic format: {error!r}") from error
    os.makedirs(output_dir, exist_ok=True)
    for annotation in tqdm(annotations, desc=os.path.basename(panoptic_json), disable=None):
        source = os.path.join(panoptic_root, annotation["file_name"])
        target = os.path.join(output_dir, os.path.splitext(annotation["file_name"])[0] + ".png")
        Image.fromarray(label_map(source, annotation["segments_info"], labels)).save(target)
    print(f"{len(annotations)} label maps -> {output_dir}")


def labels_of_categories(categories: list[dict]) -> dict[int, int]:
    """Category id -> pixel value of the label map."""
    stuff = sorted(category["id"] for category in categories if not category["isthing"])
    if len(stuff) >= IGNORE_LABEL:
        raise DatasetError(f"{len(stuff)} categories of stuff do not fit in a map of 8 bits, which has room for 254")
    things = {category["id"]: 0 for category in categories if category["isthing"]}
    return things | {category_id: label for label, category_id in enumerate(stuff, start=1)}


def label_map(png_file: str, segments: list[dict], labels: dict[int, int]) -> np.ndarray:
    """Read segment ids and return labels (H, W)."""
    if not os.path.isfile(png_file):
        raise MissingFileError(f"panoptic PNG file {png_file!r} does not exist; check the folder")
    with Image.open(png_file) as image:
        colors = np.asarray(image.convert("RGB"), dtype=np.int64)  # (H, W, 3)
    unknown = [segment["category_id"] for segment in segments if segment["category_id"] not in labels]
    if unknown:
        raise DatasetError(f"{png_file}: category {unknown[0]!r} of a segment is not in 'categories'")
    ids, index = np.unique(colors @ np.array([1, 256, 256**2]), return_inverse=True)
    label_of_segment = {segment["id"]: labels[segment["category_id"]] for segment in segments}
    values = np.array([label_of_segment.get(i, IGNORE_LABEL) for i in ids.tolist()], dtype=np.uint8)
    return values[index].reshape(colors.shape[:2])


if __name__ == "__main__":
    run_tool(run)
