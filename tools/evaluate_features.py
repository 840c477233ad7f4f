#!/usr/bin/env python
"""Tell how good the features of a frozen backbone are: nearest neighbours, a linear probe, a picture of the classes."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import CfgNode, get_cfg
from detlib.data import MetadataCatalog, build_feature_loader
from detlib.data.datasets.register import register_datasets
from detlib.engine.setup import add_overrides, run_tool
from detlib.evaluation.feature_evaluation import (
    RECIPES,
    LabelledFeatures,
    ProbeRecipe,
    extract_features,
    knn_accuracies,
    name_of_backbone,
    pca_projection,
    probe_accuracies,
    train_linear_probe,
    tsne_projection,
)
from detlib.evaluation.tables import rows_table
from detlib.modeling import build_model
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import ConfigError
from detlib.utils.logger import setup_logger
from detlib.visualization.graph import check_picture_path

EXAMPLES = """
Examples:
  neighbours among the images of DATASETS.TRAIN, for those of DATASETS.TEST, and a linear probe:
      {prog} --config-file config.yaml --weights output/model_final.pth --knn --linear
  beside a backbone that has learnt nothing, with a picture of both:
      {prog} --config-file config.yaml --weights output/model_final.pth --random --knn --plot classes.png
  the backbone of any checkpoint, in a classifier of your images, 2000 of each dataset:
      {prog} --config-file configs/Classification/resnet_50_imagenet.yaml --weights extracted.pth --knn --limit 2000 \\
          DATASETS.TRAIN="[leaves]" DATASETS.TEST="[more_leaves]" \\
          DATASETS.REGISTER="[{{NAME: leaves, TYPE: image_folder, IMAGES: leaves}}, ...]"
  the probe as MoCo has it, with a rate of its own:
      {prog} --config-file config.yaml --weights output/model_final.pth --linear --recipe moco --lr 10

Images are prepared as INPUT.AUGMENTATIONS_TEST says; where it is empty, their middle is taken, in the size of the first
of INPUT.VIEWS or else of 224 pixels.
Features are computed once. The published recipes augment training images: train an ImageClassifier with
MODEL.BACKBONE.FREEZE_AT 5 for them.
"""

NUM_NEIGHBOURS = (10, 20, 100, 200)
MAX_POINTS = 5000  # More make t-SNE slow and a picture a blot.
MAX_NAMED_CLASSES = 20
TEST_AUGMENTATIONS = [
    {"NAME": "ResizeShortestEdge", "SHORT_EDGE_LENGTH": 256},
    {"NAME": "CenterCrop", "SIZE": 224},
]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", metavar="FILE", required=True, help="config of a model with a backbone")
    parser.add_argument("--weights", metavar="FILE", help="checkpoint with such a backbone (default: MODEL.WEIGHTS)")
    parser.add_argument("--random", action="store_true", help="also, or only, a backbone with random weights")
    parser.add_argument("--knn", action="store_true", help="let the nearest training images vote")
    parser.add_argument("--linear", action="store_true", help="train a linear layer on the features")
    parser.add_argument("--plot", metavar="PICTURE", help="draw test features as points (.png, .svg or .pdf)")
    parser.add_argument(
        "--feature",
        default="",
        metavar="NAME",
        help="output of the backbone (default: MODEL.SSL.IN_FEATURE or last map)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="take N random images of each split")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images per batch (default: 32)")
    parser.add_argument(
        "--k", type=int, nargs="+", default=NUM_NEIGHBOURS, metavar="K", help="neighbours (default: 10 20 100 200)"
    )
    probe = parser.add_argument_group("linear probe")
    probe.add_argument("--recipe", choices=RECIPES, default="default", help="which others' to take (default: default)")
    probe.add_argument("--epochs", type=int, metavar="N", help="instead of those of the recipe")
    probe.add_argument("--lr", type=float, metavar="X", help="for the batch of the recipe, instead of its own")
    probe.add_argument("--weight-decay", type=float, metavar="X", help="instead of that of the recipe")
    add_overrides(parser)
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    check(args)
    setup_logger()
    cfg = load_config(args)
    register_datasets(cfg)
    recipe = recipe_of(args)
    clouds, reports = {}, []
    for title, weights in variants(cfg, args):
        train, test = features_of(cfg, args, weights)
        reports.append(f"\n{title}: {accuracies_of(train, test, recipe, args)}")
        clouds[title] = test
    print("\n".join(reports))  # Together, below what is logged.
    if args.plot:
        draw(clouds, class_names(cfg.DATASETS.TEST[0]), args.plot)


def check(args: argparse.Namespace) -> None:
    if not (args.knn or args.linear or args.plot):
        raise ConfigError("there is nothing to do; add --knn, --linear or --plot PICTURE")
    if min(args.batch_size, *args.k, *(n for n in (args.limit, args.epochs) if n is not None)) < 1:
        raise ConfigError("--limit, --batch-size, --k and --epochs must be 1 or more")
    if args.plot:
        check_picture_path(args.plot)


def load_config(args: argparse.Namespace) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    for key in ("TRAIN", "TEST"):
        if not cfg.DATASETS[key]:
            raise ConfigError(f"DATASETS.{key} is empty; add DATASETS.{key}='[name]'")
    if not (args.weights or args.random or cfg.MODEL.WEIGHTS):
        raise ConfigError(
            "there are no weights; add --weights FILE, or --random for a backbone that has learnt nothing"
        )
    if not (cfg.INPUT.AUGMENTATIONS_TEST or cfg.INPUT.VIEWS):
        print("INPUT.AUGMENTATIONS_TEST is empty: images are resized to 256 pixels and cropped to 224.")
        cfg.INPUT.AUGMENTATIONS_TEST = TEST_AUGMENTATIONS
    cfg.freeze()
    return cfg


def recipe_of(args: argparse.Namespace) -> ProbeRecipe:
    changes = {"epochs": args.epochs, "lr": args.lr, "weight_decay": args.weight_decay}
    return replace(RECIPES[args.recipe], **{name: value for name, value in changes.items() if value is not None})


def variants(cfg: CfgNode, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Title and checkpoint, if any, of what is to be evaluated."""
    weights = args.weights or ("" if args.random else cfg.MODEL.WEIGHTS)
    if weights:
        yield weights, weights
    if args.random:
        yield "random weights", ""


