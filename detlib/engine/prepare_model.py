"""What the config says about how a model is computed in training, whichever model it is."""

import functools
import logging
from typing import Any

import torch
from torch import nn

from detlib.config import CfgNode
from detlib.engine.activation_checkpoint import checkpoint_activations
from detlib.modeling.backbone import Backbone
from detlib.modeling.meta_arch.dense_detector import DenseDetector
from detlib.utils.errors import ConfigError

__all__ = ["compile_parts", "prepare_model"]

logger = logging.getLogger(__name__)

# Besides backbones and the heads of dense detectors, what takes and gives tensors alone. Between these parts are lists
# of objects, whose number differs from image to image: there a compiler could only give up, or begin anew in each step.
HEADS = ("proposal_generator.rpn_head", "roi_heads.box_head")


def prepare_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Follows MODEL.ACTIVATION_CHECKPOINT and MODEL.COMPILE, in place and before DistributedDataParallel.

    Names of parameters stay, and an evaluation computes as if it had not been called.
    """
    if cfg.MODEL.COMPILE and cfg.MODEL.ACTIVATION_CHECKPOINT:
        raise ConfigError(
            "MODEL.COMPILE cannot look into what MODEL.ACTIVATION_CHECKPOINT wraps, and itself chooses what to compute "
            "again in the backward pass; use one of them"
        )
    if cfg.MODEL.ACTIVATION_CHECKPOINT:
        checkpoint_activations(model, cfg.MODEL.ACTIVATION_CHECKPOINT)
    if cfg.MODEL.COMPILE:
        compile_parts(model)
    return model


def compile_parts(model: nn.Module, backend: str = "inductor") -> list[str]:
    """Lets torch compile, for training, backbones and heads; returns the names of these modules.

    Args:
        backend: of torch.compile.

    Raises:
        ConfigError: there are none.
    """
    names = _parts_to_compile(model)
    if not names:
        raise ConfigError(
            f"MODEL.COMPILE compiles backbones and heads of detectors, and {type(model).__name__} has none that is "
            "trained; set it to False"
        )
    for name in names:
        module = model.get_submodule(name)
        module.forward = functools.partial(_forward, module, backend)  # As in checkpoint_activations.
    logger.info("Torch compiles %s, which takes minutes at the first steps.", ", ".join(names))
    return names


def _parts_to_compile(model: nn.Module) -> list[str]:
    names: list[str] = []
    heads = (*HEADS, "head") if isinstance(model, DenseDetector) else HEADS
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in names):
            continue
        is_trained = any(parameter.requires_grad for parameter in module.parameters())
        if is_trained and name and (isinstance(module, Backbone) or name in heads):
            names.append(name)
    # Those of a cascade are a list, which has no forward.
    return [name for name in names if type(model.get_submodule(name)).forward is not nn.Module.forward]


def _forward(module: nn.Module, backend: str, *args: Any, **kwargs: Any) -> Any:
    """In place of the forward of a module; images of an evaluation have many sizes, and are too few to compile for."""
    forward = type(module).forward
    return (_compiled(forward, backend) if module.training else forward)(module, *args, **kwargs)


@functools.cache
def _compiled(forward: Any, backend: str) -> Any:
    return torch.compile(forward, backend=backend)
