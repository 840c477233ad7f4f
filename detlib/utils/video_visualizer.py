"""Door to :mod:`detlib.visualization`, which is above utils: the class is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detlib.visualization import VideoVisualizer

__all__ = ["VideoVisualizer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module("detlib.visualization.video_visualizer"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
