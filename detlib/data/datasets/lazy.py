"""Work that a dataset needs before it can be read or described, done when it is first asked for."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from detlib.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from detlib.utils.errors import MissingFileError
from detlib.utils.logger import log_first_n

__all__ = ["LazyMetadata", "prepare_before_loading", "set_lazy_metadata"]


def prepare_before_loading(name: str, prepare: Callable[[], Any]) -> None:
    """Make the registered dataset ``name`` call ``prepare`` each time before it is loaded."""
    load = DatasetCatalog[name]

    def prepare_and_load() -> list[dict[str, Any]]:
        prepare()
        return load()

    DatasetCatalog[name] = prepare_and_load


class LazyMetadata(Metadata):
    """Metadata of which some keys are read from a file when one of them is first asked for.

    Attribute access raises the error of a missing file; :meth:`get` logs it as a warning and returns the default, so
    that what merely draws works without the file.

    Args:
        name: of the dataset.
        keys: that ``read`` may know.
        read: returns values of the keys; those that were set before stay. It must be picklable and quick when called
            again.
    """

    __slots__ = ("_keys", "_read")

    def __init__(self, name: str, keys: Iterable[str], read: Callable[[], dict[str, Any]]) -> None:
        super().__init__(name=name)
        self._keys, self._read = frozenset(keys), read

    def __getattr__(self, key: str) -> Any:
        if key in self._keys:
            self._fill()
            if key in self.__dict__:
                return self.__dict__[key]
        return super().__getattr__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key in self._keys and key not in self.__dict__:
            self._try_to_fill()
        return super().get(key, default)

    def as_dict(self) -> dict[str, Any]:
        if not self._keys <= self.__dict__.keys():
            self._try_to_fill()
        return super().as_dict()

    def _try_to_fill(self) -> None:
        try:
            self._fill()
        except MissingFileError as error:
            log_first_n(logging.WARNING, str(error), key="message")

    def _fill(self) -> None:
        self.set(**{key: value for key, value in self._read().items() if key not in self.__dict__})

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyMetadata, (self.name, self._keys, self._read), dict(self.__dict__)


def set_lazy_metadata(name: str, keys: Iterable[str], read: Callable[[], dict[str, Any]]) -> Metadata:
    """Make the metadata of a dataset a :class:`LazyMetadata` and return it; what it had stays."""
    known = MetadataCatalog.get(name).as_dict() if name in MetadataCatalog else {}
    MetadataCatalog[name] = LazyMetadata(name, keys, read).set(**known)
    return MetadataCatalog[name]
