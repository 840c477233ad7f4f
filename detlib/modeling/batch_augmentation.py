"""Training images that are mixtures of two images of the batch, and labels that are mixed alike.

Shapes: N images of H x W pixels, normalised and padded; K classes.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlib.config import build_component
from detlib.utils.errors import ConfigAssertionError, ConfigError
from detlib.utils.registry import Registry

__all__ = ["BATCH_AUGMENT_REGISTRY", "CutMix", "Mixup", "RandomBatchAugment", "ResizeMix", "build_batch_augment"]

BATCH_AUGMENT_REGISTRY = Registry("BATCH_AUGMENT")
BATCH_AUGMENT_REGISTRY.__doc__ = """
Mixtures of the images of a training batch, built by `build_component` and called as ``augment(images, targets)`` with
(N, C, H, W) images and (N, K) soft labels. They return the same of new ones, and leave the given tensors as they are.
"""

BatchAugment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def build_batch_augment(nodes: Sequence[Any], probs: Sequence[float] = ()) -> "RandomBatchAugment | None":
    """What ``MODEL.CLASSIFIER.BATCH_AUGMENTS`` and ``BATCH_AUGMENT_PROBS`` say; None if there is nothing to do."""
    return RandomBatchAugment(build_component(BATCH_AUGMENT_REGISTRY, nodes), probs) if nodes else None


class RandomBatchAugment(nn.Module):
    """One of several mixtures for each batch, or none; none in evaluation mode."""

    def __init__(self, augments: Sequence[BatchAugment], probs: Sequence[float] = ()) -> None:
        """
        Args:
            probs: of each; what they lack of 1 is the probability of no change. Empty for equal ones.
        """
        super().__init__()
        if probs and len(probs) != len(augments):
            raise ConfigError(f"{len(probs)} probabilities are given for {len(augments)} batch augmentations")
        probs = probs or [1 / len(augments)] * len(augments)
        if min(probs) < 0 or sum(probs) > 1 + 1e-6:
            raise ConfigAssertionError(f"probabilities must be positive and sum up to at most 1, got {list(probs)}")
        self.augments = augments
        self.probs = torch.tensor([*probs, max(0.0, 1 - sum(probs))])

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return images, targets
        drawn = int(torch.multinomial(self.probs, 1))
        return self.augments[drawn](images, targets) if drawn < len(self.augments) else (images, targets)


@BATCH_AUGMENT_REGISTRY.register()
class Mixup:
    """Weighted means of two images (https://arxiv.org/abs/1710.09412)."""

    def __init__(self, alpha: float) -> None:
        """
        Args:
            alpha: the weights are drawn from Beta(alpha, alpha); 1 makes all equally likely, less those near 0 and 1.
        """
        self.alpha = _positive(alpha)

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        lam, permutation = _draw(self.alpha), _permutation(images, targets)
        return _mean(images, permutation, lam), _mean(targets, permutation, lam)


@BATCH_AUGMENT_REGISTRY.register()
class CutMix:
    """A box of one image pasted into another at the same place (https://arxiv.org/abs/1905.04899)."""

    def __init__(
        self, alpha: float, cutmix_minmax: tuple[float, float] | None = None, correct_lam: bool = True
    ) -> None:
        """
        Args:
            alpha: the part of the image that stays is drawn from Beta(alpha, alpha).
            cutmix_minmax: draw the sides of the box instead, evenly between these parts of the image's.
            correct_lam: weigh labels by the pixels, of which the box loses those outside of the image.
        """
        self.alpha = _positive(alpha)
        if cutmix_minmax is not None and not 0 <= cutmix_minmax[0] <= cutmix_minmax[1] <= 1:
            raise ConfigError(f"cutmix_minmax is {cutmix_minmax}; it must be two rising numbers between 0 and 1")
        self.cutmix_minmax = cutmix_minmax
        self.correct_lam = correct_lam or cutmix_minmax is not None

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        permutation, (height, width) = _permutation(images, targets), images.shape[-2:]
        lam = _draw(self.alpha)
        if self.cutmix_minmax is None:
            top, left, bottom, right = _centred_box(height, width, lam)
        else:
            top, left, bottom, right = _inner_box(height, width, *self.cutmix_minmax)
        if self.correct_lam:
            lam = 1 - (bottom - top) * (right - left) / (height * width)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][permutation]
        return mixed, _mean(targets, permutation, lam)


@BATCH_AUGMENT_REGISTRY.register()
class ResizeMix:
    """The whole of one image, made smaller and pasted into another (https://arxiv.org/abs/2012.11101)."""

    def __init__(self, alpha: float, lam_min: float = 0.1, lam_max: float = 0.8) -> None:
        """
        Args:
            alpha: of Beta(alpha, alpha), from which the part of the image that stays is drawn, between the others.
            lam_min: least part that stays.
            lam_max: largest; a box that would reach beyond the image is made smaller still.
        """
        self.alpha = _positive(alpha)
        if not 0 <= lam_min <= lam_max <= 1:
            raise ConfigError(f"lam_min is {lam_min} and lam_max {lam_max}; they must rise between 0 and 1")
        self.lam_min, self.lam_max = lam_min, lam_max

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        permutation, (height, width) = _permutation(images, targets), images.shape[-2:]
        lam = self.lam_min + (self.lam_max - self.lam_min) * _draw(self.alpha)
        top, left, bottom, right = _centred_box(height, width, lam)
        size = (bottom - top, right - left)
        if 0 in size or len(images) == 1:  # A copy of itself is no other image.
            return images, targets
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = F.interpolate(images[permutation], size, mode="bilinear")
        return mixed, _mean(targets, permutation, 1 - size[0] * size[1] / (height * width))


# Random numbers that decide on sizes are drawn on the CPU, where they are needed: no device is waited for.


def _draw(alpha: float) -> float:
    return float(torch.distributions.Beta(alpha, alpha).sample())


def _centred_box(height: int, width: int, lam: float) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a box of 1 - lam of the image, with any centre, without what is outside."""
    box_height, box_width = (round(side * math.sqrt(1 - lam)) for side in (height, width))
    y, x = torch.rand(2).tolist()
    top, left = int(y * height) - box_height // 2, int(x * width) - box_width // 2
    return max(top, 0), max(left, 0), min(top + box_height, height), min(left + box_width, width)


def _inner_box(height: int, width: int, smallest: float, largest: float) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a box with sides of random length, which lies within the image."""
    a, b, y, x = torch.rand(4).tolist()
    box_height = round(height * (smallest + (largest - smallest) * a))
    box_width = round(width * (smallest + (largest - smallest) * b))
    top, left = int(y * (height - box_height + 1)), int(x * (width - box_width + 1))
    return top, left, top + box_height, left + box_width


def _permutation(images: Tensor, targets: Tensor) -> Tensor:
    """Which image each is mixed with."""
    if not targets.is_floating_point() or targets.dim() != 2 or len(targets) != len(images):
        raise ValueError(
            f"labels to be mixed must be floats of shape (N, K), for {len(images)} images; got {targets.dtype} of "
            f"shape {tuple(targets.shape)}. torch.nn.functional.one_hot makes them of classes."
        )
    return torch.randperm(len(images), device=images.device)


def _mean(values: Tensor, permutation: Tensor, lam: float) -> Tensor:
    return lam * values + (1 - lam) * values[permutation]


def _positive(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha <= 0:
        raise ConfigError(f"alpha must be a positive number, got {alpha!r}")
    return float(alpha)
