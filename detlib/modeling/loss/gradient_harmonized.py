"""Gradient harmonized losses: elements count less, the more elements have a gradient of about their size.

From https://arxiv.org/abs/1811.05181: the range [0, 1] of gradient norms is cut into bins of equal width, and an
element is divided by the number of elements in its bin (the unit region approximation, eq. 8 and 9).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.layers.losses import upcast
from detlib.modeling.loss.build import LOSS_REGISTRY
from detlib.modeling.loss.targets import check_same_shape, class_targets
from detlib.modeling.loss.weighted import WeightedLoss, align_weight, weight_reduce_loss

__all__ = ["GHMC", "GHMR"]

_NUM_LANES = 1024


class _HarmonizedLoss(WeightedLoss):
    """Base: weights the elements by the density of their gradients, which a subclass computes with them."""

    def __init__(self, bins: int, momentum: float, reduction: str, loss_weight: float) -> None:
        super().__init__(reduction, loss_weight)
        self.density = _InverseDensity(bins, momentum)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """As :meth:`WeightedLoss.forward`, but elements with a weight of 0 are left out, and ``avg_factor`` is ignored.

        The mean divides by the number of elements that count.
        """
        reduction = self.choose_reduction(reduction_override)
        loss, gradient = self.elements_and_gradient(upcast(pred), target)
        weight = loss.new_ones(()) if weight is None else upcast(weight)
        weight = align_weight(weight, loss).expand_as(loss)
        total = self.total(weight).clamp(min=1)
        harmonized = total * self.density(gradient.detach(), weight > 0)
        return self.loss_weight * weight_reduce_loss(
            loss, harmonized, reduction, avg_factor=total if reduction == "mean" else None
        )

    def elements_and_gradient(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The elements of the loss, and the norm of their gradient in [0, 1]."""
        raise NotImplementedError

    def total(self, weight: Tensor) -> Tensor:
        """How many elements count."""
        return (weight > 0).sum().to(weight.dtype)


@LOSS_REGISTRY.register()
class GHMC(_HarmonizedLoss):
    """Harmonized cross-entropy of sigmoids, whose gradient is |p - target|; one element per class.

    Targets are integer labels (N,) or (N, C) in 0..1, as those of :class:`FocalLoss`.
    """

    use_sigmoid = True

    def __init__(
        self, bins: int = 10, momentum: float = 0.0, reduction: str = "mean", loss_weight: float = 1.0
    ) -> None:
        """
        Args:
            bins: number of bins of the gradients.
            momentum: of the running counts of the bins; 0 counts each batch anew.
        """
        super().__init__(bins, momentum, reduction, loss_weight)

    def elements_and_gradient(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        targets = class_targets(target, pred)
        loss = F.binary_cross_entropy_with_logits(pred, targets, reduction="none")
        return loss, (pred.sigmoid() - targets).abs()


@LOSS_REGISTRY.register()
class GHMR(_HarmonizedLoss):
    """Harmonized smooth L1 loss sqrt(d^2 + mu^2) - mu of a difference d, whose gradient is |d| / sqrt(d^2 + mu^2)."""

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        """
        Args:
            mu: where the loss turns from L2 into L1; more than 0.
            bins: number of bins of the gradients.
            momentum: of the running counts of the bins; 0 counts each batch anew.
        """
        super().__init__(bins, momentum, reduction, loss_weight)
        if mu <= 0:
            raise ValueError(f"mu is {mu}; expected more than 0")
        self.mu = mu

    def elements_and_gradient(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        check_same_shape(pred, target)
        difference = pred - target
        root = (difference.square() + self.mu**2).sqrt()
        return root - self.mu, difference.abs() / root

    def total(self, weight: Tensor) -> Tensor:
        """The sum of the weights, as upstream."""
        return weight.sum()


class _InverseDensity(nn.Module):
    """1 / (elements in the same bin x bins that are not empty): sums to 1 over all elements that count."""

    def __init__(self, bins: int, momentum: float) -> None:
        super().__init__()
        if bins < 1:
            raise ValueError(f"bins is {bins}; expected 1 or more")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; expected a value in [0, 1)")
        self.bins = bins
        self.momentum = momentum
        if momentum > 0:
            self.register_buffer("running_count", torch.zeros(bins))

    @torch.no_grad()
    def forward(self, gradient: Tensor, valid: Tensor) -> Tensor:
        """
        Args:
            gradient: (N, ...) in [0, 1].
            valid: (N, ...) bool; the others get 0 and are not counted.
        """
        inner_edges = torch.linspace(0, 1, self.bins + 1, dtype=gradient.dtype, device=gradient.device)[1:-1]
        index = torch.bucketize(gradient, inner_edges, right=True)  # (N, ...), 0..bins-1
        count = self._count(index, valid)  # (bins,)
        num_filled = (count > 0).sum()
        if self.momentum > 0:
            running = self.momentum * self.running_count + (1 - self.momentum) * count
            self.running_count.copy_(torch.where(count > 0, running, self.running_count))
            count = self.running_count
        return (1 / (count[index] * num_filled)).masked_fill(~valid, 0)

    def _count(self, index: Tensor, valid: Tensor) -> Tensor:
        # In lanes, which are summed at last: float32 cannot count ones beyond 2^24, which the anchors of a batch
        # exceed, and a GPU adds to one address at a time.
        lane = torch.arange(index.numel(), device=index.device) % _NUM_LANES
        count = torch.zeros(_NUM_LANES * self.bins, device=index.device)
        count.scatter_add_(0, lane * self.bins + index.flatten(), valid.flatten().to(count.dtype))
        return count.view(_NUM_LANES, self.bins).sum(dim=0)
