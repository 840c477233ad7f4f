"""SwAV: views of an image predict each other's cluster, among prototypes that learn along and are all used alike.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments"
(https://arxiv.org/abs/2006.09882).

Shapes: N samples per process, B of all processes, V crops of each, d channels of the embeddings, K prototypes, L
embeddings in the queue.
"""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import LOSS_REGISTRY, build_loss
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.self_supervised.base import SelfSupModel, log_spread
from detlib.modeling.self_supervised.distributed import concat_all_gather
from detlib.modeling.self_supervised.heads import similarities
from detlib.modeling.self_supervised.necks import batch_norm_1d, mean_of_cells
from detlib.utils import comm
from detlib.utils.accumulation import is_last_part
from detlib.utils.errors import ConfigError

__all__ = ["SwAV", "SwAVHead", "SwAVLoss", "SwAVNeck", "sinkhorn"]

NUM_CODES = 2
"""The first crops, which are large, have codes; the small ones only predict (sec. 3.2)."""


@META_ARCH_REGISTRY.register()
class SwAV(SelfSupModel):
    """Crops of several sizes through one network; its head is a SwAVHead."""

    num_views = NUM_CODES
    compares_samples = True
    needs = ("NECK", "HEAD")

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """``loss``: the codes of the first two crops, as all others predict them (eq. 6)."""
        embeddings = self.neck(self.pooled_features(views)).unflatten(0, (len(views), -1))  # (V, N, d)
        log_spread(embeddings[0])
        return {"loss": self.head(embeddings)}

    def pooled_features(self, views: list[Tensor]) -> Tensor:
        """Of each crop the mean of its cells: (V * N, C), crop by crop. Crops of one size pass together."""
        batches = [torch.cat(list(group)) for _, group in groupby(views, key=lambda view: view.shape)]
        return torch.cat([mean_of_cells(self.feature_map(batch)) for batch in batches])


@NECK_REGISTRY.register()
class SwAVNeck(nn.Module):
    """Two linear layers with batch norm and ReLU between them; embeddings have length 1."""

    def __init__(self, in_channels: int, hid_channels: int = 2048, out_channels: int = 128, norm: str = "BN") -> None:
        """
        Args:
            norm: "BN" or "SyncBN".
        """
        super().__init__()
        self.out_channels = out_channels
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hid_channels),
            batch_norm_1d(norm, hid_channels),
            nn.ReLU(inplace=True),
            nn.Linear(hid_channels, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.mlp(mean_of_cells(x)).float(), dim=1)