def features_of(cfg: CfgNode, args: argparse.Namespace, weights: str) -> tuple[LabelledFeatures, LabelledFeatures]:
    """Features of the training and the test images."""
    seed_all_rng(max(cfg.SEED, 0))
    model = build_model(cfg)
    if weights:
        DetectionCheckpointer(model).load_part(name_of_backbone(model), weights)
    device = next(model.parameters()).device
    loaders = [
        build_feature_loader(cfg, args.batch_size, names, args.limit)
        for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
    ]
    train, test = (
        extract_features(model, loader, args.feature or cfg.MODEL.SSL.IN_FEATURE).to(device) for loader in loaders
    )
    return train, test


def accuracies_of(
    train: LabelledFeatures, test: LabelledFeatures, recipe: ProbeRecipe, args: argparse.Namespace
) -> str:
    """What was evaluated, and a table."""
    num_images, channels = train.features.shape
    what = f"{channels} features of {num_images} training and {len(test.labels)} test images"
    rows = {}
    if args.knn:
        rows |= {f"{k} nearest": accuracies for k, accuracies in knn_accuracies(train, test, args.k).items()}
    if args.linear:
        num_classes = 1 + int(torch.cat([train.labels, test.labels]).max())
        rows["linear probe"] = probe_accuracies(train_linear_probe(train, num_classes, recipe), test)
    if not rows:
        return what
    headers = list(next(iter(rows.values())))
    return f"{what}\n{rows_table({name: list(values.values()) for name, values in rows.items()}, headers)}"


def class_names(dataset: str) -> list[str]:
    return list(MetadataCatalog.get(dataset).get("classes") or [])


def draw(clouds: dict[str, LabelledFeatures], names: list[str], path: str) -> None:
    """Draw each cloud of features in a row: by PCA and, if scikit-learn is there, by t-SNE."""
    from matplotlib.figure import Figure

    rows = [list(projections(title, cloud)) for title, cloud in clouds.items()]
    width, height = len(rows[0]), len(rows)
    figure = Figure(figsize=(6 * width + 2, 5.5 * height), layout="constrained")
    for panels, axes in zip(rows, figure.subplots(height, width, squeeze=False), strict=True):
        for (title, points, labels), axis in zip(panels, axes, strict=True):
            scatter(axis, points, labels, names)
            axis.set_title(title)
    handles, texts = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, texts, loc="outside right upper")
    figure.savefig(path)
    print(f"\nThe picture is in {path}.")
    if width == 1:
        print("It has no t-SNE, which needs scikit-learn: pip install scikit-learn")


def projections(title: str, cloud: LabelledFeatures) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Title, points and labels of each panel."""
    chosen = torch.randperm(len(cloud.labels), generator=torch.Generator().manual_seed(0))[:MAX_POINTS]
    features, labels = cloud.features.cpu()[chosen], cloud.labels.cpu()[chosen]
    points, shares = pca_projection(features)
    yield f"{title}\nPCA, {sum(shares):.0%} of the variance", points, labels
    points = tsne_projection(features)
    if points is not None:
        yield f"{title}\nt-SNE", points, labels


def scatter(axis: Any, points: Tensor, labels: Tensor, names: list[str]) -> None:
    from matplotlib import colormaps

    present = labels.unique().tolist()
    # The distinct colours of tab20 come round again when there are more classes.
    colours = colormaps["tab10" if len(present) <= 10 else "tab20"].colors
    for index, label in enumerate(present):
        members = points[labels == label]
        name = (names[label] if label < len(names) else f"class {label}") if index < MAX_NAMED_CLASSES else None
        axis.scatter(members[:, 0], members[:, 1], s=8, color=colours[index % len(colours)], label=name)
    axis.set_xticks([])
    axis.set_yticks([])


if __name__ == "__main__":
    run_tool(run)
