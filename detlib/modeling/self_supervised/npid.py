"""NPID: each image is a class of its own, told from others by what a bank remembers of each.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (https://arxiv.org/abs/1805.01978).
Shapes: N samples, d channels of the embeddings, n samples in the dataset, K negatives.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.config import CfgNode, build_component, configurable
from detlib.modeling.loss import LOSS_REGISTRY
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread, sample_indices, ssl_parts
from detlib.modeling.self_supervised.distributed import concat_all_gather
from detlib.modeling.self_supervised.memories import MEMORY_REGISTRY, SimpleMemory
from detlib.utils.errors import ConfigError

__all__ = ["NCE", "NPID"]


@META_ARCH_REGISTRY.register()
class NPID(SelfSupModel):
    """One view of each sample, whose ``sample_idx`` is its class; the head is a ContrastiveHead."""

    needs = ("NECK", "HEAD", "MEMORY")

    @configurable
    def __init__(self, *, memory_bank: SimpleMemory, **parts: Any) -> None:
        """
        Args:
            memory_bank: of all samples of the dataset.
            parts: of :class:`SelfSupModel`.
        """
        super().__init__(**parts)
        self.memory_bank = memory_bank
        loss, length = getattr(self.head, "loss_module", None), len(memory_bank.features)
        if isinstance(loss, NCE) and length and loss.num_samples != length:
            raise ConfigError(
                f"MODEL.SSL.LOSS.NUM_SAMPLES is {loss.num_samples}, but MODEL.SSL.MEMORY remembers {length} samples; "
                "set it to the number of samples of DATASETS.TRAIN"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = ssl_parts(cfg, cls.needs)
        offers = {"channels": parts["neck"].out_channels, "length": 0}
        return {**parts, "memory_bank": build_component(MEMORY_REGISTRY, cfg.MODEL.SSL.MEMORY, **offers)}

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: the class of the sample against K others (eq. 2, its sum over a random part of the dataset)."""
        indices = sample_indices(samples, len(self.memory_bank.features), self.device)  # (N,)
        embeddings = F.normalize(self.neck(self.feature_map(views[0])).float(), dim=1)  # (N, d)
        log_spread(embeddings)
        loss = self.head(*self.memory_bank.similarities(embeddings, indices))
        self.memory_bank.update(indices, embeddings.detach())
        return {"loss": loss}


@LOSS_REGISTRY.register()
class NCE(nn.Module):
    """Noise-contrastive estimation (sec. 3.2): is it the class of the sample, or one drawn at random?

    ``-ln h(positive) - sum ln(1 - h(negative))``, where ``h = P / (P + K / n)`` and ``P = exp(logit) / Z``.

    Attributes:
        normalizer: Z, estimated from the first batch and constant then; 0 before.
    """

    def __init__(self, num_samples: int) -> None:
        """
        Args:
            num_samples: n, the LENGTH of the memory.
        """
        super().__init__()
        self.num_samples = num_samples
        self.register_buffer("normalizer", torch.tensor(0.0))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            logits: (N, 1 + K), similarities divided by the temperature.
            target: (N,) columns of the positives.
        """
        normalizer = self._normalizer_of(logits.detach())
        noise = (logits.shape[1] - 1) / self.num_samples
        odds = logits - normalizer.log() - math.log(noise)  # P / (P + noise) = sigmoid(ln P - ln noise)
        is_positive = torch.zeros_like(odds).scatter_(1, target[:, None], 1.0)
        return F.binary_cross_entropy_with_logits(odds, is_positive, reduction="sum") / len(logits)

    def _normalizer_of(self, logits: Tensor) -> Tensor:
        """Z, at first n times the mean of exp(logit) of all processes (eq. 8)."""
        mean = concat_all_gather(logits.exp().mean()[None]).mean()
        # In each step, as a branch on whether Z is known would wait for the GPU.
        normalizer = torch.where(self.normalizer > 0, self.normalizer, mean * self.num_samples)
        if self.training:
            self.normalizer.copy_(normalizer)
        return normalizer
