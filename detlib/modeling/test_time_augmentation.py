"""Door to :mod:`detlib.evaluation.test_time_augmentation`, which is above modeling: names are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detlib.evaluation.test_time_augmentation import (
        DatasetMapperTTA,
        GeneralizedRCNNWithTTA,
        SemanticSegmentorWithTTA,
    )

__all__ = ["DatasetMapperTTA", "GeneralizedRCNNWithTTA", "SemanticSegmentorWithTTA"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module("detlib.evaluation.test_time_augmentation"), name)


def __dir__() -> list[str]:
    return __all__
