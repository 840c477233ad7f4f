#!/usr/bin/env python
"""Draw a dataset: its annotations as they are, or what the model is fed after augmentation."""

import argparse
import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor
from tqdm import tqdm

from detlib.config import CfgNode, get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detlib.data.datasets.register import register_datasets
from detlib.data.detection_utils import convert_image_to_rgb, image_of
from detlib.engine.setup import add_overrides, run_tool
from detlib.structures import Instances
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import ConfigError, DatasetError
from detlib.utils.logger import setup_logger
from detlib.visualization import VisImage, Visualizer, readable_scale

EXAMPLES = """
Examples:
  what training sees, augmented and resized, of the first 20 images:
      {prog} --config-file config.yaml
  the annotations themselves, of all images, crowd regions hatched:
      {prog} --config-file config.yaml --source annotation --limit 100000 --output-dir annotations/
  a registered dataset without any config:
      {prog} --source annotation --dataset shapes_val
  with masks, and other augmentation than the config has:
      {prog} --config-file config.yaml MODEL.MASK_ON=True INPUT.CROP.ENABLED=True
  images with their labels, in a folder for each class:
      {prog} --source annotation DATASETS.TRAIN="[leaves]" \\
          DATASETS.REGISTER="[{{NAME: leaves, TYPE: image_folder, IMAGES: leaves}}]"
  the views of self-supervised learning, side by side, with the mask and the target image if there are any:
      {prog} --config-file configs/SelfSupervised/tiny/cae.yaml
  in a window, one image per key (Esc quits):
      {prog} --config-file config.yaml --show
"""

ESCAPE_KEY = 27
GAP = 4  # Pixels between views.


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source",
        choices=("annotation", "dataloader"),
        default="dataloader",
        help="files of the dataset, or samples of the training loader (default: dataloader)",
    )
    parser.add_argument("--config-file", metavar="FILE", help="config whose DATASETS.TRAIN is drawn")
    parser.add_argument("--dataset", metavar="NAME", help="draw this registered dataset instead")
    parser.add_argument(
        "--output-dir", default="visualized", metavar="DIR", help="for the pictures (default: visualized)"
    )
    parser.add_argument("--show", action="store_true", help="show the pictures in a window and write none")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="stop after N images (default: 20)")
    parser.add_argument(
        "--scale", type=float, metavar="X", help="size of the pictures (default: 1, more for thumbnails)"
    )
    add_overrides(parser)
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    if args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}; expected 1 or more")
    setup_logger()
    cfg = load_config(args)
    register_datasets(cfg)
    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
    pictures = draw_annotations if args.source == "annotation" else draw_loader
    deliver(islice(pictures(cfg, args.scale), args.limit), args)


def load_config(args: argparse.Namespace) -> CfgNode:
    cfg = get_cfg()
    # A few images are read faster than worker processes start; and their errors stay readable.
    cfg.DATALOADER.NUM_WORKERS = 0
    if args.config_file:
        cfg.merge_from_file(args.config_file)
        cfg.DATALOADER.NUM_WORKERS = 0
    if args.dataset:
        cfg.DATASETS.TRAIN = (args.dataset,)
    cfg.merge_from_list(args.opts)
    cfg.SOLVER.IMS_PER_BATCH = 1  # No picture needs to wait until a batch of thousands is full.
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("no dataset is named; add --dataset NAME, or a --config-file with DATASETS.TRAIN")
    cfg.freeze()
    return cfg


def draw_annotations(cfg: CfgNode, scale: float | None) -> Iterator[tuple[str, VisImage]]:
    """Name and picture of each sample, as its dataset describes it."""
    for name in cfg.DATASETS.TRAIN:
        samples = DatasetCatalog.get(name)
        if len(samples) == 0:
            raise DatasetError(f"dataset {name!r} has no images")
        for number, sample in enumerate(samples, start=1):
            image = image_of(sample, format="RGB")
            visualizer = Visualizer(image, MetadataCatalog.get(name), scale or readable_scale(*image.shape[:2]))
            yield picture_name(sample, number), visualizer.draw_dataset_dict(sample)


