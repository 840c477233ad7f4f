"""What checkpoints say of the config and the data that their training had."""

from collections.abc import Sequence
from typing import Any

from detlib.config import CfgNode
from detlib.data import MetadataCatalog
from detlib.data.fingerprint import fingerprints_of
from detlib.modeling.meta_arch.build import class_options

__all__ = ["checkpoint_metadata"]


def checkpoint_metadata(cfg: CfgNode, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Plain values for :attr:`detlib.checkpoint.DetectionCheckpointer.metadata`.

    No dataset is loaded for it: class names and fingerprints are those that are known.

    Args:
        names: of the datasets that the model is for; None for those of DATASETS.TRAIN.
    """
    names = cfg.DATASETS.TRAIN if names is None else names
    return {
        "config": cfg.dump(),
        "classes": _classes(cfg, names),
        "preprocessing": {
            "INPUT.FORMAT": cfg.INPUT.FORMAT,
            "INPUT.MIN_SIZE_TEST": cfg.INPUT.MIN_SIZE_TEST,
            "INPUT.MAX_SIZE_TEST": cfg.INPUT.MAX_SIZE_TEST,
            "MODEL.PIXEL_MEAN": [float(value) for value in cfg.MODEL.PIXEL_MEAN],
            "MODEL.PIXEL_STD": [float(value) for value in cfg.MODEL.PIXEL_STD],
        },
        "datasets": fingerprints_of(names),
    }


def _classes(cfg: CfgNode, names: Sequence[str]) -> dict[str, list[str]]:
    """Class names by what metadata calls them, of the first dataset that the model's option is for."""
    found: dict[str, list[str]] = {}
    for option in class_options(cfg):
        for name in names:
            metadata = MetadataCatalog.get(name)
            classes = metadata.get(option.kind)
            if classes is not None and (not option.tasks or metadata.get("task", option.tasks[0]) in option.tasks):
                found.setdefault(option.kind, [str(label) for label in classes])
    return found
