"""Door to :mod:`detlib.visualization`, which is above utils: the names are imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detlib.visualization import ColorMode, VisImage, Visualizer

__all__ = ["ColorMode", "VisImage", "Visualizer"]

_HOMES = {
    "ColorMode": "visualizer",
    "VisImage": "vis_image",
    "Visualizer": "visualizer",
    "_PanopticPrediction": "panoptic",
    "_create_text_labels": "labels",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(f"detlib.visualization.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
