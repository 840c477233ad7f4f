"""Which samples to visit, in what order, split over the processes of a training or evaluation."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset
from torch.utils.data.sampler import Sampler

from detlib.config import CfgNode, configurable
from detlib.data.sample_classes import classes_of
from detlib.data.samplers.build import SAMPLER_REGISTRY
from detlib.utils import comm
from detlib.utils.errors import ConfigError

__all__ = ["InferenceSampler", "RandomSubsetTrainingSampler", "RepeatFactorTrainingSampler", "TrainingSampler"]


def _check_size(sampler: Sampler, size: int) -> None:
    if not isinstance(size, int):
        raise TypeError(f"{type(sampler).__name__} needs the number of samples as int, got {size!r}")
    if size <= 0:
        raise ValueError(f"{type(sampler).__name__} needs at least one sample, got a dataset of {size}")


@SAMPLER_REGISTRY.register()
class TrainingSampler(Sampler):
    """An endless stream of shuffled passes over the data.

    All processes draw the same stream and take every W-th index of it (W processes), so no sample is seen twice
    before all were seen once.
    """

    @configurable
    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        """
        Args:
            size: number of samples.
            seed: must be the same in all processes; None: they agree on one, which follows from ``SEED``.
        """
        _check_size(self, size)
        self._size = size
        self._shuffle = shuffle
        self._seed = comm.shared_random_seed() if seed is None else int(seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[Any] | Dataset) -> dict[str, Any]:
        return {"size": len(dataset)}

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def state_dict(self) -> dict[str, int]:
        """What the order of samples follows from."""
        return {"seed": self._seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Give the same order as the sampler that gave the state."""
        self._seed = state["seed"]

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


@SAMPLER_REGISTRY.register()
class RandomSubsetTrainingSampler(TrainingSampler):
    """A :class:`TrainingSampler` over a random part of the data, the same part throughout."""

    @configurable
    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        """
        Args:
            size: number of samples.
            subset_ratio: share of them to use, in (0, 1]; at least one is used.
            seed_shuffle: seed of the order.
            seed_subset: seed of the choice.
        """
        super().__init__(size, shuffle=shuffle, seed=seed_shuffle)
        if not 0 < subset_ratio <= 1:
            raise ValueError(f"RandomSubsetTrainingSampler needs a subset_ratio in (0, 1], got {subset_ratio}")
        self._size_subset = max(int(size * subset_ratio), 1)
        self._choose(comm.shared_random_seed() if seed_subset is None else int(seed_subset))

    def _choose(self, seed: int) -> None:
        self._seed_subset = seed
        generator = torch.Generator().manual_seed(seed)
        self._indexes_subset = torch.randperm(self._size, generator=generator)[: self._size_subset]

    def state_dict(self) -> dict[str, int]:
        return {**super().state_dict(), "seed_subset": self._seed_subset}

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        self._choose(state["seed_subset"])

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[Any] | Dataset) -> dict[str, Any]:
        if cfg.DATALOADER.RANDOM_SUBSET_RATIO <= 0:
            raise ConfigError(
                "RandomSubsetTrainingSampler needs the part of the images: set DATALOADER.RANDOM_SUBSET_RATIO"
            )
        return {"size": len(dataset), "subset_ratio": cfg.DATALOADER.RANDOM_SUBSET_RATIO}

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            if self._shuffle:
                order = torch.randperm(self._size_subset, generator=generator)
                yield from self._indexes_subset[order].tolist()
            else:
                yield from self._indexes_subset.tolist()


@SAMPLER_REGISTRY.register()
class RepeatFactorTrainingSampler(TrainingSampler):
    """A :class:`TrainingSampler` that visits some samples more often (LVIS, arXiv:1908.03195, sec. B.2)."""

    @configurable
    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        """
        Args:
            repeat_factors: (N,) how often each sample is seen in a pass, on average: 1.5 is once or twice.
            seed: see TrainingSampler.
        """
        super().__init__(len(repeat_factors), shuffle=shuffle, seed=seed)
        repeat_factors = torch.as_tensor(repeat_factors)
        if not (repeat_factors >= 0).all() or not repeat_factors.any():
            raise ValueError("RepeatFactorTrainingSampler needs repeat_factors >= 0 that are not all 0")
        self._int_part = torch.trunc(repeat_factors)
        self._frac_part = repeat_factors - self._int_part

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[Any] | Dataset) -> dict[str, Any]:
        threshold, sqrt = cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.REPEAT_SQRT
        return {"repeat_factors": cls.repeat_factors_from_category_frequency(dataset, threshold, sqrt=sqrt)}

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Return (N,) factors by which images of rare classes are repeated.

        Class c is in the share f(c) of images; its factor is max(1, sqrt(t / f(c))). An image takes the largest
        factor of its classes, and 1 if it has none. Its classes are its label, its labels, or those of its objects.

        Args:
            repeat_thresh: t, the share of images below which a class counts as rare.
            sqrt: False leaves the square root out.
        """
        classes_of_image = [classes_of(sample) for sample in dataset_dicts]
        num_images = Counter(itertools.chain.from_iterable(classes_of_image))

        def factor(category_id: int) -> float:
            ratio = repeat_thresh * len(dataset_dicts) / num_images[category_id]
            return max(1.0, math.sqrt(ratio) if sqrt else ratio)

        factor_of_class = {category_id: factor(category_id) for category_id in num_images}
        return torch.tensor([max((factor_of_class[c] for c in classes), default=1.0) for classes in classes_of_image])

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._get_epoch_indices(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def _get_epoch_indices(self, generator: torch.Generator) -> torch.Tensor:
        """Round every factor up with the probability of its fraction, so that the mean is right."""
        rounds_up = torch.rand(len(self._frac_part), generator=generator) < self._frac_part
        repeats = self._int_part.long() + rounds_up.long()
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats)


class InferenceSampler(Sampler):
    """Every sample exactly once, in order, in blocks of nearly equal length for the processes."""

    def __init__(self, size: int) -> None:
        _check_size(self, size)
        self._size = size
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()
        self._local_indices = self._get_local_indices(size, self._world_size, self._rank)

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        length, num_longer = divmod(total_size, world_size)
        begin = rank * length + min(rank, num_longer)
        return range(begin, begin + length + (rank < num_longer))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
