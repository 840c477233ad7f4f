"""How good frozen features are for classification: nearest neighbours, a linear probe, and a picture.

Features are computed once, without augmentation, so that a probe takes seconds. The published recipes augment the
training images. That is a training as any other: an ImageClassifier whose backbone is frozen, statistics of its
normalisation included, which FREEZE_AT does for all stages of a ResNet::

    MODEL: {META_ARCHITECTURE: ImageClassifier, BACKBONE: {FREEZE_AT: 5}, WEIGHTS: extracted.pth}
    SOLVER: {BASE_LR: 30.0, WEIGHT_DECAY: 0.0, ...}   # what RECIPES has, for the default head, which is linear

on top of configs/Classification/Base-ImageNet.yaml; tools/extract_backbone.py writes the weights.

Shapes: N images, M of them in the test set, C channels, K classes, k neighbours.
"""

import importlib.util
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from detlib.evaluation.classification_metrics import accuracy_of_ranks, label_ranks
from detlib.evaluation.evaluator import NUM_WARMUP_BATCHES, inference_context, length_of
from detlib.evaluation.progress import InferenceProgress
from detlib.solver import LARS, LRMultiplier, WarmupParamScheduler
from detlib.utils import comm
from detlib.utils.errors import ConfigError, DatasetError

__all__ = [
    "RECIPES",
    "LabelledFeatures",
    "Neighbours",
    "ProbeRecipe",
    "extract_features",
    "knn_accuracies",
    "label_of",
    "name_of_backbone",
    "nearest_neighbours",
    "pca_projection",
    "probe_accuracies",
    "train_linear_probe",
    "tsne_projection",
    "vote_accuracies",
]

logger = logging.getLogger(__name__)

TOPK = (1, 5)
MAX_SIMILARITIES = 2**26  # at a time, a quarter of a GB


class LabelledFeatures(NamedTuple):
    """Features (N, C), float32, and labels (N,) of images."""

    features: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "LabelledFeatures":
        return LabelledFeatures(self.features.to(device), self.labels.to(device))


def name_of_backbone(model: nn.Module) -> str:
    """What is evaluated of a model: "backbone", or, where that has a neck, "backbone.bottom_up"."""
    if not hasattr(model, "backbone"):
        raise ConfigError(
            f"a {type(model).__name__} has no backbone, whose features could be evaluated; for a backbone alone, set "
            "MODEL.META_ARCHITECTURE: ImageClassifier"
        )
    return "backbone.bottom_up" if hasattr(model.backbone, "bottom_up") else "backbone"


class Neighbours(NamedTuple):
    """Cosine similarities (M, k) and labels (M, k) of the nearest training images, the nearest first."""

    similarities: Tensor
    labels: Tensor


@torch.no_grad()
def extract_features(model: nn.Module, batches: Iterable[list[dict[str, Any]]], feature: str = "") -> LabelledFeatures:
    """Feature maps of the backbone in evaluation mode, averaged over each image, on the CPU.

    Args:
        model: with a ``backbone``, and ``preprocess_image`` as models of detlib have it.
        batches: of samples with ``image`` and ``label``.
        feature: which output of the backbone; by default the last one that is a map. Vectors are taken as they are.
    """
    backbone = model.get_submodule(name_of_backbone(model))
    features, labels = [], []
    with inference_context(model), InferenceProgress(length_of(batches), NUM_WARMUP_BATCHES) as progress:
        for batch in progress.timed_batches(batches):
            start = time.perf_counter()
            labels += [label_of(sample) for sample in batch]
            # Images of other sizes would be padded, and the average also be over the padding.
            for _, alike in groupby(batch, key=lambda sample: sample["image"].shape):
                outputs = backbone(model.preprocess_image(list(alike)).tensor)
                features.append(_pooled(outputs, feature).float().cpu())
            progress.step(len(batch), model=time.perf_counter() - start)
    if not features:
        raise DatasetError("there are no images to compute features of")
    logger.info(progress.summary(comm.get_world_size()))
    return LabelledFeatures(torch.cat(features), torch.tensor(labels))


def label_of(sample: dict[str, Any]) -> int:
    """The class of a sample.

    Raises:
        DatasetError: it has none, or several.
    """
    label = sample.get("label")
    if not isinstance(label, int) or label < 0:
        raise DatasetError(
            f"features are evaluated on images with one class each, but {sample.get('file_name', 'a sample')} has "
            f"{f'the label {label!r}' if 'label' in sample else 'no label'}; name datasets of image classification in "
            "DATASETS.TRAIN and DATASETS.TEST"
        )
    return label


