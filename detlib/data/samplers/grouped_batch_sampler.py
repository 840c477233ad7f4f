"""Batches of samples that belong to the same group."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data.sampler import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Batches of one group each, in the order in which the sampler fills them; a batch not filled is not given."""

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        """
        Args:
            sampler: gives indices of samples.
            group_ids: group of every sample.
        """
        if not isinstance(sampler, Sampler):
            raise TypeError(f"GroupedBatchSampler needs a torch.utils.data.Sampler, got {sampler!r}")
        self.sampler = sampler
        self.group_ids = np.asarray(group_ids)
        if self.group_ids.ndim != 1:
            raise ValueError(f"group_ids has one number for each sample, got the shape {self.group_ids.shape}")
        self.batch_size = batch_size
        self.buffer_per_group: dict[int, list[int]] = {group: [] for group in np.unique(self.group_ids).tolist()}

    def __iter__(self) -> Iterator[list[int]]:
        for index in self.sampler:
            group = self.group_ids[index].item()
            batch = self.buffer_per_group[group]
            batch.append(index)
            if len(batch) == self.batch_size:
                self.buffer_per_group[group] = []
                yield batch

    def __len__(self) -> int:
        raise TypeError("the number of batches of a GroupedBatchSampler is only known after sampling")
