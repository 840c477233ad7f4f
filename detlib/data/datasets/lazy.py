"""Work that a dataset needs before it can be read, done when it is first asked for."""

from collections.abc import Callable
from typing import Any

from detlib.data.catalog import DatasetCatalog

__all__ = ["prepare_before_loading"]


def prepare_before_loading(name: str, prepare: Callable[[], Any]) -> None:
    """Make the registered dataset ``name`` call ``prepare`` each time before it is loaded."""
    load = DatasetCatalog[name]

    def prepare_and_load() -> list[dict[str, Any]]:
        prepare()
        return load()

    DatasetCatalog[name] = prepare_and_load
