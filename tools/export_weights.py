#!/usr/bin/env python
"""Write the weights of a checkpoint, without the state of its training, to a .safetensors file.

The file is smaller and cannot run code; other software reads it, too. It says which classes and which preprocessing the
model has. To take only the backbone, as a start for another model, use extract_backbone.py.
"""

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from detlib.checkpoint.files import read_checkpoint, source_of_copy, write_safetensors
from detlib.checkpoint.hand_over import remove_wrappers
from detlib.checkpoint.metadata import METADATA_KEY, with_versions
from detlib.engine.setup import run_tool
from detlib.utils.errors import CheckpointError, ConfigError
from detlib.utils.file_io import PathManager

EXAMPLES = """
Examples:
  of the best model of a training, and its use:
      {prog} output/model_best.pth detector.safetensors
      python tools/train_net.py --config-file output/config.yaml --eval-only MODEL.WEIGHTS=detector.safetensors
  the averages (MODEL_EMA) that are in a checkpoint beside the weights:
      {prog} output/model_0009999.pth detector.safetensors --averages
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file, URL or address as MODEL.WEIGHTS takes it")
    parser.add_argument("output", metavar="OUTPUT", help="file to write, .safetensors")
    parser.add_argument("--averages", action="store_true", help="take the averaged weights of MODEL_EMA")
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    if not args.output.endswith(".safetensors"):
        raise ConfigError(f"the output is {args.output!r}; its name must end with .safetensors")
    source = source_of_copy(args.checkpoint, args.output)
    checkpoint = read_checkpoint(source)
    weights = {name: torch.as_tensor(value) for name, value in checkpoint["model"].items()}
    remove_wrappers(weights)
    if args.averages:
        weights |= averages_in(checkpoint, args.checkpoint)
    metadata = metadata_of(checkpoint)
    write_safetensors(PathManager, args.output, weights, metadata)
    num_values = sum(weight.numel() for weight in weights.values())
    sizes = " instead of ".join(f"{os.path.getsize(file) / 1e6:.1f} MB" for file in (args.output, source))
    print(f"{len(weights)} tensors with {num_values:,} values are in {args.output}: {sizes}.")
    for kind, names in (metadata.get("classes") or {}).items():
        print(f"{kind}: {', '.join(names)}")
    print(f"To be loaded by MODEL.WEIGHTS={args.output}")


def averages_in(checkpoint: Mapping[str, Any], name: str) -> dict[str, torch.Tensor]:
    hooks = checkpoint.get("trainer", {}).get("hooks", {})
    if "ModelEMA" not in hooks:
        raise CheckpointError(
            f"{name} has no averages of weights; they are in checkpoints of a training with MODEL_EMA.ENABLED, not in "
            "weights alone as model_ema_final.pth, which is the averages"
        )
    return dict(hooks["ModelEMA"]["averages"])


def metadata_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the checkpoint says of its training, or of this software if it says nothing; and its iteration."""
    metadata = with_versions(checkpoint.get(METADATA_KEY) or {})
    return {**metadata, "iteration": checkpoint["iteration"]} if "iteration" in checkpoint else metadata


if __name__ == "__main__":
    run_tool(run)
