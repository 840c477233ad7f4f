"""LARS: a learning rate for each layer, by the norms of its weights and gradients (https://arxiv.org/abs/1708.03888)."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["LARS"]


class LARS(Optimizer):
    """SGD with momentum for large batches, of which no layer takes a step that is large for its weights.

    With w the weights of a layer, g their gradient and b their buffer, 0 at first::

        g = g + weight_decay * w
        g = g * trust_coefficient * |w| / |g|     where neither norm is 0
        b = momentum * b + g
        w = w - lr * b

    Parameters of at most one dimension, biases and scales of normalisation, skip the first two lines. The rate is not
    in the buffer, as in the releases of BYOL and Barlow Twins; where it is, a change of the rate reaches the weights
    only slowly.

    Args:
        params: as all optimizers of torch take them; the other arguments may also be options of groups.
        trust_coefficient: the length of a step, without momentum and rate, as a part of the length of the weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        for name, value in options.items():
            if value < 0:
                raise ValueError(f"{name} is {value}; it must not be negative")
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Change the parameters that have a gradient.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            what ``closure`` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: defaultdict[tuple, list[Tensor]] = defaultdict(list)  # What one call for many tensors can take.
            for param in group["params"]:
                if param.grad is not None:
                    alike[param.device, param.dtype, param.ndim > 1].append(param)
            for (_, _, is_scaled), params in alike.items():
                self._step(params, group, is_scaled)
        return loss

    def _step(self, params: list[Tensor], group: dict[str, Any], is_scaled: bool) -> None:
        """
        Args:
            params: of one device and type.
            is_scaled: whether they have weight decay and a rate of their own.
        """
        grads = [param.grad for param in params]
        if is_scaled:
            if group["weight_decay"]:
                grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            grads = torch._foreach_mul(grads, _local_rates(params, grads, group["trust_coefficient"]))
        for param in params:
            if "momentum_buffer" not in self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        buffers = [self.state[param]["momentum_buffer"] for param in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def _local_rates(params: list[Tensor], grads: list[Tensor], trust_coefficient: float) -> list[Tensor]:
    """The factor of each gradient, as a tensor, so that no device is waited for."""
    param_norms = torch.stack(torch._foreach_norm(params))
    grad_norms = torch.stack(torch._foreach_norm(grads))
    rates = trust_coefficient * param_norms / grad_norms
    return list(torch.where((param_norms > 0) & (grad_norms > 0), rates, 1.0).unbind())
