"""What checkpoints say of the config and the data that their training had."""

from collections.abc import Mapping, Sequence
from typing import Any

from detlib.checkpoint.metadata import METADATA_KEY
from detlib.config import CfgNode
from detlib.data import DatasetCatalog, Metadata
from detlib.data.fingerprint import fingerprints_of
from detlib.engine.setup import classes_of_dataset
from detlib.modeling.meta_arch.build import class_options

__all__ = ["checkpoint_metadata", "with_classes_of_checkpoint"]

KINDS = ("thing_classes", "stuff_classes", "classes")


def checkpoint_metadata(cfg: CfgNode, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Plain values for :attr:`detlib.checkpoint.DetectionCheckpointer.metadata`.

    Fingerprints are those of datasets that were loaded. For class names, one is loaded if they are not known.

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


def with_classes_of_checkpoint(metadata: Metadata, checkpoint: Mapping[str, Any]) -> Metadata:
    """The metadata of a dataset; or, if nothing is known of it, a copy with the class names of a checkpoint."""
    if metadata.name in DatasetCatalog or any(metadata.get(kind) is not None for kind in KINDS):
        return metadata
    stored = checkpoint.get(METADATA_KEY)
    classes = stored.get("classes") if isinstance(stored, Mapping) else None
    if not isinstance(classes, Mapping):
        return metadata
    found = {kind: classes[kind] for kind in KINDS if isinstance(classes.get(kind), list)}
    return Metadata(**{**metadata.as_dict(), **found})


def _classes(cfg: CfgNode, names: Sequence[str]) -> dict[str, list[str]]:
    """Class names by what metadata calls them, of the first dataset that the model's option is for."""
    found: dict[str, list[str]] = {}
    for option in class_options(cfg):
        for name in names:
            classes = classes_of_dataset(name, option)
            if classes is not None:
                found.setdefault(option.kind, [str(label) for label in classes])
    return found
