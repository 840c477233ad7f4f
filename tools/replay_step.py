#!/usr/bin/env python
"""Make a step of training again that was not finite, and say where it goes wrong.

Training writes such a step to OUTPUT_DIR/faults. The model is built from the config in it, whose CUSTOM_IMPORTS are run
as those of any config.
"""

import argparse
import os
import sys
import tempfile
from typing import Any

from detlib.config import CfgNode, get_cfg
from detlib.engine.diagnosis import describe_trace, load_step, read_step, trace_step
from detlib.engine.diagnosis.step import samples_of
from detlib.engine.setup import add_overrides, run_tool
from detlib.modeling import build_model
from detlib.utils.errors import MissingFileError
from detlib.utils.logger import setup_logger

EXAMPLES = """
Examples:
  as it was:
      {prog} output/faults/iteration_0000123.pth
  on the CPU, and without mixed precision:
      {prog} output/faults/iteration_0000123.pth --precision float32 MODEL.DEVICE=cpu
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("step", metavar="FILE", help="a file in OUTPUT_DIR/faults")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="of autocast, float32 being none (default: that of the training)",
    )
    add_overrides(parser)
    return parser.parse_args()


def load_config(step: dict[str, Any], overrides: list[str]) -> CfgNode:
    cfg = get_cfg()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "config_of_the_step.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(step["config"])
        cfg.merge_from_file(path)
    cfg.merge_from_list(overrides)
    cfg.freeze()
    return cfg


def run() -> None:
    args = parse_args()
    if not os.path.isfile(args.step):
        raise MissingFileError(f"there is no file {args.step}")
    setup_logger()
    step = read_step(args.step)
    cfg = load_config(step, args.opts)
    precision = step["precision"] if args.precision is None else args.precision.replace("float32", "")
    model = build_model(cfg)
    model.train()
    parts = load_step(model, step)
    print(f"Training: {step['error']}")
    print(f"Batch: {', '.join(name for batch, _ in parts for name in samples_of(batch))}")
    if step["not_restored"]:
        print(f"Numbers may differ, as the step had changed these already: {', '.join(step['not_restored'])}")
    found = trace_step(model, parts, step["num_parts"], precision, backward=True)
    print("Again: " + (", ".join(f"{name}={value:.4g}" for name, value in found.losses.items()) or found.error))
    for line in describe_trace(model, found):
        print(line)
    if not found.is_faulty:
        print("All outputs and gradients are finite.")
        sys.exit(1)


if __name__ == "__main__":
    run_tool(run)
