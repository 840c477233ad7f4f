"""What is remembered of earlier batches, in buffers that are the same in all processes.

Shapes: N samples per process, B of all processes, d channels of the embeddings, which all have length 1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.modeling.self_supervised.distributed import concat_all_gather
from detlib.modeling.self_supervised.heads import similarities
from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = ["MEMORY_REGISTRY", "KeyQueue", "SimpleMemory", "last_of_equal"]

MEMORY_REGISTRY = Registry("MEMORY")
MEMORY_REGISTRY.__doc__ = """
Memories of earlier samples: modules built by `build_component` that keep what they remember in buffers, so that
checkpoints have it. The ``length`` of those with a place for each sample of the dataset is filled in by DefaultTrainer.
"""


class KeyQueue(nn.Module):
    """The keys of the last batches, the oldest of which make place for new ones (MoCo, arXiv:1911.05722, sec. 3.2).

    Attributes:
        keys: (d, K), normalised noise at first.
        pointer: the column that is filled next.
    """

    def __init__(self, length: int, channels: int) -> None:
        """
        Args:
            length: K.
            channels: d.
        """
        super().__init__()
        if length < 1:
            raise ConfigError(f"MODEL.SSL.QUEUE_LEN is {length}; it must be 1 or more")
        self.register_buffer("keys", F.normalize(_noise(channels, length), dim=0))
        self.register_buffer("pointer", torch.tensor(0))

    def similarities(self, queries: Tensor) -> Tensor:
        """Of queries (M, d) to all keys: (M, K)."""
        # A copy, as the gradient of the queries needs the keys of now, which `enqueue` overwrites before it is taken.
        return similarities(queries, self.keys.clone().T)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Take the keys (N, d) of each process in; nothing happens in evaluation mode.

        Raises:
            ConfigError: K is no multiple of B.
        """
        if not self.training:
            return
        keys = concat_all_gather(keys.to(self.keys.dtype))  # (B, d)
        length = self.keys.shape[1]
        if length % len(keys):
            raise ConfigError(
                f"MODEL.SSL.QUEUE_LEN is {length}; it must be a multiple of the {len(keys)} images of a batch "
                f"(SOLVER.IMS_PER_BATCH)"
            )
        columns = (self.pointer + torch.arange(len(keys), device=keys.device)) % length
        self.keys[:, columns] = keys.T
        self.pointer.copy_((self.pointer + len(keys)) % length)


@MEMORY_REGISTRY.register()
class SimpleMemory(nn.Module):
    """An embedding of each sample of the dataset, which new ones are averaged into (NPID, arXiv:1805.01978, sec. 3.1).

    Attributes:
        features: (n, d), normalised; noise at first.
    """

    def __init__(
        self,
        length: int,
        channels: int,
        momentum: float = 0.5,
        num_negatives: int = 65536,
        ensure_neg: bool = True,
    ) -> None:
        """
        Args:
            length: n, the number of samples of the dataset; 0 where there is no loss.
            channels: d.
            momentum: weight of the new embedding in the average.
            num_negatives: how many other samples :meth:`similarities` compares each with.
            ensure_neg: never compare a sample with itself as if it were another.
        """
        super().__init__()
        if length == 1:
            raise ConfigError("MODEL.SSL.MEMORY is of one sample, which has no negatives; DATASETS.TRAIN needs more")
        self.momentum = momentum
        self.num_negatives = num_negatives
        self.ensure_neg = ensure_neg
        self.register_buffer("features", F.normalize(_noise(length, channels), dim=1))

    def similarities(self, embeddings: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Of embeddings (N, d) to what is remembered of the same samples, (N, 1), and of random ones.

        Args:
            indices: (N,) places of the samples in the dataset.

        Returns:
            (N, 1) and (N, num_negatives).
        """
        # To all of the dataset: (N, n) numbers are fewer than the (N, num_negatives, d) of the rows that are drawn.
        to_all = similarities(embeddings, self.features.clone())  # A copy, as in KeyQueue.
        return to_all.gather(1, indices[:, None]), to_all.gather(1, self.draw_negatives(indices))

    def draw_negatives(self, indices: Tensor) -> Tensor:
        """For each sample (N,) places of others, drawn uniformly and with replacement: (N, num_negatives)."""
        shape, length = (len(indices), self.num_negatives), len(self.features)
        if not self.ensure_neg:
            return torch.randint(length, shape, device=indices.device)
        drawn = torch.randint(length - 1, shape, device=indices.device)
        return drawn + (drawn >= indices[:, None])  # Leaves the own place out.

    @torch.no_grad()
    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Average normalised embeddings (N, d) of each process into the rows; nothing happens in evaluation mode.

        Of a sample that comes twice in the joint batch, the last embedding counts.
        """
        if not self.training:
            return
        indices = concat_all_gather(indices)  # (B,)
        embeddings = concat_all_gather(embeddings.to(self.features.dtype))  # (B, d)
        new = torch.lerp(self.features[indices], embeddings[last_of_equal(indices)], self.momentum)
        self.features[indices] = F.normalize(new, dim=1)


def last_of_equal(indices: Tensor) -> Tensor:
    """For each of (B,) indices where the same one comes last, so that all that write to one row write the same.

    The order in which a GPU writes is not fixed.
    """
    order = torch.arange(len(indices), device=indices.device)
    return torch.where(indices[:, None] == indices, order, -1).amax(dim=1)


def _noise(*shape: int) -> Tensor:
    """Normal numbers, the same in all processes, whose seeds differ: DDP sends parameters to all, but not buffers."""
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(0))
