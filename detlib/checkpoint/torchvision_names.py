"""Names that torchvision and timm give the weights of a ResNet, and detlib's."""

import re
from collections.abc import Iterable

__all__ = ["from_torchvision_names", "is_torchvision_resnet"]

_RULES = [
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^fc\.", "linear."),
    (r"^layer(\d+)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
]


def is_torchvision_resnet(names: Iterable[str]) -> bool:
    """Whether the names are those of a ResNet or ResNeXt of torchvision or timm."""
    return {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight"} <= set(names)


def from_torchvision_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to detlib's: ``layer1.0.bn2.bias`` to ``res2.0.conv2.norm.bias``, ``fc`` to ``linear``."""
    return {name: _rename(name) for name in names}


def _rename(name: str) -> str:
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name
