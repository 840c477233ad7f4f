"""CUSTOM_IMPORTS: the modules of a user that a config needs, imported before its values are read.

Such a module registers parts, and may add options with a function ``add_config(cfg)``. An import runs code: this is the
one way for a config to do so, hence look at CUSTOM_IMPORTS before using a config from elsewhere.
"""

import hashlib
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from detlib import projects
from detlib.config.origins import places
from detlib.config.safe_yaml import LocatedDict
from detlib.utils.errors import ConfigTypeError, CustomImportError

__all__ = ["CustomImport", "declared_imports", "import_custom_modules", "join_imports", "run_imports"]

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
        ConfigTypeError: A name is no text.
    """
    section = tree.get(_SECTION)
    names = section.get("IMPORTS", []) if isinstance(section, Mapping) else []
    place = places(section).get("IMPORTS", filename) if names else filename
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigTypeError(f"{place}: {_SECTION}.IMPORTS must be a list of names of modules, got {names!r}")
    return [CustomImport(_resolve(name, filename), place) for name in names]


def _resolve(name: str, filename: str) -> str:
    path = os.path.join(os.path.dirname(os.path.abspath(filename)), os.path.expanduser(name))
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


def import_custom_modules(cfg: Any) -> None:
    """Import what ``cfg.CUSTOM_IMPORTS`` lists, in order; to import it again does no harm.

    Raises:
        CustomImportError: A module cannot be imported, and ALLOW_FAILED_IMPORTS is off. Whatever else goes wrong in the
            module is raised as it is.
    """
    place = places(cfg[_SECTION]).get("IMPORTS", _SECTION)
    imports = [CustomImport(name, place) for name in cfg[_SECTION].IMPORTS]
    run_imports(imports, cfg, cfg[_SECTION].ALLOW_FAILED_IMPORTS)


def run_imports(imports: list[CustomImport], cfg: Any, allow_failed: bool) -> None:
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
        if item.name not in configured and hasattr(module, "add_config"):
            configured.add(item.name)
            module.add_config(cfg)


def _import(item: CustomImport) -> ModuleType:
    if os.path.isabs(item.name):
        return _import_file(item.name)
    if _is_file_name(item.name):
        raise ImportError("there is no such file beside the config, and names of modules have neither '/' nor '.py'")
    projects.add_folder_of(item.place.rpartition(":")[0])
    return importlib.import_module(item.name)


def _import_file(path: str) -> ModuleType:
    path = os.path.realpath(path)
    stem = os.path.splitext(os.path.basename(path))[0]
    # Two projects may both have a losses.py.
    name = f"{stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not os.path.isfile(path):
        raise ImportError("there is no such Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _hint(item: CustomImport) -> str:
    if _is_file_name(item.name):
        module = item.name.removesuffix(".py").strip("./").replace("/", ".")
        return f". Write {module!r} for a module, or './{os.path.basename(item.name)}' for a file beside the config."
    return (
        ". Modules must be installed or on PYTHONPATH; a file beside the config is written './file.py', and the "
        "package of projects/Foo/foo 'detlib.projects.foo'."
    )
