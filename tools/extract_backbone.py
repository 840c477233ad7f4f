#!/usr/bin/env python
"""Take the backbone out of a checkpoint, as weights to start another model from: a classifier, or a detector."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from detlib.checkpoint.detection_checkpoint import WRAPPER_PREFIXES
from detlib.checkpoint.files import local_path, missing_checkpoint, read_checkpoint, write_atomically
from detlib.checkpoint.torchvision_names import from_torchvision_names, torchvision_family
from detlib.engine.setup import run_tool
from detlib.modeling.self_supervised.vision_transformer import plain_vit_weights
from detlib.utils.errors import CheckpointError, ConfigError
from detlib.utils.file_io import PathManager

EXAMPLES = """
Examples:
  of a self-supervised model, for a detector:
      {prog} output/moco/model_final.pth moco_r50.pth
      python tools/train_net.py --config-file configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml \\
          MODEL.WEIGHTS=moco_r50.pth
  of a checkpoint of other software, in which the backbone is encoder_q:
      {prog} moco_v2_800ep_pretrain.pth.tar moco_r50.pth --prefix encoder_q.

Of a detector, what is below its neck is taken. The model that loads the file needs a backbone like this one, and images
as this one had them: INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, for ResNets MODEL.RESNETS.STRIDE_IN_1X1.
"""

BELOW_NECK = "bottom_up."
# Parts of self-supervised models that follow the trained backbone as its average, or are a copy of it.
FOLLOWERS = ("encoder_k", "target_net", "momentum_encoder", "teacher")

Weights = dict[str, Tensor]


def rename_torchvision(weights: Weights) -> Weights:
    return {new: weights[old] for old, new in from_torchvision_names(weights).items()}


# What backbones are recognised by whose weights detectors know under other names or in another form, and what makes
# them such.
CONVERSIONS: list[tuple[Callable[[Weights], bool], Callable[[Weights], Weights]]] = [
    (lambda weights: torchvision_family(weights) is not None, rename_torchvision),
    # CAE's ViT: factors of branches, separate biases of queries and values.
    (lambda weights: any(name.endswith((".gamma_1", ".q_bias")) for name in weights), plain_vit_weights),
]


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
    prefix = f"{args.prefix.rstrip('.')}."
    if followers := [name for name in FOLLOWERS if name in prefix.split(".")]:
        raise ConfigError(f"--prefix is {args.prefix!r}, but {followers[0]} only follows the backbone that was trained")
    if not args.output.endswith(".pth"):
        raise ConfigError(f"the output is {args.output!r}; its name must end with .pth")
    source = local_path(PathManager, args.checkpoint)
    if not os.path.isfile(source):
        raise missing_checkpoint(source)
    if os.path.exists(args.output) and os.path.samefile(source, args.output):
        raise ConfigError(f"{args.output} is the checkpoint itself; write to another file")
    weights = {name: torch.as_tensor(value) for name, value in read_checkpoint(source)["model"].items()}
    for wrapper in WRAPPER_PREFIXES:
        consume_prefix_in_state_dict_if_present(weights, wrapper)
    backbone = extract_backbone(weights, prefix)
    # Names without prefix: what loads them takes those of its own that end so.
    data = {"model": backbone, "__author__": "detlib", "matching_heuristics": True}
    write_atomically(PathManager, args.output, lambda file: torch.save(data, file))
    print(f"It is in {args.output}, to be loaded by MODEL.WEIGHTS={args.output}.")


def extract_backbone(weights: Weights, prefix: str = "backbone.") -> Weights:
    """The weights of a backbone without prefix; tells what they are.

    Args:
        weights: of the whole model.

    Raises:
        CheckpointError: there are none.
    """
    if any(name.startswith(prefix + BELOW_NECK) for name in weights):
        prefix += BELOW_NECK
    backbone = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    if not backbone:
        raise CheckpointError(
            f"no weight of the checkpoint starts with {prefix!r}; they start with {first_parts(weights)}. Name the "
            "backbone: --prefix NAME"
        )
    for is_one, converted in CONVERSIONS:
        if is_one(backbone):
            backbone = converted(backbone)
    num_values = sum(weight.numel() for weight in backbone.values())
    print(f"Taken: {len(backbone)} tensors with {num_values:,} values from {prefix}*: {first_parts(backbone)}")
    rest = [name for name in weights if not name.startswith(prefix)]
    print(f"Left out: {first_parts(rest) or 'nothing'}")
    return backbone


def first_parts(names: Iterable[str]) -> str:
    """How names start, and how many of them."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


if __name__ == "__main__":
    run_tool(run)
