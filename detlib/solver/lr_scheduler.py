"""Learning-rate schedules: any fvcore schedule as a multiplier of the base rate, with a warm-up in front.

A schedule maps ``where`` in [0, 1], the finished share of the training, to a factor of the base learning rate.
"""

import math
from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "WarmupCosineLR", "WarmupMultiStepLR", "WarmupParamScheduler"]


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule whose first part is replaced by a warm-up that ends where the schedule goes on."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """
        Args:
            warmup_factor: the warm-up starts at this times the first value of the schedule.
            warmup_length: share of the training, in [0, 1], that the warm-up takes.
            warmup_method: "linear", or "constant" to stay at the starting value.
            rescale_interval: squeeze the whole schedule into what the warm-up leaves; otherwise the warm-up hides
                the schedule's beginning.
        """
        start = warmup_factor * scheduler(0.0)
        end = scheduler(0.0 if rescale_interval else warmup_length)
        if warmup_method == "linear":
            warmup = LinearParamScheduler(start, end)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise _unknown_method(warmup_method)
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Sets each group's learning rate to its initial one times ``multiplier(iteration / max_iter)``.

    Groups with a true option ``fixed_lr`` stay at the initial one. Step it once per iteration.
    """

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1) -> None:
        """
        Args:
            max_iter: the iteration at which ``where`` is 1.
            last_iter: the iteration that finished last; -1 at the beginning.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise TypeError(
                f"multiplier is a {type(multiplier).__name__}; give a schedule from fvcore.common.param_scheduler"
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        # The multiplier has no state: it comes from the config that resumes the training.
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        factor = self._multiplier(self.last_epoch / self._max_iter)
        rates = zip(self.optimizer.param_groups, self.base_lrs, strict=True)
        return [base_lr if group.get("fixed_lr", False) else base_lr * factor for group, base_lr in rates]


class WarmupMultiStepLR(LRScheduler):
    """Warm-up, then ``gamma`` times lower from each milestone on. New code combines the classes above."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: list[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        """
        Args:
            milestones: iterations in rising order.
            last_epoch: the iteration that finished last; -1 at the beginning.
        """
        if list(milestones) != sorted(milestones):
            raise ValueError(f"milestones must rise, but they are {list(milestones)}")
        self.milestones = milestones
        self.gamma = gamma
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        warmup = _get_warmup_factor_at_iter(self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor)
        decay = self.gamma ** sum(milestone <= self.last_epoch for milestone in self.milestones)
        return [base_lr * warmup * decay for base_lr in self.base_lrs]


class WarmupCosineLR(LRScheduler):
    """Warm-up times half a cosine wave from the base rate to 0 (SGDR, eq. 5, without restarts).

    The two are multiplied, whereas :class:`WarmupParamScheduler` runs them one after the other.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        """
        Args:
            last_epoch: the iteration that finished last; -1 at the beginning.
        """
        self.max_iters = max_iters
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        warmup = _get_warmup_factor_at_iter(self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor)
        decay = 0.5 * (1.0 + math.cos(math.pi * self.last_epoch / self.max_iters))
        return [base_lr * warmup * decay for base_lr in self.base_lrs]


def _get_warmup_factor_at_iter(method: str, iter: int, warmup_iters: int, warmup_factor: float) -> float:
    """The factor of the learning rate at an iteration, 1 from ``warmup_iters`` on."""
    if iter >= warmup_iters:
        return 1.0
    if method == "constant":
        return warmup_factor
    if method == "linear":
        progress = iter / warmup_iters
        return warmup_factor * (1 - progress) + progress
    raise _unknown_method(method)


def _unknown_method(method: str) -> ValueError:
    return ValueError(f"warm-up method {method!r} is unknown; use 'linear' or 'constant'")