@HEAD_REGISTRY.register()
class SwAVHead(nn.Module):
    """The prototypes, and the queue of embeddings that helps to fill all clusters when batches are small.

    Attributes:
        queue: (L, 2, d), the newest first; of all processes, and the same in all.
        num_steps: training steps so far.
        changes_weights_in_forward: tells FSDP, which would forget such changes.
    """

    changes_weights_in_forward = True  # the lengths of the prototypes

    def __init__(
        self,
        in_channels: int,
        num_prototypes: int = 3000,
        epsilon: float = 0.05,
        sinkhorn_iters: int = 3,
        freeze_iters: int = 0,
        queue_len: int = 0,
        queue_start: int = 0,
        loss: Any = None,
    ) -> None:
        """
        Args:
            in_channels: d.
            num_prototypes: K.
            epsilon: how soft the codes are; see :func:`sinkhorn`, sinkhorn_iters too.
            freeze_iters: steps in which the prototypes do not learn (app. A.1).
            queue_len: L, of which as many are used as are whole batches; 0 for none.
            queue_start: steps until the queue is used.
            loss: of scores and codes; by default SwAVLoss.
        """
        super().__init__()
        if num_prototypes < 2 or sinkhorn_iters < 1 or queue_len < 0 or epsilon <= 0:
            raise ConfigError(
                f"MODEL.SSL.HEAD has NUM_PROTOTYPES {num_prototypes}, SINKHORN_ITERS {sinkhorn_iters}, QUEUE_LEN "
                f"{queue_len} and EPSILON {epsilon}; they must be at least 2, 1 and 0, and the last above 0"
            )
        self.prototypes = nn.Linear(in_channels, num_prototypes, bias=False)
        self.epsilon = epsilon
        self.sinkhorn_iters = sinkhorn_iters
        self.freeze_iters = freeze_iters
        self.queue_start = queue_start
        self.loss_module = build_loss(loss or {"NAME": "SwAVLoss"})
        self.register_buffer("queue", torch.zeros(queue_len, NUM_CODES, in_channels))
        self.register_buffer("num_steps", torch.tensor(0))

    def forward(self, embeddings: Tensor) -> Tensor:
        """The loss of embeddings (V, N, d), the first two of which have codes."""
        self.normalize_prototypes()
        codes = self.codes(embeddings[:NUM_CODES])
        # Frozen ones get gradients of zero, rather than none, which DDP would wait for. What weight decay then takes
        # from their length, the next normalisation gives back.
        frozen = self.num_steps < self.freeze_iters
        weight = torch.where(frozen, self.prototypes.weight.detach(), self.prototypes.weight)
        scores = similarities(embeddings.flatten(0, 1), weight).unflatten(0, embeddings.shape[:2])  # (V, N, K)
        if self.training and is_last_part():
            self.num_steps += 1
        return self.loss_module(scores, codes)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Make the length of each prototype 1."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    @torch.no_grad()
    def codes(self, embeddings: Tensor) -> Tensor:
        """The codes (2, N, K) of embeddings (2, N, d), without gradient; when training, the embeddings enter the queue.

        Each process computes those of all, as embeddings are smaller than scores and the queue needs them anyway.
        """
        batch = concat_all_gather(embeddings.transpose(0, 1).to(self.queue.dtype))  # (B, 2, d)
        length = len(self.queue) - len(self.queue) % len(batch)
        samples = torch.cat([self.queue[:length], batch])  # (length + B, 2, d)
        scores = similarities(samples.flatten(0, 1), self.prototypes.weight).unflatten(0, (-1, NUM_CODES))
        counts = torch.ones(len(samples), device=samples.device)
        if length:
            is_full = self.queue[length - 1].any()
            counts[:length] = (is_full & (self.num_steps >= self.queue_start)).to(counts.dtype)
        codes = sinkhorn(scores, self.epsilon, self.sinkhorn_iters, counts)
        if self.training:
            self.queue[:length] = torch.cat([batch, self.queue[:length]])[:length]
        return codes[length:].chunk(comm.get_world_size())[comm.get_rank()].transpose(0, 1)


@LOSS_REGISTRY.register()
class SwAVLoss(nn.Module):
    """The cross entropy of the codes of each coded crop and what each other crop predicts, averaged (eq. 2)."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"MODEL.SSL.LOSS.TEMPERATURE is {temperature}; it must be above 0")
        self.temperature = temperature

    def forward(self, scores: Tensor, codes: Tensor) -> Tensor:
        """
        Args:
            scores: (V, N, K).
            codes: (2, N, K) of the first two crops, of sum 1.
        """
        log_predictions = (scores.float() / self.temperature).log_softmax(dim=2)
        terms = [
            -(code * prediction).sum(dim=1).mean()
            for coded, code in enumerate(codes)
            for crop, prediction in enumerate(log_predictions)
            if crop != coded
        ]
        return torch.stack(terms).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, num_iters: int, counts: Tensor | None = None) -> Tensor:
    """Soft assignments that use each prototype alike: Q of eq. 5, found by scaling rows and columns in turn.

    In logarithms, so that nothing overflows, and a prototype far from all samples is no division by zero.

    Args:
        scores: (B, ..., K).
        epsilon: the smaller, the nearer are the assignments to 0 or 1.
        counts: (B,) 1 for samples that share the prototypes, 0 for such as are not there; by default all are.

    Returns:
        As the scores; those of each sample sum to 1.
    """
    log_q = scores.float() / epsilon
    log_counts = log_q.new_zeros(len(log_q)) if counts is None else counts.log()
    log_counts = log_counts.view(-1, *[1] * (log_q.dim() - 1))
    for _ in range(num_iters):
        log_q = log_q - (log_q + log_counts).logsumexp(dim=0)
        log_q = log_q - log_q.logsumexp(dim=-1, keepdim=True)
    return log_q.exp()
