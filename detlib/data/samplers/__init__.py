"""Which samples to visit, and in what order."""

from detlib.data.samplers.build import SAMPLER_REGISTRY, build_sampler
from detlib.data.samplers.class_sampler import RepeatAugSampler, UniformClassSampler
from detlib.data.samplers.cluster_sampler import ReplacementSampler, UniformClusterSampler
from detlib.data.samplers.distributed_sampler import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detlib.data.samplers.grouped_batch_sampler import GroupedBatchSampler

__all__ = [
    "SAMPLER_REGISTRY",
    "GroupedBatchSampler",
    "InferenceSampler",
    "RandomSubsetTrainingSampler",
    "RepeatAugSampler",
    "RepeatFactorTrainingSampler",
    "ReplacementSampler",
    "TrainingSampler",
    "UniformClassSampler",
    "UniformClusterSampler",
    "build_sampler",
]
