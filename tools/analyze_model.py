#!/usr/bin/env python
"""Count what a model costs: parameters, floating point operations and activations, for each of its parts."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from detlib import model_zoo
from detlib.config import CfgNode, get_cfg
from detlib.data import build_detection_test_loader
from detlib.data import transforms as T
from detlib.data.datasets.register import register_datasets
from detlib.data.detection_utils import build_augmentation
from detlib.engine.setup import run_tool
from detlib.modeling import build_model
from detlib.modeling.meta_arch import ModuleGraph
from detlib.modeling.meta_arch.graph.summary import summarize_graph
from detlib.utils.analysis import (
    ActivationCountAnalysis,
    FlopCountAnalysis,
    flop_count_table,
    parameter_count,
    parameter_count_table,
)
from detlib.utils.errors import ConfigError
from detlib.utils.logger import setup_logger
from detlib.visualization.graph import check_picture_path, draw_graph
from detlib.visualization.graph_table import graph_table

EXAMPLES = """
Examples:
  parameters and operations of a model of the zoo; nothing is downloaded, and no dataset is needed:
      {prog} --zoo COCO-Detection/retinanet_R_50_FPN_3x.yaml
  of your own config, down to single layers, for images of another size:
      {prog} --config-file config.yaml --tasks flop --depth 5 --size 480 640
  averages over 50 images of DATASETS.TEST rather than for one random image:
      {prog} --config-file config.yaml --tasks flop activation --use-data --num-inputs 50
  the modules, as torch prints them:
      {prog} --config-file config.yaml --tasks structure
  the nodes of a ModuleGraph, what flows between them and what each costs, as a table and as a picture:
      {prog} --config-file configs/graph/multi_task_shapes.yaml --graph graph.png

A multiplication with its addition counts as one operation. Weights are random; this changes the counts only of heads
that run on proposals, which are fewer than those of a trained model.
"""

COMMON_SIZE = (600, 800)  # height and width
UNITS = {"flop": (1e9, "billion operations"), "activation": (1e6, "million activations")}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config-file", metavar="FILE", help="config of the model")
    model.add_argument("--zoo", metavar="NAME", help="config that comes with detlib, by its name below configs/")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=("parameter", "flop", "activation", "structure"),
        help="what to print (default: parameter flop, if there is no --graph)",
    )
    parser.add_argument(
        "--graph",
        nargs="?",
        const="",
        metavar="PICTURE",
        help="print the nodes of a ModuleGraph with shapes and costs, and draw them as PICTURE (.png, .svg or .pdf)",
    )
    parser.add_argument(
        "--depth", type=int, default=3, metavar="N", help="levels of modules in the tables (default: 3)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the random image (default: that of an image of 600 x 800 pixels as evaluation would resize it)",
    )
    parser.add_argument("--use-data", action="store_true", help="count on images of DATASETS.TEST")
    parser.add_argument("--num-inputs", type=int, default=10, metavar="N", help="images of --use-data (default: 10)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="changes of the config"
    )
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    if min(args.num_inputs, args.depth, *(args.size or [1])) < 1:
        raise ConfigError("--num-inputs, --depth and --size must be 1 or more")
    if args.graph:
        check_picture_path(args.graph)
    setup_logger()
    cfg = load_config(args)
    register_datasets(cfg)
    model = build_model(cfg).eval()
    if args.graph is not None:
        show_graph(model, next(inputs_of(cfg, args)), Path(args.zoo or args.config_file).name, args.graph)
    for task in args.tasks or (["parameter", "flop"] if args.graph is None else []):
        if task == "structure":
            print(f"\n{model}")
        elif task == "parameter":
            print_parameters(model, args.depth)
        else:
            print_counts(task, model, inputs_of(cfg, args), args.depth)


def load_config(args: argparse.Namespace) -> CfgNode:
    if args.zoo:
        cfg = model_zoo.get_config(args.zoo)
    else:
        cfg = get_cfg()
        cfg.merge_from_file(args.config_file)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def inputs_of(cfg: CfgNode, args: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Batches of one image."""
    if args.use_data:
        if not cfg.DATASETS.TEST:
            raise ConfigError("--use-data needs a dataset; add --opts DATASETS.TEST='[name]'")
        loader = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])
        return islice(iter(loader), args.num_inputs)
    height, width = args.size or test_size(cfg)
    print(f"\nInput: a random image, {height} pixels high and {width} wide.")
    return iter([[{"image": torch.rand(3, height, width) * 255, "height": height, "width": width}]])


def test_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width to which evaluation would resize an image of the usual 4:3."""
    image = T.AugInput(np.zeros((*COMMON_SIZE, 3), dtype=np.uint8))
    T.AugmentationList(build_augmentation(cfg, is_train=False))(image)
    return image.image.shape[:2]


def print_parameters(model: nn.Module, depth: int) -> None:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"\nParameters:\n{parameter_count_table(model, max_depth=depth)}")
    print(f"{parameter_count(model)['']:,} parameters, {trainable:,} of them trained.")


def print_counts(task: str, model: nn.Module, inputs: Iterator[list[dict[str, Any]]], depth: int) -> None:
    analysis_class = FlopCountAnalysis if task == "flop" else ActivationCountAnalysis
    totals, operators = [], Counter()
    for batch in inputs:
        analysis = analysis_class(model, batch).uncalled_modules_warnings(False)
        totals.append(analysis.total())
        operators.update(analysis.by_operator())
    unit, name = UNITS[task]
    print(f"\n{name.capitalize()}, by part, of the {'last ' if len(totals) > 1 else ''}image:")
    print(flop_count_table(analysis, max_depth=depth, show_param_shapes=False).replace("#flops", f"#{task}s"))
    shares = ", ".join(f"{operator} {count / sum(totals):.1%}" for operator, count in operators.most_common(8))
    print(f"By operator: {shares}.")
    spread = f" on average of {len(totals)} images (standard deviation {np.std(totals) / unit:.3f})"
    print(f"{np.mean(totals) / unit:.3f} {name}{spread if len(totals) > 1 else ''}.")


def show_graph(model: nn.Module, batch: list[dict[str, Any]], title: str, path: str) -> None:
    """Print a ModuleGraph as a table, and draw it if there is a path."""
    if not isinstance(model, ModuleGraph):
        raise ConfigError(
            f"--graph shows models with MODEL.META_ARCHITECTURE ModuleGraph, and this one is a {type(model).__name__}; "
            f"--tasks structure shows its modules, and --tasks parameter flop what they cost"
        )
    summary = summarize_graph(model, batch)
    print(f"\nNodes, as they run when not training:\n{graph_table(summary)}")
    if path:
        height, width = batch[0]["image"].shape[-2:]
        draw_graph(summary, path, f"{title}, for an image of {height} x {width} pixels")
        print(f"\nThe picture is in {path}.")


if __name__ == "__main__":
    run_tool(run)
