#!/usr/bin/env python
"""Make label maps of stuff from panoptic PNG files, as Panoptic FPN and semantic FPN learn them.

In these maps 0 stands for all things, 1, 2, ... for stuff by rising category id, and 255 for pixels without a label.
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from detlib.data.datasets.builtin import COCO_PANOPTIC, datasets_root
from detlib.data.datasets.paths import Folder
from detlib.data.label_maps import IGNORED, read_segment_ids, semantic_labels_of
from detlib.engine.setup import run_tool
from detlib.utils.errors import ConfigError, DatasetError, MissingFileError

EXAMPLES = """
Examples:
  COCO's train2017 and val2017 in the folder of datasets (DETLIB_DATASETS):
      {prog}
  own data in COCO's panoptic format:
      {prog} --panoptic-json panoptic.json --panoptic-root panoptic/ --output-dir panoptic_stuff/
"""

MIN_FILES_FOR_PROCESSES = 100


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
        samples = [(a["file_name"], segments_of(a, labels)) for a in content["annotations"]]
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{panoptic_json} is not in COCO's panoptic format ({error!r}); expected 'categories' with id and isthing, "
            "and 'annotations' with file_name and segments_info"
        ) from error
    os.makedirs(output_dir, exist_ok=True)
    written = write_all(samples, panoptic_root, output_dir)
    for _ in tqdm(written, total=len(samples), desc=os.path.basename(panoptic_json), unit="image", disable=None):
        pass
    print(f"{len(samples)} label maps -> {output_dir}")


def labels_of_categories(categories: list[dict[str, Any]]) -> dict[int, int]:
    """Category id -> pixel value of the label map."""
    stuff = sorted(category["id"] for category in categories if not category["isthing"])
    if len(stuff) >= IGNORED:
        raise DatasetError(f"{len(stuff)} categories of stuff do not fit in a map of 8 bits, which has room for 254")
    things = {category["id"]: 0 for category in categories if category["isthing"]}
    return things | {category_id: label for label, category_id in enumerate(stuff, start=1)}


def segments_of(annotation: dict[str, Any], labels: dict[int, int]) -> list[dict[str, int]]:
    """Id and label of each segment of an image."""
    segments = annotation["segments_info"]
    unknown = [segment["category_id"] for segment in segments if segment["category_id"] not in labels]
    if unknown:
        raise DatasetError(
            f"{annotation['file_name']}: a segment has the category {unknown[0]!r}, which is not in 'categories'; add "
            "it there"
        )
    return [{"id": segment["id"], "sem_seg_label": labels[segment["category_id"]]} for segment in segments]


def write_all(samples: list[tuple[str, list[dict[str, int]]]], panoptic_root: str, output_dir: str) -> Iterator[None]:
    """Write the label maps, in several processes where there are many and the system can fork."""
    write = functools.partial(write_label_map, panoptic_root=panoptic_root, output_dir=output_dir)
    if len(samples) < MIN_FILES_FOR_PROCESSES or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(write, samples)
        return
    with multiprocessing.get_context("fork").Pool(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.imap_unordered(write, samples, chunksize=8)


def write_label_map(sample: tuple[str, list[dict[str, int]]], panoptic_root: str, output_dir: str) -> None:
    file_name, segments = sample
    json_file = "the panoptic JSON file"
    source = Folder(panoptic_root, json_file, argument="--panoptic-root").join(file_name, "an annotation")
    if not os.path.isfile(source):
        raise MissingFileError(f"panoptic PNG file {source!r} does not exist; check the folder, or unpack it again")
    labels = semantic_labels_of({"pan_seg_file_name": source, "segments_info": segments})
    if labels is None:  # There is no segment.
        labels = np.full(read_segment_ids(source).shape, IGNORED)
    target = Folder(output_dir, json_file).join(f"{os.path.splitext(file_name)[0]}.png", "an annotation")
    Image.fromarray(labels.astype(np.uint8)).save(target)


if __name__ == "__main__":
    run_tool(run)
