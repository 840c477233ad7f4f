"""Weights of Caffe2 Detectron, and weights of a part of a model, under the names of the whole model."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from detlib.utils.errors import CheckpointError

__all__ = ["align_and_update_state_dicts", "convert_basic_c2_names", "convert_c2_detectron_names"]

logger = logging.getLogger(__name__)

# Of every layer: _w and _b, or the parameters of the normalisation after it.
_BASIC_RULES = [
    (r"^pred_(?=[wb]$)", "linear_"),
    (r"^fc1000_", "linear_"),
    (r"^res_conv1_(?=bn|gn)", "stem.conv1_"),
    (r"^conv1_", "stem.conv1_"),
    (r"^res(\d)_(\d+)_", r"res\1.\2."),
    (r"\.branch1_", ".shortcut_"),
    (r"\.branch2a_", ".conv1_"),
    (r"\.branch2b_", ".conv2_"),
    (r"\.branch2c_", ".conv3_"),
    (r"_(bn|gn)_(s|gamma)$", ".norm.weight"),
    (r"_(bn|gn)_(b|beta)$", ".norm.bias"),
    (r"_bn_rm$", ".norm.running_mean"),
    (r"_bn_(riv|rv)$", ".norm.running_var"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
]

# Of the parts of a detector, for names that the rules above went over.
_DETECTOR_RULES = [
    (r"^conv_rpn(_fpn\d)?\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn_bbox_pred(_fpn\d)?\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^rpn_cls_logits(_fpn\d)?\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^bbox_pred\.", "box_predictor.bbox_pred."),
    (r"^cls_score\.", "box_predictor.cls_score."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head_conv(\d)\.", r"box_head.conv\1."),
    (r"^fpn_inner_res(\d)_\d+_sum(_lateral)?\.", r"fpn_lateral\1."),
    (r"^fpn_res(\d)_\d+_sum\.", r"fpn_output\1."),
    (r"^_\[mask\]_fcn(\d)\.", r"mask_head.mask_fcn\1."),
    (r"^conv5_mask\.", "mask_head.deconv."),
    (r"^mask_fcn_logits\.", "mask_head.predictor."),
    (r"^conv_fcn(\d)\.", r"keypoint_head.conv_fcn\1."),
    (r"^kps_score_lowres\.", "keypoint_head.score_lowres."),
]


def convert_basic_c2_names(original_keys: Iterable[str]) -> list[str]:
    """Rename layers, normalisations and residual blocks: ``res2_0_branch2a_bn_s`` to ``res2.0.conv1.norm.weight``."""
    return [_apply(_BASIC_RULES, key) for key in original_keys]


def convert_c2_detectron_names(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Rename the weights of a Caffe2 Detectron model, and put the background class where detlib has it.

    Caffe2 Detectron has the background first. Classification has it last here; boxes and masks have none.

    Returns:
        the weights by their new names, and the original name of each.
    """
    originals = list(weights)
    renamed = [_apply(_DETECTOR_RULES, name) for name in convert_basic_c2_names(originals)]
    converted = {new: _move_background(new, weights[old]) for new, old in zip(renamed, originals, strict=True)}
    return converted, dict(zip(renamed, originals, strict=True))


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, torch.Tensor],
    ckpt_state_dict: Mapping[str, torch.Tensor],
    c2_conversion: bool = True,
) -> dict[str, Any]:
    """Rename checkpoint weights to those names of the model that end with theirs.

    ``res2.0.conv1.weight`` in the checkpoint becomes ``backbone.bottom_up.res2.0.conv1.weight``. Where several names
    in the checkpoint would do, the longest is taken; where several places in the model would, the one of equal shape.

    Args:
        c2_conversion: whether the checkpoint has the names of Caffe2 Detectron.

    Returns:
        the checkpoint's weights; those that match nothing keep their names.

    Raises:
        CheckpointError: one weight of the checkpoint would go to several places of its shape in the model.
    """
    originals = {name: name for name in ckpt_state_dict}
    weights: Mapping[str, torch.Tensor] = ckpt_state_dict
    if c2_conversion:
        weights, originals = convert_c2_detectron_names(ckpt_state_dict)
    targets_of: dict[str, list[str]] = {}
    for target in model_state_dict:
        source = _longest_known_suffix(target, weights)
        if source is not None:
            targets_of.setdefault(source, []).append(target)
    target_of: dict[str, str] = {}
    for source, targets in targets_of.items():
        # One place of another shape is kept, to be reported; with several, the weight is none of theirs.
        if len(targets) > 1:
            targets = [target for target in targets if model_state_dict[target].shape == weights[source].shape]
        if len(targets) > 1:
            raise CheckpointError(
                f"{originals[source]!r} of the checkpoint fits both {targets[0]!r} and {targets[1]!r} of the model; "
                "give the checkpoint's weights the full names of the model, then load it again"
            )
        if targets:
            target_of[source] = targets[0]
    logger.debug("Weights taken by the end of their names: %s", {originals[s]: t for s, t in target_of.items()})
    return {target_of.get(name, name): weight for name, weight in weights.items()}


def _apply(rules: Sequence[tuple[str, str]], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _move_background(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Rows of the weight are classes, or 4 per class for boxes."""
    if name.startswith("box_predictor.cls_score."):
        return torch.cat([weight[1:], weight[:1]])
    if name.startswith("box_predictor.bbox_pred."):
        return weight[4:]
    return weight[1:] if name.startswith("mask_head.predictor.") else weight


def _longest_known_suffix(name: str, known: Mapping[str, Any]) -> str | None:
    parts = name.split(".")
    suffixes = (".".join(parts[i:]) for i in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in known), None)
