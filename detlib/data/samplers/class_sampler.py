"""Samplers for image classification: classes equally often, and images several times in a row."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from detlib.config import CfgNode, configurable
from detlib.data.sample_classes import classes_of
from detlib.data.samplers.build import SAMPLER_REGISTRY
from detlib.data.samplers.distributed_sampler import TrainingSampler
from detlib.utils.errors import DatasetError

__all__ = ["RepeatAugSampler", "UniformClassSampler"]


@SAMPLER_REGISTRY.register()
class UniformClassSampler(TrainingSampler):
    """As many draws of each class that has samples, in passes of as many draws as there are samples.

    With N samples and K such classes, N // K + 1 are drawn of each, again and again where a class has no more, then
    shuffled and cut to N (DeepCluster, arXiv:1807.05520, sec. 3.3). Samples of no class are not drawn.
    """

    @configurable
    def __init__(self, class_ids: Sequence[int] | Sequence[Collection[int]], *, seed: int | None = None) -> None:
        """
        Args:
            class_ids: of each sample, -1 for none; or of each sample a collection of classes.
            seed: see TrainingSampler.
        """
        super().__init__(len(class_ids), seed=seed)
        samples, classes = _pairs(class_ids)
        if len(samples) == 0:
            raise DatasetError(
                f"UniformClassSampler: none of {len(class_ids)} samples has a class; give them a 'label' or 'labels'"
            )
        order = np.argsort(classes, kind="stable")
        _, starts = np.unique(classes[order], return_index=True)
        self._samples_of_class = [torch.from_numpy(part) for part in np.split(samples[order], starts[1:])]

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[Any] | Dataset) -> dict[str, Any]:
        return {"class_ids": [classes_of(sample) for sample in dataset]}

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        num_draws = self._size // len(self._samples_of_class) + 1
        while True:
            indices = torch.cat([_draw(samples, num_draws, generator) for samples in self._samples_of_class])
            yield from indices[torch.randperm(len(indices), generator=generator)][: self._size].tolist()


def _pairs(class_ids: Sequence[int] | Sequence[Collection[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of samples and classes of them, (P,) each; a sample of several classes is in several pairs."""
    if isinstance(class_ids[0], set | frozenset | list | tuple):
        samples = np.repeat(np.arange(len(class_ids)), [len(ids) for ids in class_ids])
        classes = np.array([class_id for ids in class_ids for class_id in ids], dtype=np.int64)
    else:
        samples, classes = np.arange(len(class_ids)), np.asarray(class_ids)
    return samples[classes >= 0], classes[classes >= 0]


def _draw(samples: torch.Tensor, num_draws: int, generator: torch.Generator) -> torch.Tensor:
    if len(samples) > num_draws:
        return samples[torch.randperm(len(samples), generator=generator)[:num_draws]]
    return samples[torch.randint(len(samples), (num_draws,), generator=generator)]


@SAMPLER_REGISTRY.register()
class RepeatAugSampler(TrainingSampler):
    """Each sample several times in a row, for different augmentations of it (arXiv:1902.05509, arXiv:2012.12877).

    Processes deal the stream out among them, so that the copies come in the same step where there are several. A pass
    is as long as without repeats, hence over a part of the samples only: another one in each.
    """

    @configurable
    def __init__(self, size: int, num_repeats: int = 3, shuffle: bool = True, seed: int | None = None) -> None:
        """
        Args:
            size: number of samples.
            num_repeats: how often each comes in a row.
            seed: see TrainingSampler.
        """
        super().__init__(size, shuffle=shuffle, seed=seed)
        if num_repeats < 1:
            raise ValueError(
                f"RepeatAugSampler: num_repeats (DATALOADER.NUM_REPEATS) must be positive, got {num_repeats}"
            )
        self._num_repeats = num_repeats

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[Any] | Dataset) -> dict[str, Any]:
        return {"size": len(dataset), "num_repeats": cfg.DATALOADER.NUM_REPEATS}

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            order = torch.randperm(self._size, generator=generator) if self._shuffle else torch.arange(self._size)
            yield from order.repeat_interleave(self._num_repeats)[: self._size].tolist()
