"""Samplers of training by name, see ``DATALOADER.SAMPLER_TRAIN``."""

from typing import Any

from torch.utils.data import Dataset, IterableDataset, Sampler

from detlib.config import CfgNode
from detlib.utils.registry import Registry

__all__ = ["SAMPLER_REGISTRY", "build_sampler"]

SAMPLER_REGISTRY = Registry("SAMPLER")
"""Samplers of training. One is called as ``sampler(cfg, dataset)`` with the samples of the dataset, before they are
mapped; ``@configurable`` makes other arguments of that. It gives indices without end, those of its process alone.
"""


def build_sampler(cfg: CfgNode, dataset: list[Any] | Dataset) -> Sampler | None:
    """Build the sampler that ``DATALOADER.SAMPLER_TRAIN`` names; None for a dataset that has its own order.

    Raises:
        UnknownNameError: there is none of that name.
        ConfigError: a key that it needs is missing or wrong.
    """
    if isinstance(dataset, IterableDataset):
        return None
    return SAMPLER_REGISTRY.get(cfg.DATALOADER.SAMPLER_TRAIN)(cfg, dataset)
