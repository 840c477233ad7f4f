"""Samplers of algorithms that learn from clusters."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from detlib.config import CfgNode, configurable
from detlib.data.samplers.build import SAMPLER_REGISTRY
from detlib.data.samplers.class_sampler import UniformClassSampler
from detlib.data.samplers.distributed_sampler import TrainingSampler

__all__ = ["ReplacementSampler", "UniformClusterSampler"]


@SAMPLER_REGISTRY.register()
class UniformClusterSampler(TrainingSampler):
    """As many draws of each cluster, once they are known; before, a :class:`TrainingSampler`.

    Worker processes hold copies, hence a loader that has started must start anew to draw from new clusters.
    """

    @configurable
    def __init__(self, size: int, seed: int | None = None) -> None:
        """
        Args:
            size: number of samples.
            seed: see TrainingSampler.
        """
        super().__init__(size, seed=seed)
        self._by_cluster: UniformClassSampler | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[Any] | Dataset) -> dict[str, Any]:
        return {"size": len(dataset)}

    def set_labels(self, labels: Sequence[int], epoch: int = 0) -> None:
        """Draw from now on as a :class:`UniformClassSampler`.

        Args:
            labels: the cluster of each sample; the same in all processes.
            epoch: that begins; the order is another one in each.
        """
        if len(labels) != self._size:
            raise ValueError(f"{len(labels)} labels came for {self._size} samples; a label is needed for each")
        self._by_cluster = UniformClassSampler(labels, seed=self._seed + epoch)

    def _infinite_indices(self) -> Iterator[int]:
        yield from (super() if self._by_cluster is None else self._by_cluster)._infinite_indices()


@SAMPLER_REGISTRY.register()
class ReplacementSampler(TrainingSampler):
    """Each draw is of any sample, whatever was drawn before."""

    @configurable
    def __init__(self, size: int, seed: int | None = None) -> None:
        """
        Args:
            size: number of samples.
            seed: see TrainingSampler.
        """
        super().__init__(size, seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[Any] | Dataset) -> dict[str, Any]:
        return {"size": len(dataset)}

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            yield from torch.randint(self._size, (self._size,), generator=generator).tolist()
