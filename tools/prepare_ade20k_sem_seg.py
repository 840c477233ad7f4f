#!/usr/bin/env python
"""Shift the label maps of ADE20k's scene parsing challenge: 1 ... 150 become 0 ... 149, and 0, unlabelled, 255.

Reads ADEChallengeData2016/annotations and writes ADEChallengeData2016/annotations_detectron2.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from detlib.data.datasets.builtin import datasets_root
from detlib.data.label_maps import read_label_map
from detlib.engine.setup import run_tool
from detlib.utils.errors import MissingFileError

EXAMPLES = """
Example, for files in the folder of datasets (DETLIB_DATASETS):
  {prog}
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = os.path.join(datasets_root(), "ADEChallengeData2016")
    parser.add_argument("--root", default=default, metavar="DIR", help=f"folder of the dataset (default: {default})")
    return parser.parse_args()


def run() -> None:
    root = Path(parse_args().root)
    for split in ("training", "validation"):
        source, target = root / "annotations" / split, root / "annotations_detectron2" / split
        files = sorted(source.glob("*.png"))
        if not files:
            raise MissingFileError(f"{source} holds no *.png; set DETLIB_DATASETS, or name the dataset with --root")
        target.mkdir(parents=True, exist_ok=True)
        for file in tqdm(files, desc=split, disable=None):
            labels = read_label_map(file).astype(np.uint8)
            Image.fromarray(labels - np.uint8(1)).save(target / file.name)  # 0 - 1 is 255 in 8 bits.
        print(f"{len(files)} label maps -> {target}")


if __name__ == "__main__":
    run_tool(run)
