#!/usr/bin/env python
"""Reduce LVIS annotations to COCO's 80 classes, with COCO's ids, so that COCO's models can be evaluated on them.

The classes are matched by WordNet synset, as the file coco_to_synset.json of LVIS's authors states it:
{"person": {"coco_cat_id": 1, "meaning": ..., "synset": "person.n.01"}, ...}.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from detlib.data.datasets.builtin import datasets_root
from detlib.data.datasets.builtin_meta import COCO_CATEGORIES
from detlib.engine.setup import run_tool
from detlib.utils.errors import DatasetError, MissingFileError

EXAMPLES = """
Examples:
  LVIS v0.5, train and val, in the folder of datasets (DETLIB_DATASETS):
      {prog} --synsets coco_to_synset.json
  other files; each gets a neighbour named *_cocofied.json:
      {prog} --synsets coco_to_synset.json lvis_v1_val.json
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--synsets", required=True, metavar="FILE", help="coco_to_synset.json of LVIS's authors")
    lvis = os.path.join(datasets_root(), "lvis")
    default = [os.path.join(lvis, f"lvis_v0.5_{split}.json") for split in ("train", "val")]
    parser.add_argument("files", nargs="*", default=default, metavar="JSON", help="annotations of LVIS")
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    try:
        coco_id_of_synset = {entry["synset"]: entry["coco_cat_id"] for entry in read(args.synsets).values()}
    except (AttributeError, KeyError, TypeError) as error:
        raise DatasetError(f"{args.synsets} is not LVIS's table of COCO's synsets: {error!r}") from error
    for path in args.files:
        try:
            content = cocofy(read(path), coco_id_of_synset)
        except (KeyError, TypeError) as error:
            raise DatasetError(f"{path} is not in LVIS's format: {error!r}; its classes need a 'synset'") from error
        target = f"{os.path.splitext(path)[0]}_cocofied.json"
        with open(target, "w", encoding="utf-8") as file:
            json.dump(content, file)
        print(f"{len(content['annotations'])} annotations -> {target}")


def read(path: str) -> Any:
    if not os.path.isfile(path):
        raise MissingFileError(f"file {path!r} does not exist; set DETLIB_DATASETS or correct the path")
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise DatasetError(f"{path} is not valid JSON: {error}") from None


def cocofy(content: dict[str, Any], coco_id_of_synset: dict[str, int]) -> dict[str, Any]:
    """Keep what is of COCO's classes, under their ids. Two classes of LVIS may become one."""
    things = [category for category in COCO_CATEGORIES if category["isthing"]]
    new_id = {
        category["id"]: coco_id_of_synset[category["synset"]]
        for category in content["categories"]
        if category["synset"] in coco_id_of_synset
    }
    synsets = {coco_id: synset for synset, coco_id in coco_id_of_synset.items()}
    categories = [{"id": c["id"], "name": c["name"], "synset": synsets.get(c["id"], "")} for c in things]
    annotations = [
        {**annotation, "category_id": new_id[annotation["category_id"]]}
        for annotation in content["annotations"]
        if annotation["category_id"] in new_id
    ]
    images_of = {category["id"]: set() for category in categories}
    instances_of = dict.fromkeys(images_of, 0)
    for annotation in annotations:
        images_of[annotation["category_id"]].add(annotation["image_id"])
        instances_of[annotation["category_id"]] += 1
    for category in categories:
        count = len(images_of[category["id"]])
        # LVIS's limits: rare in up to 10 images, common in up to 100.
        category["frequency"] = "r" if count <= 10 else "c" if count <= 100 else "f"
        category |= {"image_count": count, "instance_count": instances_of[category["id"]]}
    images = [
        {
            **image,
            **{key: mapped(image.get(key, []), new_id) for key in ("neg_category_ids", "not_exhaustive_category_ids")},
        }
        for image in content["images"]
    ]
    return {**content, "images": images, "annotations": annotations, "categories": categories}


def mapped(category_ids: Iterable[int], new_id: dict[int, int]) -> list[int]:
    return sorted({new_id[category_id] for category_id in category_ids if category_id in new_id})


if __name__ == "__main__":
    run_tool(run)
