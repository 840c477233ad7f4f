"""Datasets by name: :data:`DatasetCatalog` holds what loads one, :data:`MetadataCatalog` what describes it."""

import types
from collections import UserDict
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from detlib.utils.errors import DatasetError, UnknownNameError

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog(UserDict):
    """Name -> function without arguments that returns the dataset as ``list[dict]``.

    Registering touches no file: a function runs when its dataset is asked for, and again at each further request.
    """

    def register(self, name: str, func: Callable[[], list[dict[str, Any]]]) -> None:
        """Add a dataset.

        Args:
            name: for example "coco_2014_train".
            func: must return the same samples, in the same order, at each call.

        Raises:
            DatasetError: the name is taken.
            TypeError: func cannot be called.
        """
        if not callable(func):
            raise TypeError(
                f"DatasetCatalog.register({name!r}, ...) got {func!r}; give it a function without arguments that "
                "returns the list of samples, for example `lambda: load_coco_json(json_file, image_root)`"
            )
        if name in self:
            raise DatasetError(
                f"dataset {name!r} is registered already; call DatasetCatalog.remove({name!r}) and "
                f"MetadataCatalog.remove({name!r}) first to replace it, or choose another name"
            )
        self[name] = func

    def get(self, name: str) -> list[dict[str, Any]]:
        """Load a dataset.

        Raises:
            UnknownNameError: there is no such dataset.
        """
        if name not in self:
            raise UnknownNameError(self._unknown(name))
        return self[name]()

    def list(self) -> list[str]:
        """Return all names."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Forget a dataset; its metadata stays until ``MetadataCatalog.remove``."""
        if name not in self:
            raise UnknownNameError(self._unknown(name))
        self.pop(name)

    def _unknown(self, name: str) -> str:
        close = get_close_matches(str(name), self, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        return (
            f"no dataset is named {name!r}; {hint}Registered: {', '.join(sorted(self)) or 'none'}. Declare your own "
            "under DATASETS.REGISTER in the config, or call register_coco_instances before it is used."
        )

    def __str__(self) -> str:
        return f"DatasetCatalog({', '.join(self)})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()


class Metadata(types.SimpleNamespace):
    """What is known of a dataset beyond its samples: class names, colors, files.

    A key may be set once. Setting it again to the same value is fine, to another one an error: then two datasets
    were mixed up, and everything computed with the first value would be silently wrong.

    >>> Metadata(name="cells", thing_classes=["RBC", "WBC"]).get("stuff_classes", [])
    []
    """

    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:  # Called only for what is not there.
        known = ", ".join(sorted(self.__dict__)) or "none"
        raise AttributeError(
            f"the metadata of dataset {self.name!r} has no {key!r}; known keys: {known}. "
            f"Set it with MetadataCatalog.get({self.name!r}).{key} = ..."
        )

    def __setattr__(self, key: str, val: Any) -> None:
        if key in self.__dict__ and self.__dict__[key] != val:
            raise DatasetError(
                f"the metadata key {key!r} of dataset {self.name!r} is {self.__dict__[key]!r} and cannot become "
                f"{val!r}; use another dataset name, or call MetadataCatalog.remove({self.name!r}) first"
            )
        super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """Return a copy as a dict; changes to it do not change the metadata."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several keys and return self."""
        for key, val in kwargs.items():
            setattr(self, key, val)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default if the key was never set."""
        return self.__dict__.get(key, default)


class _MetadataCatalog(UserDict):
    """Name -> :class:`Metadata`, created empty at the first request."""

    def get(self, name: str) -> Metadata:
        """Return the metadata of a dataset, always the same object for the same name."""
        if not name:
            raise DatasetError("MetadataCatalog.get needs the name of a dataset, got an empty one")
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Return all names that metadata was asked for."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """Forget the metadata of a dataset."""
        if name not in self:
            raise UnknownNameError(f"no metadata of a dataset named {name!r} to remove; known: {sorted(self)}")
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog({', '.join(self)})"

    __repr__ = __str__


MetadataCatalog = _MetadataCatalog()
