"""File names of annotation files become paths, which stay below the folder that the user gave for them."""

import os
import re
from typing import Any

from detlib.utils.errors import DatasetError

__all__ = ["Folder"]


class Folder:
    """A folder below which the files lie that an annotation file names.

    An annotation file is data from elsewhere: it must not decide which files of this machine, or which URLs, are read.
    A name may be absolute or go up with ``..`` as long as it ends below the folder. Links in the folder are followed,
    as it is not the annotation file that made them. An empty path says that names are paths already: then none of them
    is refused but URLs.

    Args:
        path: of the folder; a URL, too.
        source: the annotation file, for errors.
        allow_outside: whether names may lead anywhere.
        argument: how code calls the folder, for errors.
    """

    def __init__(self, path: str, source: str, allow_outside: bool = False, argument: str = "image_root") -> None:
        self.path, self.source, self.argument = os.fspath(path), os.fspath(source), argument
        self._allow_outside = allow_outside
        self._starts = tuple(os.path.join(find(self.path), "") for find in (os.path.abspath, os.path.realpath))

    def join(self, name: Any, where: str) -> str:
        """Return the path of a file.

        Args:
            where: the entry that has the name, for errors.

        Raises:
            DatasetError: it is no name, or leads out of the folder.
        """
        if not isinstance(name, str) or not name or not _can_name_a_file(name):
            raise DatasetError(f"{self.source}: {where} has {name!r} for the name of a file; correct it")
        path = os.path.join(self.path, name)
        if self._allow_outside or self._has(name, path):
            return path
        raise DatasetError(
            f"{self.source}: {where} names {name!r}, which is not below the folder {self.path!r}. If the file is "
            f"trusted, allow it by ALLOW_OUTSIDE: true in the entry of DATASETS.REGISTER, allow_outside=True in code; "
            f"or give a folder that holds all of them as {self.argument}"
        )

    def _has(self, name: str, path: str) -> bool:
        goes_up = ".." in re.split(r"[\\/]", name)
        if not (goes_up or os.path.isabs(name)):
            return bool(self.path) or "://" not in name
        if "://" in self.path:
            return False
        if not self.path:
            return True
        if not goes_up and path.startswith(self._starts):
            return True
        return os.path.realpath(path).startswith(self._starts[1])


def _can_name_a_file(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # JSON can hold halves of characters.
        return False
