#!/usr/bin/env python
"""Take the backbone out of a checkpoint, as weights to start another model from: a classifier, or a detector."""

import argparse
import sys

import torch

from detlib.checkpoint.files import read_checkpoint, source_of_copy, write_atomically
from detlib.checkpoint.hand_over import extract_backbone, first_parts, prefix_of_backbone, remove_wrappers
from detlib.checkpoint.report import group_names
from detlib.engine.setup import run_tool
from detlib.utils.errors import ConfigError
from detlib.utils.file_io import PathManager

EXAMPLES = """
Examples:
  of a self-supervised model, for a detector:
      {prog} output/moco/model_final.pth moco_r50.pth
      python tools/train_net.py --config-file configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml \\
          MODEL.WEIGHTS=moco_r50.pth
  of a checkpoint of other software, in which the backbone is encoder_q:
      {prog} moco_v2_800ep_pretrain.pth.tar moco_r50.pth --prefix encoder_q.

MODEL.WEIGHTS can do the same without a file in between. It finds the backbone of a model of detlib by itself:
      MODEL.WEIGHTS=output/moco/model_final.pth
      MODEL.WEIGHTS=moco_v2_800ep_pretrain.pth.tar?prefix=encoder_q.

Of a detector, what is below its neck is taken. The model that loads the file needs a backbone like this one, and images
as this one had them: INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, for ResNets MODEL.RESNETS.STRIDE_IN_1X1.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file, URL or address as MODEL.WEIGHTS takes it")
    parser.add_argument("output", metavar="OUTPUT", help="file to write, .pth")
    parser.add_argument(
        "--prefix", default="backbone.", metavar="NAME", help="what its weights start with (default: backbone.)"
    )
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    if not args.output.endswith(".pth"):
        raise ConfigError(f"the output is {args.output!r}; its name must end with .pth")
    source = source_of_copy(args.checkpoint, args.output)
    weights = {name: torch.as_tensor(value) for name, value in read_checkpoint(source)["model"].items()}
    remove_wrappers(weights)
    prefix = prefix_of_backbone(weights, args.prefix)
    backbone = extract_backbone(weights, prefix)
    num_values = sum(weight.numel() for weight in backbone.values())
    print(f"Taken: {len(backbone)} tensors with {num_values:,} values from {prefix}*:")
    for names, count in group_names(backbone, show_leaves=False):
        print(f"{count:8} {names}")
    rest = [name for name in weights if not name.startswith(prefix)]
    print(f"Left out: {first_parts(rest) or 'nothing'}")
    # Names without prefix: what loads them takes those of its own backbone.
    data = {"model": backbone, "__author__": "detlib", "matching_heuristics": True}
    write_atomically(PathManager, args.output, lambda file: torch.save(data, file))
    print(f"It is in {args.output}, to be loaded by MODEL.WEIGHTS={args.output}.")


if __name__ == "__main__":
    run_tool(run)
