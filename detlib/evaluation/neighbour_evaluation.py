"""The evaluation of a model that learns without labels: do images of one class have similar features?

Shapes: M images of the test set, k neighbours.
"""

import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from detlib.config import CfgNode
from detlib.data import MetadataCatalog, build_feature_loader
from detlib.evaluation.feature_evaluation import (
    LabelledFeatures,
    Neighbours,
    extract_features,
    label_of,
    nearest_neighbours,
    vote_accuracies,
)
from detlib.utils import comm
from detlib.utils.errors import DatasetError

__all__ = ["NUM_NEIGHBOURS", "evaluate_neighbours"]

logger = logging.getLogger(__name__)

NUM_NEIGHBOURS = 20  # DINO found it the best for most of its models (arXiv:2104.14294, sec. 3.2).


def evaluate_neighbours(cfg: CfgNode, model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Classify each dataset of DATASETS.TEST by the nearest images of DATASETS.TRAIN; see :func:`knn_accuracies`.

    Features are those of MODEL.SSL.IN_FEATURE, or else of the last map of the backbone; images are prepared as
    :func:`~detlib.data.build_feature_loader` says. Among the training datasets only those count
    whose images have a class each, and of the same classes. A dataset for which there are none, or which has no classes
    itself, is not evaluated, and the log says why.

    With several processes each computes features of its part of the images, and looks for neighbours among its part
    of the training images. All must go through the iterator.

    Yields:
        name and results, ``{"knn": {"top1": ..., "top5": ...}}``; these are empty where there is no evaluation, and in
        processes other than the main one.
    """
    batch_size = max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1)
    loader_of = cache(lambda name: _labelled_loader(cfg, name, batch_size))
    features_of = cache(lambda name: _own_features(cfg, model, loader_of(name)))  # Once, also for several test sets.
    for name in cfg.DATASETS.TEST:
        try:
            loader_of(name)
            train_names = _names_of_neighbours(cfg, name, loader_of)
        except DatasetError as error:
            logger.warning("%r is not evaluated: %s", name, error)
            yield name, {}
            continue
        logger.info("Features of %r and of %s, for nearest neighbours", name, ", ".join(map(repr, train_names)))
        train = _joined([features_of(other) for other in train_names])
        accuracies = _accuracies(train, _joined(comm.all_gather(features_of(name))))
        yield name, {"knn": accuracies} if accuracies else {}


def _labelled_loader(cfg: CfgNode, name: str, batch_size: int) -> DataLoader:
    loader = build_feature_loader(cfg, batch_size, name)
    label_of(loader.dataset[0])
    return loader


def _names_of_neighbours(cfg: CfgNode, test_name: str, loader_of: Callable[[str], DataLoader]) -> list[str]:
    """The datasets of DATASETS.TRAIN in which classes of a test dataset can be looked for; not itself, if it is there.

    Raises:
        DatasetError: there are none.
    """
    names, problems = [], []
    for name in cfg.DATASETS.TRAIN:
        try:
            loader_of(name)
        except DatasetError as error:
            problems.append(str(error))
            continue
        classes, wanted = (MetadataCatalog.get(each).get("classes") for each in (name, test_name))
        if name == test_name:
            problems.append(f"{name!r} itself, whose images would be their own neighbours")
        elif classes is not None and wanted is not None and list(classes) != list(wanted):
            problems.append(f"{name!r} has other classes")
        else:
            names.append(name)
    if not names:
        raise DatasetError(
            "DATASETS.TRAIN has no images of its classes, among which neighbours could be: "
            + ("; ".join(problems) or "it is empty")
        )
    return names


def _own_features(cfg: CfgNode, model: nn.Module, loader: DataLoader) -> LabelledFeatures | None:
    """Of the images that this process has to do; None if there are fewer images than processes, and none for this."""
    return extract_features(model, loader, cfg.MODEL.SSL.IN_FEATURE) if len(loader) else None


def _joined(parts: list[LabelledFeatures | None]) -> LabelledFeatures | None:
    present = [part for part in parts if part is not None]
    return LabelledFeatures(*(torch.cat(tensors) for tensors in zip(*present, strict=True))) if present else None


def _accuracies(train: LabelledFeatures | None, test: LabelledFeatures) -> dict[str, float]:
    """
    Args:
        train: of the images of this process.
        test: of all images.
    """
    own = None
    if train is not None:
        own = nearest_neighbours(train, test.features, NUM_NEIGHBOURS), len(train.labels), int(train.labels.max())
    gathered = [found for found in comm.gather(own) if found is not None]
    if not gathered:
        return {}
    parts, counts, highest_labels = zip(*gathered, strict=True)
    k = min(NUM_NEIGHBOURS, sum(counts))
    similarities, labels = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
    nearest = similarities.topk(k)
    neighbours = Neighbours(nearest.values, labels.gather(1, nearest.indices))  # (M, k)
    num_classes = 1 + max(*highest_labels, int(test.labels.max()))
    logger.info("The %d nearest of %d images vote for each of %d", k, sum(counts), len(test.labels))
    return vote_accuracies(neighbours, test.labels, k, num_classes)
