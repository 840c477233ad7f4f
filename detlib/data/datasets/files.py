"""Where the public datasets lie, and what is said when one of them does not lie there."""

import os
from collections.abc import Iterable

from detlib.data.datasets.lazy import prepare_before_loading
from detlib.utils.errors import MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["DOCS_PAGE", "datasets_root", "missing_files_error", "require_files"]

DOCS_PAGE = "docs/tutorials/builtin_datasets.md"


def datasets_root() -> str:
    """Return the folder of datasets: ``$DETLIB_DATASETS``, else ``$DETECTRON2_DATASETS``, else ``datasets``."""
    root = os.environ.get("DETLIB_DATASETS") or os.environ.get("DETECTRON2_DATASETS") or "datasets"
    return os.path.expanduser(root)


def require_files(name: str, root: str, paths: Iterable[str], remedy: str = "") -> None:
    """Make loading the dataset ``name`` fail with the expected tree when one of the paths is missing.

    Args:
        name: of a registered dataset.
        root: folder of datasets.
        paths: files and folders below it.
        remedy: a sentence on how to make them, where they are not part of the download.
    """
    paths = tuple(paths)

    def check() -> None:
        missing = [path for path in paths if not PathManager.exists(path)]
        if missing:
            raise missing_files_error(f"dataset {name!r}", root, paths, missing, remedy)

    prepare_before_loading(name, check)


def missing_files_error(
    what: str, root: str, paths: Iterable[str], missing: Iterable[str], remedy: str = ""
) -> MissingFileError:
    """Build the error that names what is missing, the environment variable, the tree and the page that tells more."""
    tree = ", ".join(os.path.relpath(path, root) for path in paths)
    return MissingFileError(
        f"{what} lacks {', '.join(missing)}. {remedy}{' ' * bool(remedy)}Set the environment variable DETLIB_DATASETS "
        f"to the folder that holds {tree}; it is {os.path.abspath(root)!r} now. {DOCS_PAGE} tells where to get the "
        "files. Own data is declared under DATASETS.REGISTER in the config."
    )
