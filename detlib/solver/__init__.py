"""Optimizers and learning-rate schedules, built from ``cfg.SOLVER``."""

from torch.optim.lr_scheduler import LRScheduler

from detlib.solver.build import build_lr_scheduler, build_optimizer, get_default_optimizer_params
from detlib.solver.lars import LARS
from detlib.solver.lr_scheduler import LRMultiplier, WarmupCosineLR, WarmupMultiStepLR, WarmupParamScheduler

__all__ = [
    "LARS",
    "LRMultiplier",
    "LRScheduler",
    "WarmupCosineLR",
    "WarmupMultiStepLR",
    "WarmupParamScheduler",
    "build_lr_scheduler",
    "build_optimizer",
    "get_default_optimizer_params",
]
