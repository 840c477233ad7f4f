"""Reading pickle files from elsewhere without letting them run code."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from detlib.utils.errors import CheckpointError, MissingFileError

__all__ = ["ARRAYS_AND_CONTAINERS", "load"]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which old protocols store bytes."""
    if encoding.replace("-", "").replace("_", "").lower() not in ("latin1", "iso88591"):
        raise pickle.UnpicklingError(f"bytes in the unexpected encoding {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: np.dtype, data: Any) -> Any:
    """Stand in for ``multiarray.scalar``, which must not make objects out of raw bytes."""
    if dtype.hasobject:
        raise pickle.UnpicklingError(f"a scalar of the dtype {dtype}, which holds Python objects")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype)[0]


def _numpy_globals() -> dict[str, Any]:
    reconstruct = np.empty(0).__reduce__()[0]
    found = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
        found[f"{core}.multiarray._reconstruct"] = reconstruct
        found[f"{core}.multiarray.scalar"] = _scalar
        found[f"{core}.numeric._frombuffer"] = _from_buffer
    return found


def _from_buffer(data: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape, order=order)


ARRAYS_AND_CONTAINERS: Mapping[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode_latin1,
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")  # Python 3 and Python 2
        for kind in (set, frozenset, complex, bytearray)
    },
    **_numpy_globals(),
}
"""Global name in the pickle -> what it stands for: numpy arrays, dtypes and scalars. Dicts, lists, tuples, strings,
bytes and numbers need no global.
"""


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, allowed: Mapping[str, Any], encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self.allowed = allowed
        self.refused: str | None = None

    def find_class(self, module: str, name: str) -> Any:  # Nothing is imported: only what is listed is returned.
        full_name = f"{module}.{name}"
        if full_name not in self.allowed:
            self.refused = full_name
            raise pickle.UnpicklingError(f"refused {full_name}")
        return self.allowed[full_name]


def load(
    file: str | os.PathLike[str] | BinaryIO,
    *,
    allowed: Mapping[str, Any] = ARRAYS_AND_CONTAINERS,
    encoding: str = "latin1",
) -> Any:
    """Read a pickle that may hold nothing but the allowed types.

    Args:
        file: path, or file opened for reading bytes.
        allowed: global name in the pickle -> object to use for it, e.g. ``{**ARRAYS_AND_CONTAINERS, ...}``.
        encoding: of strings that Python 2 wrote; "latin1" is what its numpy arrays need.

    Raises:
        CheckpointError: the file is damaged, or names a type or function that is not allowed.
        MissingFileError: there is no such file.
    """
    if isinstance(file, (str, os.PathLike)):
        if not os.path.isfile(file):
            raise MissingFileError(f"{os.fspath(file)} does not exist; check the path")
        with open(file, "rb") as opened:
            return load(opened, allowed=allowed, encoding=encoding)
    unpickler = _RestrictedUnpickler(file, allowed, encoding)
    try:
        return unpickler.load()
    except Exception as error:  # A damaged pickle can raise anything.
        name = getattr(file, "name", "the pickle")
        if unpickler.refused is not None:
            raise CheckpointError(
                f"{name} was not loaded: it asks for {unpickler.refused!r}, and only numpy arrays and plain containers "
                "are admitted, as anything else could run code. If you trust the file, load it with pickle yourself "
                "and save its arrays alone"
            ) from None
        raise CheckpointError(
            f"{name} is damaged or not a pickle file ({type(error).__name__}: {error}); fetch or write it again"
        ) from error
