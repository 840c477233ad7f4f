"""Datasets that repeat samples of another one, divide it, or number its samples."""

from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from detlib.data.samplers import RepeatFactorTrainingSampler

__all__ = ["ClassBalancedDataset", "IndexedDataset", "KFold", "RepeatDataset"]


class RepeatDataset(Dataset):
    """A dataset several times in a row."""

    def __init__(self, dataset: Any, times: int) -> None:
        """
        Args:
            dataset: with a length and indices, such as a list of samples; also for the others here.
        """
        if times < 1:
            raise ValueError(f"RepeatDataset: times must be positive, got {times}")
        self.dataset, self.times = dataset, times

    def __len__(self) -> int:
        return self.times * len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"index {idx} is out of range for {len(self)} samples")
        return self.dataset[idx % len(self.dataset)]


class IndexedDataset(Dataset):
    """A dataset whose samples know their place in it, ``sample_idx``, whatever brings them into another order."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return {**self.dataset[idx], "sample_idx": int(idx)}


class ClassBalancedDataset(Subset):
    """A dataset whose samples of rare classes come several times in a row, always as often.

    That is ceil(r) times for the repeat factor r, see ``repeat_factors_from_category_frequency`` of
    :class:`RepeatFactorTrainingSampler`, which rounds at random and hence repeats less.
    """

    def __init__(self, dataset: Any, repeat_thresh: float, sqrt: bool = True) -> None:
        """
        Args:
            repeat_thresh: share of images below which a class counts as rare.
            sqrt: False leaves the square root out.
        """
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dataset, repeat_thresh, sqrt=sqrt)
        indices = torch.repeat_interleave(torch.arange(len(dataset)), factors.ceil().long())
        super().__init__(dataset, indices.tolist())


class KFold(Subset):
    """One of the k divisions of cross validation: a fold to test on, or the rest to train on.

    >>> load = functools.partial(load_image_folder, "data/cells")
    >>> DatasetCatalog.register("cells_train", lambda: list(KFold(load(), fold=0)))
    >>> DatasetCatalog.register("cells_test", lambda: list(KFold(load(), fold=0, is_test=True)))
    """

    def __init__(
        self, dataset: Any, fold: int, num_folds: int = 5, *, seed: int | None = 0, is_test: bool = False
    ) -> None:
        """
        Args:
            fold: number of the fold, from 0.
            seed: of the order in which samples are dealt to folds; None keeps that of the dataset.
            is_test: whether these are the samples of the fold, rather than all others.
        """
        if not 0 <= fold < num_folds:
            raise ValueError(f"KFold: fold must be in 0, ..., {num_folds - 1} for {num_folds} folds, got {fold}")
        if len(dataset) < num_folds:
            raise ValueError(f"KFold: {len(dataset)} samples cannot be divided into {num_folds} folds")
        num_samples = len(dataset)
        order = list(range(num_samples))
        if seed is not None:
            order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed)).tolist()
        start, end = num_samples * fold // num_folds, num_samples * (fold + 1) // num_folds
        super().__init__(dataset, order[start:end] if is_test else order[:start] + order[end:])
