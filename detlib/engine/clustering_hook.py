"""The hook that clusters the features of all images, for DeepCluster and ODC."""

import logging
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from detlib.config import CfgNode
from detlib.data import build_feature_loader
from detlib.engine.fsdp import is_sharded
from detlib.engine.train_loop import HookBase
from detlib.engine.training_state import unwrap_model
from detlib.evaluation.evaluator import inference_context
from detlib.modeling.self_supervised import PseudoLabelModel
from detlib.utils import comm
from detlib.utils.errors import ConfigError

__all__ = ["ClusteringHook", "build_clustering_hook"]

logger = logging.getLogger(__name__)


class ClusteringHook(HookBase):
    """Gives a :class:`PseudoLabelModel` its labels: before training, unless a checkpoint has them, and each epoch.

    A sampler with a method ``set_labels``, such as UniformClusterSampler, gets them too, and the loader starts anew.
    Register it before the hook that saves, so that a checkpoint has the labels with which training goes on.
    """

    def __init__(self, model: nn.Module, data_loader: Iterable, iters_per_epoch: int) -> None:
        """
        Args:
            data_loader: gives each sample of the training data once, with its ``sample_idx``; with several processes,
                each its part. See build_feature_loader.
            iters_per_epoch: of training.
        """
        self._model = unwrap_model(model)
        self._data_loader = data_loader
        self._iters_per_epoch = iters_per_epoch

    def before_train(self) -> None:
        if not self._model.is_clustered:
            self.cluster()
        self._tell_sampler(epoch=self.trainer.iter // self._iters_per_epoch)

    def after_step(self) -> None:
        num_steps = self.trainer.iter + 1
        if not self._model.clusters_every_epoch or num_steps == self.trainer.max_iter:
            return
        if num_steps % self._iters_per_epoch == 0:
            self.cluster()
            epoch = num_steps // self._iters_per_epoch
            self._tell_sampler(epoch)
            if hasattr(self.trainer.data_loader, "restart"):
                self.trainer.data_loader.restart(epoch)

    def cluster(self) -> None:
        """Find new labels."""
        start = time.perf_counter()
        renewed = self._model.cluster(self._features())
        for parameter in renewed:  # What momentum points to is the past of other weights.
            self.trainer.optimizer.state.pop(parameter, None)
        counts = torch.bincount(self._model.memory_bank.label_bank)
        logger.info(
            "Clustered %d samples in %.1f s: %d clusters have members, the largest one %d.",
            counts.sum(),
            time.perf_counter() - start,
            (counts > 0).sum(),
            counts.max(),
        )

    @torch.no_grad()
    def _features(self) -> Tensor | None:
        """(n, C) in the order of the dataset, on the CPU; None in all processes but the first."""
        parts = []
        with inference_context(self._model):
            for batch in self._data_loader:
                indices = torch.tensor([sample["sample_idx"] for sample in batch])
                parts.append((indices, self._model.clustering_features(batch).cpu()))
        parts = [part for parts_of_process in comm.gather(parts) for part in parts_of_process]
        if not comm.is_main_process():
            return None
        # Each is copied once: of ImageNet and a ResNet-50 all together are 10 GB.
        num_samples, channels = sum(len(indices) for indices, _ in parts), parts[0][1].shape[1]
        features = torch.empty(num_samples, channels)
        for indices, of_batch in parts:
            features[indices] = of_batch
        return features

    def _tell_sampler(self, epoch: int) -> None:
        loader = self.trainer.data_loader
        sampler = getattr(getattr(loader, "dataset", None), "sampler", None)
        if hasattr(sampler, "set_labels"):
            labels = self._model.memory_bank.label_bank.cpu().numpy()
            sampler.set_labels(labels, epoch=epoch)
            self.trainer.reset_data_loader(lambda: loader)  # Worker processes have copies of the sampler.


def build_clustering_hook(cfg: CfgNode, model: nn.Module) -> ClusteringHook | None:
    """The hook for a model that learns from clusters, with the data of DATASETS.TRAIN; None for others.

    Raises:
        ConfigError: the memory of the model is for another number of samples, or FSDP has dealt its weights out.
    """
    if not isinstance(unwrap_model(model), PseudoLabelModel):
        return None
    if is_sharded(model):
        raise ConfigError(
            f"SOLVER.PARALLEL: fsdp cannot train {cfg.MODEL.META_ARCHITECTURE}, of which features are asked for, and a "
            "classifier is made anew, between the steps; use SOLVER.PARALLEL: ddp"
        )
    batch_size = max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1)
    loader = build_feature_loader(cfg, batch_size)
    num_samples, length = len(loader.dataset), len(unwrap_model(model).memory_bank.label_bank)
    if num_samples != length:
        raise ConfigError(
            f"the memory of the model is for {length} samples, but DATASETS.TRAIN has {num_samples}; build the model "
            "of with_memory_length(cfg), as DefaultTrainer does"
        )
    return ClusteringHook(model, loader, max(num_samples // cfg.SOLVER.IMS_PER_BATCH, 1))
