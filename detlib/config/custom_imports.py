"""CUSTOM_IMPORTS: the modules of a user that a config needs, imported before its values are read.

Such a module registers parts, and may add options with a function ``add_config(cfg)``. An import runs code: this is the
one way for a config to do so, hence look at CUSTOM_IMPORTS before using a config from elsewhere.
"""

import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from detlib import projects
from detlib.config.merge import deletes
from detlib.config.origins import places
from detlib.config.safe_yaml import LocatedDict
from detlib.config.values import check_type, decode
from detlib.utils.errors import ConfigTypeError, CustomImportError

__all__ = [
    "CustomImport",
    "add_imports",
    "declared_imports",
    "drops_imports",
    "import_custom_modules",
    "import_for_tree",
    "join_imports",
]

_SECTION = "CUSTOM_IMPORTS"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CustomImport:
    """A module or a file that a config asks for, and where it does."""

    name: str
    place: str


def declared_imports(tree: Mapping[str, Any], filename: str) -> list[CustomImport]:
    """What a config file asks for itself; files are made absolute, as they are beside the file that names them.

    Raises:
        ConfigTypeError: CUSTOM_IMPORTS is no section, or a name is no text.
    """
    section = tree.get(_SECTION, {})
    if not isinstance(section, Mapping):
        place = places(tree).get(_SECTION, filename)
        raise ConfigTypeError(f"{place}: {_SECTION} must be a section, as {{IMPORTS: [my_module]}}; got {section!r}")
    place = places(section).get("IMPORTS", filename)
    folder = os.path.dirname(os.path.abspath(filename))
    return _requests(section.get("IMPORTS", []), folder, place)


def _requests(names: Any, folder: str, place: str) -> list[CustomImport]:
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigTypeError(f"{place}: {_SECTION}.IMPORTS must be a list of names of modules, got {names!r}")
    return [CustomImport(_resolve(name, folder), place) for name in names]


def _resolve(name: str, folder: str) -> str:
    path = os.path.join(folder, os.path.expanduser(name))
    return os.path.normpath(path) if _is_file_name(name) and os.path.exists(path) else name


def _is_file_name(name: str) -> bool:
    return name.endswith(".py") or "/" in name or os.sep in name


def join_imports(tree: LocatedDict, imports: list[CustomImport]) -> None:
    """Let a tree ask for the imports of its bases, too: without them, parts that it inherits would be unknown."""
    if imports:
        section = tree.setdefault(_SECTION, LocatedDict())
        section["IMPORTS"] = list(dict.fromkeys(item.name for item in imports))
        places(section)["IMPORTS"] = imports[-1].place
        places(tree).setdefault(_SECTION, imports[-1].place)


def drops_imports(tree: Mapping[str, Any]) -> bool:
    """Whether a file does without the imports of its bases."""
    return deletes(tree) or deletes(tree.get(_SECTION, {}))


def import_for_tree(tree: LocatedDict, imports: list[CustomImport], cfg: Any) -> None:
    """Import what a tree asks for before it is merged into ``cfg``.

    Raises:
        CustomImportError: See :func:`import_custom_modules`.
        ConfigError: ALLOW_FAILED_IMPORTS is no boolean.
    """
    section, key = tree[_SECTION], "ALLOW_FAILED_IMPORTS"
    allow_failed = decode(section.get(key, cfg[_SECTION][key]), False)
    check_type(allow_failed, False, f"{_SECTION}.{key}", places(section).get(key, ""))
    _run(imports, cfg, allow_failed)
    if not drops_imports(tree):  # Options that earlier imports have added remain, so they are asked for as well.
        section["IMPORTS"] = list(dict.fromkeys([*cfg[_SECTION].IMPORTS, *section["IMPORTS"]]))


def add_imports(names: Any, cfg: Any, place: str) -> None:
    """Let a config ask for further modules; files are relative to the current directory.

    Raises:
        ConfigTypeError: A name is no text.
    """
    section = cfg[_SECTION]
    added = [item.name for item in _requests(names, os.getcwd(), place)]
    if section.IMPORTS and "IMPORTS" in places(section):
        place = f"{places(section)['IMPORTS']}, {place}"
    section["IMPORTS"] = list(dict.fromkeys([*section.IMPORTS, *added]))
    places(section)["IMPORTS"] = place


def import_custom_modules(cfg: Any) -> None:
    """Import what ``cfg.CUSTOM_IMPORTS`` lists, in order; to import it again does no harm.

    Raises:
        CustomImportError: A module cannot be imported, and ALLOW_FAILED_IMPORTS is off. Whatever else goes wrong in the
            module is raised as it is.
        ConfigTypeError: A name is no text.
    """
    place = places(cfg[_SECTION]).get("IMPORTS", _SECTION)
    imports = _requests(cfg[_SECTION].IMPORTS, os.getcwd(), place)
    _run(imports, cfg, cfg[_SECTION].ALLOW_FAILED_IMPORTS)


def _run(imports: list[CustomImport], cfg: Any, allow_failed: bool) -> None:
    """Import modules, and let each add its options to ``cfg``, once."""
    configured = cfg.__dict__.setdefault("_configured_by", set())
    for item in imports:
        try:
            module = _import(item)
        except ImportError as error:
            message = f"{item.place}: {_SECTION} asks for {item.name!r}, which cannot be imported: {error}{_hint(item)}"
            if not allow_failed:
                raise CustomImportError(message) from error
            _logger.warning(f"{message} It is left out, as ALLOW_FAILED_IMPORTS is set.")
            continue
        _logger.info(f"Imported {item.name} ({getattr(module, '__file__', None)}), which {item.place} asks for.")
        if module.__name__ not in configured and hasattr(module, "add_config"):
            configured.add(module.__name__)
            try:
                module.add_config(cfg)
            except BaseException:
                configured.discard(module.__name__)
                raise


def _import(item: CustomImport) -> ModuleType:
    if os.path.isabs(item.name):
        if not os.path.isfile(item.name):
            raise ImportError("there is no such Python file")
        return importlib.import_module(projects.module_of_file(item.name))
    if _is_file_name(item.name):
        raise ImportError("there is no such file beside the config, and names of modules have neither '/' nor '.py'")
    if not item.name or item.name.startswith("."):
        raise ImportError("it is no name of a module")
    projects.add_folder_of(item.place.rpartition(":")[0])
    return importlib.import_module(item.name)


def _hint(item: CustomImport) -> str:
    if os.path.isabs(item.name):
        if os.path.isfile(item.name):
            return ""
        return f". If it has moved, write where it is now; './{os.path.basename(item.name)}' is beside the config."
    if _is_file_name(item.name):
        module = item.name.removesuffix(".py").strip("./").replace("/", ".")
        return f". Write {module!r} for a module, or './{os.path.basename(item.name)}' for a file beside the config."
    return (
        ". Modules must be installed or on PYTHONPATH; a file beside the config is written './file.py', and the "
        "package of projects/Foo/foo 'detlib.projects.foo'."
    )