def knn_accuracies(
    train: LabelledFeatures, test: LabelledFeatures, ks: Sequence[int] = (10, 20, 100, 200), temperature: float = 0.07
) -> dict[int, dict[str, float]]:
    """Accuracy when the k nearest training images vote with ``exp(cosine similarity / temperature)`` for their class.

    Returns:
        k -> {"top1": ..., "top5": ...} in percent; without "top5" if there are fewer than 5 classes. A k above N is
        replaced by N.
    """
    if wrong := [k for k in ks if k < 1]:
        raise ConfigError(f"k is {wrong[0]}; at least 1 neighbour must vote")
    if max(ks) > len(train.labels):
        logger.warning("There are %d training images, so that no more neighbours than these vote", len(train.labels))
    ks = sorted({min(k, len(train.labels)) for k in ks})
    neighbours = nearest_neighbours(train, test.features, ks[-1])
    num_classes = _num_classes(train, test)
    return {k: vote_accuracies(neighbours, test.labels, k, num_classes, temperature) for k in ks}


@torch.no_grad()
def nearest_neighbours(train: LabelledFeatures, features: Tensor, k: int) -> Neighbours:
    """Find the k training images, or all N if these are fewer, that are most similar to each of (M, C) features."""
    keys = F.normalize(train.features)  # (N, C)
    chunks = features.split(max(1, MAX_SIMILARITIES // len(keys)))
    found = [(F.normalize(chunk) @ keys.T).topk(min(k, len(keys))) for chunk in chunks]
    indices = torch.cat([nearest.indices for nearest in found])
    return Neighbours(torch.cat([nearest.values for nearest in found]), train.labels[indices])


def vote_accuracies(
    neighbours: Neighbours, labels: Tensor, k: int, num_classes: int, temperature: float = 0.07
) -> dict[str, float]:
    """See :func:`knn_accuracies`; of the votes of the first k neighbours.

    Args:
        labels: (M,), the right ones.
    """
    ranks = []
    chunk = max(1, MAX_SIMILARITIES // num_classes)
    for similarities, classes, right in zip(*(x.split(chunk) for x in (*neighbours, labels)), strict=True):
        votes = (similarities[:, :k] / temperature).exp()
        scores = votes.new_zeros(len(right), num_classes)  # (chunk, K)
        ranks.append(label_ranks(scores.scatter_add_(1, classes[:, :k], votes), right))
    return _accuracies(torch.cat(ranks), num_classes)


@dataclass(frozen=True)
class ProbeRecipe:
    """How a linear probe is trained.

    Attributes:
        optimizer: "SGD" or "LARS", with momentum 0.9.
        lr: for ``reference_batch_size``; scaled linearly to ``batch_size``.
        batch_size: or all training images, if they are fewer; the rate then stays, as an epoch is one step anyway.
        steps: after how many percent of the training the rate is divided by 10; empty for a cosine down to 0.
        warmup: percent of the training in which the rate rises from 0.
        standardize: bring each channel to mean 0 and variance 1 over the training images before the linear layer,
            which makes the rate independent of the scale of features.
    """

    optimizer: str = "SGD"
    lr: float = 0.3
    reference_batch_size: int = 256
    batch_size: int = 256
    weight_decay: float = 0.0
    epochs: int = 100
    steps: tuple[int, ...] = ()
    warmup: float = 0.0
    standardize: bool = False


RECIPES = {
    "default": ProbeRecipe(standardize=True),
    # As published, but for augmentation.
    "moco": ProbeRecipe(lr=30.0, steps=(60, 80)),  # also DenseCL, NPID, RelativeLoc, RotationPred, ODC, DeepCluster
    "simsiam": ProbeRecipe("LARS", lr=1.6, reference_batch_size=4096, batch_size=4096, epochs=90),  # SimCLR, BYOL
    "swav": ProbeRecipe(lr=0.3, weight_decay=1e-6),  # also BarlowTwins
    "mocov3_resnet": ProbeRecipe(lr=0.4, reference_batch_size=1024, batch_size=1024, epochs=90),
    "mocov3_vit": ProbeRecipe(lr=12.0, reference_batch_size=1024, batch_size=1024, epochs=90),
    "mae": ProbeRecipe(
        "LARS", lr=6.4, reference_batch_size=16384, batch_size=16384, epochs=90, warmup=100 / 9, standardize=True
    ),
}


def train_linear_probe(
    train: LabelledFeatures, num_classes: int, recipe: ProbeRecipe = RECIPES["default"], seed: int = 0
) -> nn.Module:
    """Train a linear layer on features: from (N, C) to logits (N, K).

    Args:
        seed: of the first weights and the order of images.
    """
    generator = torch.Generator().manual_seed(seed)
    num_images, channels = train.features.shape
    norm = nn.BatchNorm1d(channels, eps=1e-6, affine=False)
    if recipe.standardize:
        norm.running_mean, norm.running_var = train.features.mean(dim=0), train.features.var(dim=0, correction=0)
    linear = nn.Linear(channels, num_classes)
    nn.init.normal_(linear.weight, std=0.01, generator=generator)
    nn.init.zeros_(linear.bias)
    linear.to(train.features.device)
    probe = nn.Sequential(norm, linear).eval() if recipe.standardize else linear
    batch_size = min(recipe.batch_size, num_images)
    optimizer = _optimizer_of(recipe, linear)
    scheduler = LRMultiplier(optimizer, _schedule_of(recipe), recipe.epochs * -(-num_images // batch_size))
    for epoch in range(recipe.epochs):
        for batch in torch.randperm(num_images, generator=generator).to(train.labels.device).split(batch_size):
            loss = F.cross_entropy(probe(train.features[batch]), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        if not loss.isfinite():
            raise ConfigError(
                f"the loss of the probe is {loss.item()} after epoch {epoch + 1}; lower its lr {recipe.lr}"
            )
    return probe


@torch.no_grad()
def probe_accuracies(probe: nn.Module, test: LabelledFeatures) -> dict[str, float]:
    """{"top1": ..., "top5": ...} in percent; without "top5" if there are fewer than 5 classes."""
    logits = probe(test.features)  # (M, K)
    return _accuracies(label_ranks(logits, test.labels), logits.shape[1])


def pca_projection(features: Tensor) -> tuple[Tensor, list[float]]:
    """The two directions in which features vary most: (N, 2), and the share of the variance in each."""
    centred = (features - features.mean(dim=0)).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # rising
    shares = variances[-2:].flip(0) / variances.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return (centred @ directions[:, -2:].flip(1)).float(), shares.tolist()


def tsne_projection(features: Tensor, seed: int = 0) -> Tensor | None:
    """A picture of neighbourhoods, (N, 2); None without scikit-learn."""
    if importlib.util.find_spec("sklearn") is None:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    return torch.from_numpy(TSNE(perplexity=perplexity, random_state=seed).fit_transform(features.numpy()))


def _pooled(outputs: dict[str, Tensor], feature: str) -> Tensor:
    """One output of a backbone as (N, C)."""
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in outputs.items())
    name = feature or next((name for name in reversed(outputs) if outputs[name].dim() == 4), "")
    if name not in outputs or outputs[name].dim() not in (2, 4):
        wanted = f"{name!r} as a map or vector" if name else "a map (N, C, H, W)"
        raise ConfigError(f"the backbone does not give {wanted}; it gives {shapes}")
    return outputs[name].mean(dim=(2, 3)) if outputs[name].dim() == 4 else outputs[name]


def _num_classes(*parts: LabelledFeatures) -> int:
    return 1 + max(int(part.labels.max()) for part in parts)


def _accuracies(ranks: Tensor, num_classes: int) -> dict[str, float]:
    return accuracy_of_ranks(ranks, ranks, [k for k in TOPK if k <= num_classes])


def _optimizer_of(recipe: ProbeRecipe, linear: nn.Module) -> Optimizer:
    optimizers = {"SGD": SGD, "LARS": LARS}
    if recipe.optimizer not in optimizers:
        raise ConfigError(f"the optimizer of the probe is {recipe.optimizer!r}; use SGD or LARS")
    lr = recipe.lr * recipe.batch_size / recipe.reference_batch_size
    return optimizers[recipe.optimizer](linear.parameters(), lr=lr, momentum=0.9, weight_decay=recipe.weight_decay)


def _schedule_of(recipe: ProbeRecipe) -> WarmupParamScheduler:
    if recipe.steps:
        factors = [0.1**num_decays for num_decays in range(len(recipe.steps) + 1)]
        schedule = MultiStepParamScheduler(factors, num_updates=100, milestones=list(recipe.steps))
    else:
        schedule = CosineParamScheduler(1.0, 0.0)
    return WarmupParamScheduler(schedule, 0.0, recipe.warmup / 100, rescale_interval=True)
