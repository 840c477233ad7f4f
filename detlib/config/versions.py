"""Versions of the config format, on trees of mappings, so that files can be upgraded before they are merged.

Version 2 is current. Version 1 had other names for some options, and kept anchors with RPN and RetinaNet.
"""

from collections.abc import MutableMapping
from typing import Any

from detlib.config.origins import places
from detlib.utils.errors import ConfigError

__all__ = ["LATEST", "guess_version", "rename_between"]

LATEST = 2

_PANOPTIC = "MODEL.PANOPTIC_FPN"

_RENAMED = {
    "MODEL.WEIGHT": "MODEL.WEIGHTS",
    "MODEL.RPN_HEAD.NAME": "MODEL.RPN.HEAD_NAME",
    "MODEL.ROI_HEADS.SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.RETINANET.INFERENCE_NMS_THRESHOLD": "MODEL.RETINANET.NMS_THRESH_TEST",
    f"{_PANOPTIC}.SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
    f"{_PANOPTIC}.RPN_LOSS_SCALE": "MODEL.RPN.LOSS_WEIGHT",
    f"{_PANOPTIC}.INSTANCE_LOSS_SCALE": f"{_PANOPTIC}.INSTANCE_LOSS_WEIGHT",
    f"{_PANOPTIC}.COMBINE_ON": f"{_PANOPTIC}.COMBINE.ENABLED",
    f"{_PANOPTIC}.COMBINE_OVERLAP_THRESHOLD": f"{_PANOPTIC}.COMBINE.OVERLAP_THRESH",
    f"{_PANOPTIC}.COMBINE_STUFF_AREA_LIMIT": f"{_PANOPTIC}.COMBINE.STUFF_AREA_LIMIT",
    f"{_PANOPTIC}.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD": f"{_PANOPTIC}.COMBINE.INSTANCES_CONFIDENCE_THRESH",
    "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
    "TEST.AUG_ON": "TEST.AUG.ENABLED",
    "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
    "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
    "TEST.AUG_FLIP": "TEST.AUG.FLIP",
}
"""Version 1 to version 2."""

_ANCHORS = {"ANCHOR_SIZES": "SIZES", "ANCHOR_ASPECT_RATIOS": "ASPECT_RATIOS"}

_Tree = MutableMapping[str, Any]


def guess_version(tree: _Tree) -> int:
    """Version of a tree that does not state it: 1 if it has a name that only version 1 knows."""
    old = [*_RENAMED, *(f"MODEL.{model}.{name}" for model in ("RPN", "RETINANET") for name in _ANCHORS)]
    return 1 if any(_find(tree, name) is not None for name in old) else LATEST


def rename_between(tree: _Tree, version: int, to_version: int, filename: str = "") -> None:
    """Rename the options of a tree in place and set its VERSION.

    Args:
        filename: Where the tree is from, for errors.

    Raises:
        ConfigError: There is no such version, or a value is where a section belongs.
    """
    head = f"{filename}: " if filename else ""
    for number in (version, to_version):
        if number not in (1, LATEST):
            raise ConfigError(f"{head}config version {number!r} is unknown; detlib knows versions 1 and {LATEST}")
    try:
        _rename(tree, version, to_version)
    except TypeError as error:  # What should be a section is none.
        raise ConfigError(
            f"{head}cannot be read in version {version}, as a value stands for a section: {error}"
        ) from error
    tree["VERSION"] = to_version


def _rename(tree: _Tree, version: int, to_version: int) -> None:
    if version < to_version:
        for old, new in _RENAMED.items():
            _move(tree, old, new)
        _gather_anchors(tree)
    elif version > to_version:
        for old, new in _RENAMED.items():
            _move(tree, new, old)
        for old, new in _ANCHORS.items():
            _move(tree, f"MODEL.ANCHOR_GENERATOR.{new}", f"MODEL.{_anchor_owner(tree)}.{old}")


def _anchor_owner(tree: _Tree) -> str:
    home = _find(tree, "MODEL.META_ARCHITECTURE")
    return "RETINANET" if home is not None and home["META_ARCHITECTURE"] == "RetinaNet" else "RPN"


def _gather_anchors(tree: _Tree) -> None:
    for old, new in _ANCHORS.items():
        _move(tree, f"MODEL.{_anchor_owner(tree)}.{old}", f"MODEL.ANCHOR_GENERATOR.{new}")
    unused = [f"MODEL.{model}.{name}" for model in ("RPN", "RETINANET") for name in _ANCHORS]
    for key in [*unused, "MODEL.RETINANET.ANCHOR_STRIDES"]:  # Strides now come from the backbone.
        home = _find(tree, key)
        if home is not None:
            del home[key.rpartition(".")[2]]


def _find(tree: _Tree, key: str) -> _Tree | None:
    """The mapping that directly holds an option, if the tree has it."""
    *path, name = key.split(".")
    for part in path:
        tree = tree.get(part)
        if not isinstance(tree, MutableMapping):
            return None
    return tree if name in tree else None


def _move(tree: _Tree, old: str, new: str) -> None:
    home = _find(tree, old)
    if home is None:
        return
    *path, name = new.split(".")
    target = tree
    for part in path:
        if part not in target:
            target[part] = type(tree)()
        target = target[part]
    section, _, old_name = old.rpartition(".")
    target[name] = home.pop(old_name)
    if old_name in places(home):
        places(target)[name] = places(home).pop(old_name)
    if not home:
        # The other version may have no such section.
        del _find(tree, section)[section.rpartition(".")[2]]
