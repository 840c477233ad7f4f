#!/usr/bin/env python
"""Draw what a masked image model makes of hidden patches: the image, what the model saw, and the gaps filled in."""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import CfgNode, get_cfg
from detlib.data import build_detection_train_loader
from detlib.data.datasets.register import register_datasets
from detlib.data.detection_utils import convert_image_to_rgb
from detlib.engine.setup import add_overrides, run_tool
from detlib.modeling import build_model
from detlib.modeling.self_supervised import MAE, SimMIM
from detlib.modeling.self_supervised.masking import patchify, unpatchify
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import ConfigError
from detlib.utils.logger import setup_logger
from detlib.visualization import readable_scale

EXAMPLES = """
Examples:
  of 20 images of DATASETS.TRAIN, as training crops them:
      {prog} --config-file configs/SelfSupervised/tiny/mae.yaml --weights output/tiny_mae/model_final.pth
  of others, with other masks:
      {prog} --config-file config.yaml --weights model_final.pth --limit 5 DATASETS.TRAIN="[leaves]" SEED=2

The model must predict pixels: MAE or SimMIM. With NORM_PIX, MAE predicts patches without their mean and contrast, which
are taken from the image.
"""

GAP = 4  # Pixels between pictures.
GRAY = 128


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", metavar="FILE", required=True, help="config of the model and its views")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint (default: MODEL.WEIGHTS)")
    parser.add_argument(
        "--output-dir", default="reconstructed", metavar="DIR", help="for the pictures (default: reconstructed)"
    )
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="stop after N images (default: 20)")
    add_overrides(parser)
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    if args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}; expected 1 or more")
    setup_logger()
    cfg = load_config(args)
    register_datasets(cfg)
    seed_all_rng(max(cfg.SEED, 0))
    folder = Path(args.output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, picture) in enumerate(islice(pictures(cfg), args.limit), start=1):
        target = folder / f"{number:04d}_{name}.png"  # An image may come again, cropped otherwise.
        scale = readable_scale(*picture.shape[:2])
        Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1)).save(target)
        print(f"[{number}] {target}")


def load_config(args: argparse.Namespace) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.WEIGHTS = args.weights or cfg.MODEL.WEIGHTS
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("there are no weights; add --weights FILE")
    cfg.DATALOADER.NUM_WORKERS = 0  # A few images are read faster than worker processes start.
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.freeze()
    return cfg


def pictures(cfg: CfgNode) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture (H, W, 3) of samples as training takes them, endlessly."""
    model = build_model(cfg)
    if not isinstance(model, MAE | SimMIM):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {type(model).__name__}, which predicts no pixels of hidden patches; MAE and "
            "SimMIM do"
        )
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    model.eval()
    for batch in build_detection_train_loader(cfg):
        reconstruction, mask = reconstruct(model, batch)
        image, filled = (
            convert_image_to_rgb(pixels.permute(1, 2, 0), cfg.INPUT.FORMAT)
            for pixels in (batch[0]["views"][0], reconstruction)
        )
        yield Path(batch[0].get("file_name", "image")).stem, side_by_side(image, filled, mask)


def reconstruct(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[Tensor, np.ndarray]:
    """What the model makes of the one sample of a batch: pixels (3, H, W) in 0 to 255, and the mask (H, W)."""
    (output,) = model(batch, mode="predict")
    pixels = output["reconstruction"]
    if isinstance(model, MAE) and model.head.norm_pix:
        images, patch_size = model.preprocess_views(batch)[0], model.head.patch_size
        patches = model.head.pixels(patchify(pixels[None], patch_size), images)
        pixels = unpatchify(patches, patch_size, images.shape[2:])[0] * model.pixel_std + model.pixel_mean
    return pixels.clamp(0, 255).round().byte().cpu(), output["mask"].cpu().numpy()


def side_by_side(image: np.ndarray, filled: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image, the image with hidden pixels in gray, and with those that were predicted; (H, W, 3) each."""
    hidden = mask[:, :, None]
    gap = np.full((len(image), GAP, 3), 255, dtype=np.uint8)
    seen = np.where(hidden, np.uint8(GRAY), image)
    return np.concatenate([image, gap, seen, gap, np.where(hidden, filled, image)], axis=1)


if __name__ == "__main__":
    run_tool(run)
