"""Heads of two or more self-supervised algorithms, and their losses."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.config import build_component
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import LOSS_REGISTRY, build_loss
from detlib.modeling.neck import NECK_REGISTRY
from detlib.utils.errors import ConfigError

__all__ = [
    "ContrastiveHead",
    "CosineSimilarityLoss",
    "LatentPredictHead",
    "checked_temperature",
    "full_precision",
    "similarities",
]


def full_precision(x: Tensor) -> AbstractContextManager:
    """In it products on the device of a tensor are not rounded by autocast."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def similarities(a: Tensor, b: Tensor) -> Tensor:
    """The dot products (M, K) of (M, d) and (K, d), in float32 also under autocast.

    Divided by temperatures such as 0.07 they leave no place for the rounding of shorter floats.
    """
    with full_precision(a):
        return a.float() @ b.float().T


def checked_temperature(temperature: float) -> float:
    """The temperature itself.

    Raises:
        ConfigError: it is not above 0, and the loss would be no number or reward what is unlike.
    """
    if temperature <= 0:
        raise ConfigError(f"MODEL.SSL.HEAD.TEMPERATURE is {temperature}; it must be above 0, such as 0.1")
    return temperature


@LOSS_REGISTRY.register()
class CosineSimilarityLoss(nn.Module):
    """``shift - scale * cos(pred, target)``, averaged over the rows."""

    def __init__(self, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.shift = shift
        self.scale = scale

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """
        Args:
            pred: (N, d).
            target: (N, d).
        """
        return self.shift - self.scale * F.cosine_similarity(pred.float(), target.float(), dim=1).mean()


@HEAD_REGISTRY.register()
class ContrastiveHead(nn.Module):
    """Tell the positive among many negatives (InfoNCE, https://arxiv.org/abs/1807.03748, eq. 4)."""

    def __init__(self, temperature: float = 0.1, loss: Any = None) -> None:
        """
        Args:
            temperature: the similarities are divided by it.
            loss: of (M, 1 + K) logits and M labels, all 0; by default the cross entropy.
        """
        super().__init__()
        self.temperature = checked_temperature(temperature)
        self.loss_module = build_loss(loss or {"NAME": "CrossEntropyLoss"})

    def forward(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss.

        Args:
            positive: (M, 1) similarities.
            negative: (M, K) similarities.
        """
        logits = torch.cat([positive, negative], dim=1).float() / self.temperature
        return self.loss_module(logits, logits.new_zeros(len(logits), dtype=torch.int64))


@HEAD_REGISTRY.register()
class LatentPredictHead(nn.Module):
    """Predict the embedding of one view from that of another, which gets no gradient (BYOL, SimSiam)."""

    def __init__(self, predictor: Any, in_channels: int, loss: Any = None) -> None:
        """
        Args:
            predictor: a neck by name, such as ``{"NAME": "NonLinearNeck", "HID_CHANNELS": 512, ...}``.
            in_channels: of the embeddings.
            loss: of predictions and targets (N, d); by default CosineSimilarityLoss.
        """
        super().__init__()
        offers = {"in_channels": in_channels, "out_channels": in_channels, "with_avg_pool": False}
        self.predictor = build_component(NECK_REGISTRY, predictor, **offers)
        self.loss_module = build_loss(loss or {"NAME": "CosineSimilarityLoss"})

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """The loss of (N, d) embeddings against (N, d) targets."""
        return self.loss_module(self.predictor(embeddings), targets.detach())