def draw_loader(cfg: CfgNode, scale: float | None) -> Iterator[tuple[str, VisImage]]:
    """Name and picture of each sample that training would take, endlessly."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    number = 0
    for batch in build_detection_train_loader(cfg):
        for sample in batch:
            image = grid_of_views(cfg, sample) if "views" in sample else to_rgb(cfg, sample["image"])
            visualizer = Visualizer(image, metadata, scale or readable_scale(*image.shape[:2]))
            number += 1
            # An image may come again, augmented otherwise.
            yield f"{number:04d}_{picture_name(sample, number)}", draw_sample(visualizer, sample)


def to_rgb(cfg: CfgNode, image: Tensor) -> np.ndarray:
    return convert_image_to_rgb(image.permute(1, 2, 0), cfg.INPUT.FORMAT)


def grid_of_views(cfg: CfgNode, sample: dict[str, Any]) -> np.ndarray:
    """All views of a sample, then the first one with hidden patches in gray, and the target image, on white."""
    pictures = [to_rgb(cfg, view) for view in sample["views"]]
    if "mask" in sample:
        height, width = pictures[0].shape[:2]
        hidden = cv2.resize(sample["mask"].numpy().astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        pictures.append(np.where(hidden[:, :, None] == 1, np.uint8(128), pictures[0]))
    if "target_image" in sample:
        pictures.append(to_rgb(cfg, sample["target_image"]))
    num_columns = math.ceil(math.sqrt(len(pictures)))
    num_rows = math.ceil(len(pictures) / num_columns)
    height, width = (max(picture.shape[axis] for picture in pictures) + GAP for axis in (0, 1))
    grid = np.full((num_rows * height - GAP, num_columns * width - GAP, 3), 255, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        y, x = place // num_columns * height, place % num_columns * width
        grid[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return grid


def draw_sample(visualizer: Visualizer, sample: dict[str, Any]) -> VisImage:
    """Draw the targets of a mapped sample."""
    if "sem_seg" in sample:
        visualizer.draw_sem_seg(sample["sem_seg"], alpha=0.5)
    if "instances" in sample:
        targets = sample["instances"]
        fields = {name.replace("gt_", "pred_", 1): value for name, value in targets.get_fields().items()}
        visualizer.draw_instance_predictions(Instances(targets.image_size, **fields))
    return visualizer.draw_image_labels(sample)


def picture_name(sample: dict[str, Any], number: int) -> str:
    """That of the image's file; some datasets have their images in one file, or in memory."""
    return Path(sample.get("file_name", f"image_{sample.get('image_id', number)}.png")).name


def deliver(pictures: Iterator[tuple[str, VisImage]], args: argparse.Namespace) -> None:
    folder = Path(args.output_dir).expanduser()
    count = 0
    used: set[str] = set()
    for name, picture in tqdm(pictures, unit="image", disable=None):
        count += 1
        if args.show:
            if not show(picture):
                break
            continue
        folder.mkdir(parents=True, exist_ok=True)
        # Images in the folders of different classes may have the same name.
        target = folder / (name if name not in used else f"{count:04d}_{name}")
        used.add(target.name)
        picture.save(str(target))
        tqdm.write(f"[{count}] {target}", file=sys.stdout)
    print(f"{count} images" + ("" if args.show else f" -> {folder}"))


def show(picture: VisImage) -> bool:
    """Show the picture until a key is pressed; False for Esc."""
    try:
        cv2.imshow("detlib: any key for the next, Esc quits", picture.get_image()[:, :, ::-1])
        return cv2.waitKey() != ESCAPE_KEY
    except cv2.error as error:
        raise ConfigError("there is no display for --show; leave it out to write pictures to --output-dir") from error


if __name__ == "__main__":
    run_tool(run)
