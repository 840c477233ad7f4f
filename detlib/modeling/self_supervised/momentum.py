"""The momentum encoder: a copy of the network that follows it slowly (MoCo, arXiv:1911.05722, eq. 2)."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode
from detlib.utils.accumulation import is_first_part
from detlib.utils.errors import ConfigError

__all__ = ["MomentumEncoder", "build_momentum_encoder"]

SCHEDULES = ("constant", "cosine")


class MomentumEncoder(nn.Module):
    """A copy of backbone and neck that gets no gradient; parameters are averaged, buffers are its own.

    Attributes:
        num_updates: so far, in the checkpoint, as the schedule depends on it.
        follows: whether there was an update. The first is an exact copy, as the network may have got weights since this
            was made, and keys of weights at random would be worth nothing.
        frozen_on_purpose: tells the trainer that these layers need no weights to be loaded.
        changes_weights_in_forward: tells FSDP, which would forget such changes.
    """

    frozen_on_purpose = True
    changes_weights_in_forward = True

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        *,
        momentum: float = 0.999,
        schedule: str = "constant",
        max_updates: int = 0,
    ) -> None:
        """
        Args:
            momentum: share of the old values that an update keeps; with the schedule "cosine" that of the first one,
                from where it grows to 1 (BYOL, https://arxiv.org/abs/2006.07733, app. B).
            schedule: "constant" or "cosine".
            max_updates: of the whole training, for the schedule "cosine".
        """
        super().__init__()
        if schedule not in SCHEDULES:
            raise ConfigError(f"MODEL.SSL.MOMENTUM_SCHEDULE is {schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        if not 0 <= momentum <= 1:
            raise ConfigError(f"MODEL.SSL.MOMENTUM is {momentum}; it must be in [0, 1]")
        if schedule == "cosine" and max_updates < 1:
            raise ConfigError("the momentum follows a cosine over the training, so SOLVER.MAX_ITER must be 1 or more")
        self.backbone = copy.deepcopy(backbone)
        self.neck = copy.deepcopy(neck)
        self.requires_grad_(False)
        self.momentum = momentum
        self.schedule = schedule
        self.max_updates = max_updates
        self.register_buffer("num_updates", torch.tensor(0))
        self.follows = False  # not asked of num_updates, as each step would wait for the device

    @property
    def current_momentum(self) -> Tensor | float:
        """The share that the next update keeps."""
        if self.schedule == "constant":
            return self.momentum
        progress = (self.num_updates / self.max_updates).clamp(max=1.0)
        return 1 - (1 - self.momentum) * (torch.cos(math.pi * progress) + 1) / 2

    @torch.no_grad()
    def update(self, backbone: nn.Module, neck: nn.Module | None) -> None:
        """Move towards the network; nothing happens in evaluation mode, in which losses are only measured.

        The losses call it, before the keys are made. It moves once for each step of the optimizer: where the gradients
        of several batches are added up, with the first of them. A loop other than detlib's trainers says which that is
        by :func:`~detlib.utils.accumulation.part_of_step`.
        """
        if not self.training or not is_first_part():
            return
        pairs = [(self.backbone, backbone)] + ([(self.neck, neck)] if neck is not None else [])
        own = [parameter for module, _ in pairs for parameter in module.parameters()]
        online = [parameter for _, module in pairs for parameter in module.parameters()]
        # All ways keep equal networks equal to the last bit; the second copies exactly where the momentum is 0.
        if not self.follows:
            torch._foreach_copy_(own, online)
            self.follows = True
        elif self.schedule == "constant":
            torch._foreach_lerp_(own, online, 1 - self.momentum)
        else:
            steps = torch._foreach_sub(online, own)
            torch._foreach_mul_(steps, 1 - self.current_momentum)
            torch._foreach_add_(own, steps)
        self.num_updates += 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "num_updates" in state_dict:
            self.follows = bool(self.num_updates > 0)

    @torch.no_grad()
    def feature_map(self, images: Tensor, in_feature: str) -> Tensor:
        """What the backbone makes of normalised images (N, 3, H, W)."""
        return self.backbone(images)[in_feature]

    @torch.no_grad()
    def forward(self, images: Tensor, in_feature: str) -> Any:
        """What the neck, or else the backbone, makes of normalised images (N, 3, H, W)."""
        features = self.feature_map(images, in_feature)
        return features if self.neck is None else self.neck(features)


def build_momentum_encoder(cfg: CfgNode, backbone: nn.Module, neck: nn.Module | None) -> MomentumEncoder:
    """A copy of the two that follows them as MODEL.SSL.MOMENTUM and MOMENTUM_SCHEDULE say."""
    ssl = cfg.MODEL.SSL
    return MomentumEncoder(
        backbone, neck, momentum=ssl.MOMENTUM, schedule=ssl.MOMENTUM_SCHEDULE, max_updates=cfg.SOLVER.MAX_ITER
    )
