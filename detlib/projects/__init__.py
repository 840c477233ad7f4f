"""``detlib.projects.foo`` is the package ``projects/<any name>/foo``, found without being installed.

Folders named ``projects`` are searched in this order: those of the environment variable ``DETLIB_PROJECTS``, that of
the current directory, and that beside the package ``detlib``, as in a checkout.
"""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__all__ = ["add_folder_of", "available"]

_VARIABLE = "DETLIB_PROJECTS"  # Of the environment, so that the processes that load data know it too.


def _roots() -> list[Path]:
    named = os.environ.get(_VARIABLE, "").split(os.pathsep)
    roots = [*map(Path, filter(None, named)), Path.cwd() / "projects", Path(__file__).parents[2] / "projects"]
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
            others = os.environ.get(_VARIABLE)
            os.environ[_VARIABLE] = os.pathsep.join([str(parent), *([others] if others else [])])


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the packages of projects as submodules of this one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __name__:
            return None
        projects = available()
        if name not in projects:
            known = ", ".join(sorted(projects)) or "none"
            raise ModuleNotFoundError(
                f"no project has a package {name!r}; found: {known}. Searched: {', '.join(map(str, _roots()))}",
                name=fullname,
            )
        folder = projects[name][0]
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


sys.meta_path.append(_Finder())
