"""``detlib.projects.foo`` is the package ``projects/<any name>/foo``, found without being installed.

Folders named ``projects`` are searched in this order: those of the environment variable ``DETLIB_PROJECTS``, that of
the current directory, and that beside the package ``detlib``, as in a checkout. Files that lie beside a config and are
imported by it become modules of this package as well.
"""

import hashlib
import importlib.abc
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__all__ = ["add_folder_of", "available", "module_of_file"]

# Of the environment, so that the processes that load data know them too.
_VARIABLE = "DETLIB_PROJECTS"
_FILES = "DETLIB_IMPORTED_FILES"


def _named_roots() -> list[str]:
    return list(filter(None, os.environ.get(_VARIABLE, "").split(os.pathsep)))


def _imported_files() -> list[str]:
    return list(filter(None, os.environ.get(_FILES, "").split("\n")))


def _roots() -> list[Path]:
    roots = [*map(Path, _named_roots()), Path.cwd() / "projects", Path(__file__).parents[2] / "projects"]
    return list(dict.fromkeys(root.resolve() for root in roots if root.is_dir()))


def available() -> dict[str, list[Path]]:
    """The packages of all projects by name, with the folders in which each was found, the first of which counts."""
    found: dict[str, list[Path]] = {}
    for root in _roots():
        for init in sorted(root.glob("*/*/__init__.py")):
            found.setdefault(init.parent.name, []).append(init.parent)
    return found


def add_folder_of(config_file: str) -> None:
    """Let the projects be found in whose folder a config file is, as ``projects/Foo/configs/foo.yaml``."""
    for parent in Path(os.path.abspath(config_file)).parents:
        if parent.name == "projects" and parent.resolve() not in _roots():
            os.environ[_VARIABLE] = os.pathsep.join([str(parent), *_named_roots()])


def module_of_file(path: str) -> str:
    """Make a Python file importable, here and in processes that are started from here, under the name returned."""
    path = os.path.realpath(path)
    if path not in _imported_files():
        os.environ[_FILES] = "\n".join([path, *_imported_files()])
    return f"{__name__}.{_name_of_file(path)}"


def _name_of_file(path: str) -> str:
    stem = re.sub(r"\W", "_", os.path.splitext(os.path.basename(path))[0])
    # Two projects may both have a losses.py.
    return f"{stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the packages of projects, and imported files, as submodules of this one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __name__:
            return None
        for file in _imported_files():
            if _name_of_file(file) == name:
                return importlib.util.spec_from_file_location(fullname, file)
        projects = available()
        if name not in projects:
            known = ", ".join(sorted(projects)) or "none"
            searched = ", ".join(map(str, _roots()))
            raise ModuleNotFoundError(
                f"no project has a package {name!r}; found: {known}. Searched: {searched}; if it is elsewhere, set the "
                f"environment variable {_VARIABLE} to the folder 'projects' that it is in",
                name=fullname,
            )
        folder = projects[name][0]
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


sys.meta_path.append(_Finder())
