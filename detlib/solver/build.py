"""From a config to an optimizer and its learning-rate schedule."""

import logging
import math
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detlib.config.config import CfgNode
from detlib.solver.lars import LARS
from detlib.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from detlib.solver.param_options import lr_factor_of, param_option_groups, read_param_options
from detlib.utils.errors import ConfigError

__all__ = [
    "GradientClipType",
    "build_lr_scheduler",
    "build_optimizer",
    "get_default_optimizer_params",
    "maybe_add_gradient_clipping",
    "reduce_param_groups",
]

NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """What is limited for each parameter by itself: every value of its gradient, or the gradient's norm."""

    VALUE = "value"
    NORM = "norm"


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """What SOLVER.OPTIMIZER names, over the trainable parameters, with gradient clipping if the config wants it."""
    options = read_param_options(cfg.SOLVER, model)
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=lr_factor_of(cfg.SOLVER.LAYER_DECAY, model, options),
        overrides={name: {"weight_decay": 0.0} for name in cfg.SOLVER.NO_WEIGHT_DECAY},
    )
    if not params:
        raise ConfigError(
            "the model has no trainable parameter; is MODEL.BACKBONE.FREEZE_AT too high, or all of a graph frozen?"
        )
    params = reduce_param_groups(params + param_option_groups(model, options))
    shared = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    momentum = cfg.SOLVER.MOMENTUM
    name = cfg.SOLVER.OPTIMIZER
    if name == "SGD":
        optimizer, own = torch.optim.SGD, {"momentum": momentum, "nesterov": cfg.SOLVER.NESTEROV, "foreach": True}
    elif name == "LARS":
        optimizer, own = LARS, {"momentum": momentum}
    elif name == "AdamW":
        optimizer, own = torch.optim.AdamW, {"betas": tuple(cfg.SOLVER.BETAS), "foreach": True}
    else:
        raise ConfigError(f"SOLVER.OPTIMIZER is {name!r}; it must be SGD, LARS or AdamW")
    return maybe_add_gradient_clipping(cfg, optimizer)(params, **shared, **own)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups of the trainable parameters, as torch's optimizers take them.

    What is None is left to the optimizer's own default.

    Args:
        weight_decay_norm: decay of the weights and biases of normalisation layers.
        bias_lr_factor: factor of ``base_lr`` for parameters named "bias".
        weight_decay_bias: decay of parameters named "bias", also of those in normalisation layers.
        lr_factor_func: full parameter name -> factor of the rate, for instance to let it fall with depth.
        overrides: last part of a parameter's name -> options, such as ``{"pos_embed": {"weight_decay": 0}}``. They
            come after everything else.
    """
    defaults = _without_none(lr=base_lr, weight_decay=weight_decay)
    overrides = overrides or {}
    bias_options = _bias_options(base_lr, bias_lr_factor, weight_decay_bias)
    if bias_options and "bias" in overrides:
        raise ValueError("give either overrides['bias'], or bias_lr_factor and weight_decay_bias")
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func multiplies base_lr, so base_lr must be given")
    groups = []
    for name, module, param in _trainable_parameters(model):
        last_name = name.rsplit(".", 1)[-1]
        options = dict(defaults)
        if isinstance(module, NORM_LAYERS):
            options.update(_without_none(weight_decay=weight_decay_norm))
        if last_name == "bias":
            options.update(bias_options)
        if lr_factor_func is not None:
            options["lr"] *= lr_factor_func(name)
        options.update(overrides.get(last_name, {}))
        groups.append({"params": [param], **options})
    return reduce_param_groups(groups)


def reduce_param_groups(params: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merges groups with equal options, since optimizers work faster on few large groups.

    Options that later groups give for the same parameter replace the earlier ones.
    """
    options_of: dict[Tensor, dict[str, Any]] = {}
    for group in params:
        members = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        for param in members:
            options_of.setdefault(param, {}).update({k: v for k, v in group.items() if k != "params"})
    merged: dict[tuple, dict[str, Any]] = {}
    for param, options in options_of.items():
        key = tuple(sorted(options.items()))
        merged.setdefault(key, {"params": [], **options})["params"].append(param)
    return list(merged.values())


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: type[Optimizer]) -> type[Optimizer]:
    """A subclass that clips gradients before each step, or ``optimizer`` itself if clipping is off.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` is one of :class:`GradientClipType`, or "full_model" to limit the norm of the
    gradients of all parameters together. An optimizer object is changed in place.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    clip = _build_clipper(cfg.SOLVER.CLIP_GRADIENTS)

    def clip_before_step(self: Optimizer, args: tuple, kwargs: dict) -> None:
        clip(param for group in self.param_groups for param in group["params"])

    if isinstance(optimizer, Optimizer):
        optimizer.register_step_pre_hook(clip_before_step)
        return optimizer

    class ClippingOptimizer(optimizer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.register_step_pre_hook(clip_before_step)

    ClippingOptimizer.__name__ = ClippingOptimizer.__qualname__ = f"{optimizer.__name__}WithGradientClip"
    return ClippingOptimizer


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """The schedule of ``SOLVER.LR_SCHEDULER_NAME``, to be stepped once per iteration."""
    if cfg.SOLVER.MAX_ITER < 1:
        raise ConfigError(f"SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}; a training has at least 1 iteration")
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name not in _SCHEDULES:
        raise ConfigError(f"SOLVER.LR_SCHEDULER_NAME is {name!r}; choose one of {', '.join(_SCHEDULES)}")
    if cfg.SOLVER.RESCALE_INTERVAL and cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
        raise ConfigError(
            f"SOLVER.RESCALE_INTERVAL fits the schedule into what SOLVER.WARMUP_ITERS {cfg.SOLVER.WARMUP_ITERS} leave "
            f"of SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}, and that is nothing; shorten the warm-up"
        )
    schedule = WarmupParamScheduler(
        _SCHEDULES[name](cfg.SOLVER),
        cfg.SOLVER.WARMUP_FACTOR,
        min(cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER, 1.0),
        cfg.SOLVER.WARMUP_METHOD,
        cfg.SOLVER.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=cfg.SOLVER.MAX_ITER)


def _multi_step(solver: CfgNode) -> ParamScheduler:
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    if len(steps) < len(solver.STEPS):
        logging.getLogger(__name__).warning(
            "SOLVER.STEPS %s reach past SOLVER.MAX_ITER %d; the learning rate falls at %s.",
            solver.STEPS,
            solver.MAX_ITER,
            f"{steps} only" if steps else "none of them",
        )
    return _decay_at(steps, solver)


def _fixed_gamma(solver: CfgNode) -> ParamScheduler:
    num_parts = solver.NUM_DECAYS + 1
    if num_parts > solver.MAX_ITER:
        raise ConfigError(f"SOLVER.NUM_DECAYS {solver.NUM_DECAYS} do not fit in SOLVER.MAX_ITER {solver.MAX_ITER}")
    return _decay_at([math.ceil(solver.MAX_ITER * part / num_parts) for part in range(1, num_parts)], solver)


def _decay_at(steps: list[int], solver: CfgNode) -> ParamScheduler:
    if any(step <= previous for previous, step in zip([0, *steps], steps, strict=False)):
        raise ConfigError(f"SOLVER.STEPS must rise and be above 0, but they are {steps}")
    factors = [solver.GAMMA**num_decays for num_decays in range(len(steps) + 1)]
    return MultiStepParamScheduler(factors, num_updates=solver.MAX_ITER, milestones=steps)


def _cosine(solver: CfgNode) -> ParamScheduler:
    if not 0 <= solver.BASE_LR_END <= solver.BASE_LR:
        raise ConfigError(f"SOLVER.BASE_LR_END {solver.BASE_LR_END} must be in [0, SOLVER.BASE_LR {solver.BASE_LR}]")
    return CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR if solver.BASE_LR else 0.0)


_SCHEDULES: dict[str, Callable[[CfgNode], ParamScheduler]] = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _fixed_gamma,
}


def _build_clipper(clip: CfgNode) -> Callable[[Iterable[Tensor]], None]:
    def clip_each_norm(params: Iterable[Tensor]) -> None:
        for param in params:
            nn.utils.clip_grad_norm_(param, clip.CLIP_VALUE, clip.NORM_TYPE)

    clippers: dict[str, Callable[[Iterable[Tensor]], None]] = {
        GradientClipType.VALUE.value: lambda params: nn.utils.clip_grad_value_(params, clip.CLIP_VALUE),
        GradientClipType.NORM.value: clip_each_norm,
        "full_model": lambda params: nn.utils.clip_grad_norm_(params, clip.CLIP_VALUE, clip.NORM_TYPE),
    }
    if clip.CLIP_TYPE not in clippers:
        raise ConfigError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}; use one of {', '.join(clippers)}")
    return clippers[clip.CLIP_TYPE]


def _trainable_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Module, nn.Parameter]]:
    """(full name, its module, parameter), each parameter once, also if modules share it."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            if param.requires_grad and param not in seen:
                seen.add(param)
                yield f"{prefix}.{name}" if prefix else name, module, param


def _bias_options(
    base_lr: float | None, bias_lr_factor: float | None, weight_decay_bias: float | None
) -> dict[str, float]:
    options = _without_none(weight_decay=weight_decay_bias)
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor multiplies base_lr, so base_lr must be given")
        options["lr"] = base_lr * bias_lr_factor
    return options


def _without_none(**options: float | None) -> dict[str, float]:
    return {name: value for name, value in options.items() if value is not None}
