"""The registry of meta-architectures: whole models, from a batch of samples to losses or predictions."""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn

from detlib.config import CfgNode
from detlib.utils.env import select_device
from detlib.utils.registry import Registry

__all__ = ["META_ARCH_REGISTRY", "ClassOption", "build_model", "class_options", "class_options_of"]

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """
Meta-architectures, called as ``arch(cfg)``. The model takes ``list[dict]``, one for each image, and returns a dict of
losses when training, else a ``list[dict]`` of predictions.

The class may name the options of its numbers of classes: ``num_classes_key`` for things, ``num_stuff_classes_key`` for
pixels, ``num_image_classes_key`` for whole images. Else it may have a class method ``class_options(cfg)``.
"""

# What the metadata of datasets calls classes -> the attribute that names the option for their number.
_KEYS = {
    "thing_classes": "num_classes_key",
    "classes": "num_image_classes_key",
    "stuff_classes": "num_stuff_classes_key",
}


@dataclass(frozen=True)
class ClassOption:
    """An option of a model that says how many classes of a kind there are.

    Attributes:
        kind: what the metadata of datasets calls them.
        num_classes: the value that it has.
        name: for errors.
        key: where to write it in the config.
        tasks: of the datasets that it is for; empty for all.
    """

    kind: str
    num_classes: int
    name: str
    key: str
    tasks: tuple[str, ...] = ()


def build_model(cfg: CfgNode) -> nn.Module:
    """Build what ``cfg.MODEL.META_ARCHITECTURE`` names, on ``cfg.MODEL.DEVICE``, without loading any weights."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(select_device(cfg.MODEL.DEVICE))


def class_options(cfg: CfgNode) -> list[ClassOption]:
    """The numbers of classes of the model that a config names; none if its class does not tell them."""
    meta_arch = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return meta_arch.class_options(cfg) if hasattr(meta_arch, "class_options") else class_options_of(meta_arch, cfg)


def class_options_of(owner: Any, cfg: CfgNode) -> list[ClassOption]:
    """Those that the attributes of a model, or of a part of one, name."""
    keys = {kind: getattr(owner, attribute, None) for kind, attribute in _KEYS.items()}
    return [ClassOption(kind, attrgetter(key)(cfg), key, key) for kind, key in keys.items() if key]
