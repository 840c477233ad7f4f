"""Reading annotation files in JSON."""

import json
from typing import Any

from detlib.utils.errors import DatasetError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["read_json"]


def read_json(json_file: str) -> Any:
    """Read an annotation file.

    Raises:
        MissingFileError: there is no such file, or it cannot be opened.
        DatasetError: it is not JSON.
    """
    if not PathManager.isfile(json_file):
        raise MissingFileError(f"annotation file {json_file!r} does not exist; check the path, or its download")
    try:
        with open(PathManager.get_local_path(json_file), encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise DatasetError(f"{json_file} is not valid JSON: {error}; it may be cut off, write it again") from None
    except RecursionError:
        raise DatasetError(f"{json_file} is nested too deeply to be an annotation file; write it again") from None
    except OSError as error:
        raise MissingFileError(f"annotation file {json_file!r} cannot be read: {error.strerror or error}") from error
