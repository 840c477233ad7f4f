"""Names that torchvision gives the weights of its classifiers, for ResNet also timm's, and detlib's."""

import logging
import re
from collections.abc import Callable, Iterable

__all__ = ["from_torchvision_names", "tell_of_torchvision", "torchvision_family"]

logger = logging.getLogger(__name__)

# Names by which a family is known.
_MARKS = {
    "ResNet": {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight"},
    "RegNet": {"stem.0.weight", "trunk_output.block1.block1-0.f.a.0.weight"},
    "Swin": {"features.0.0.weight", "features.1.0.attn.relative_position_bias_table"},
    "ViT": {"conv_proj.weight", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"},
}

# Applied in turn.
_RULES: dict[str, list[tuple[str, str | Callable[[re.Match], str]]]] = {
    "ResNet": [
        (r"^conv1\.", "stem.conv1."),
        (r"^bn1\.", "stem.conv1.norm."),
        (r"^fc\.", "linear."),
        (r"^layer(\d+)\.", lambda match: f"res{int(match[1]) + 1}."),
        (r"\.downsample\.0\.", ".shortcut."),
        (r"\.downsample\.1\.", ".shortcut.norm."),
        (r"\.bn(\d)\.", r".conv\1.norm."),
    ],
    "RegNet": [
        (r"^stem\.0\.", "stem.conv."),
        (r"^stem\.1\.", "stem.bn."),
        (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", lambda match: f"s{match[1]}.b{int(match[2]) + 1}."),
        (r"\.proj\.0\.", ".proj."),
        (r"\.proj\.1\.", ".bn."),
        (r"\.f\.([abc])\.0\.", r".f.\1."),
        (r"\.f\.([abc])\.1\.", r".f.\1_bn."),
        (r"\.se\.fc1\.", ".se.f_ex.0."),
        (r"\.se\.fc2\.", ".se.f_ex.2."),
    ],
    "Swin": [
        (r"^features\.0\.0\.", "patch_embed.proj."),
        (r"^features\.0\.2\.", "patch_embed.norm."),
        (r"^features\.(\d)\.(\d+)\.", lambda match: f"layers.{int(match[1]) // 2}.blocks.{match[2]}."),
        (r"^features\.(\d)\.", lambda match: f"layers.{int(match[1]) // 2 - 1}.downsample."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ],
    "ViT": [
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    ],
}

# Made from the config, and of another shape there.
_NOT_WEIGHTS = ".relative_position_index"


def torchvision_family(names: Iterable[str]) -> str | None:
    """Which of ResNet (and ResNeXt), RegNet, Swin and ViT has these names in torchvision; None for others."""
    names = set(names)
    return next((family for family, marks in _MARKS.items() if marks <= names), None)


def from_torchvision_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to detlib's: ``layer1.0.bn2.bias`` to ``res2.0.conv2.norm.bias``, ``fc`` to ``linear``.

    Raises:
        ValueError: the names are those of no known family.
    """
    names = list(names)
    family = torchvision_family(names)
    if family is None:
        raise ValueError(f"these names are not those of a {', '.join(_MARKS)} of torchvision: {names[:3]}")
    return {name: _rename(name, _RULES[family]) for name in names if not name.endswith(_NOT_WEIGHTS)}


def _rename(name: str, rules: list[tuple[str, str | Callable[[re.Match], str]]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def tell_of_torchvision(family: str) -> None:
    """Log what weights of this family need besides."""
    logger.info(
        "These are %s weights with the names of torchvision. They need INPUT.FORMAT: RGB, %susually "
        "MODEL.PIXEL_MEAN: [123.675, 116.28, 103.53] and MODEL.PIXEL_STD: [58.395, 57.12, 57.375]",
        family,
        "MODEL.RESNETS.STRIDE_IN_1X1: False, " if family == "ResNet" else "",
    )
