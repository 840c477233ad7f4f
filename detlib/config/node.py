"""`CfgNode`: a section of a config, with files that build on each other and errors that help."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

import yaml
from fvcore.common.config import CfgNode as _CfgNode

from detlib.config import safe_yaml
from detlib.config.custom_imports import (
    CustomImport,
    add_imports,
    declared_imports,
    drops_imports,
    import_custom_modules,
    import_for_tree,
    join_imports,
)
from detlib.config.defaults import DEFAULTS, Part
from detlib.config.merge import DELETE, deletes, is_items, overlay, refuse_markers, set_items, take_delete_markers
from detlib.config.origins import CODE, COMMAND_LINE, added_by_code, places, places_within, put_places
from detlib.config.safe_yaml import LocatedDict
from detlib.config.suggest import all_keys, did_you_mean, misplaced
from detlib.config.values import adapt, check_type, decode, override, plain, to_yaml
from detlib.config.versions import LATEST, guess_version, rename_between
from detlib.utils.errors import ConfigError, ConfigKeyError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["CfgNode"]

_BASE = "_BASE_"

_logger = logging.getLogger(__name__)


class _Dumper(yaml.SafeDumper):
    """Writes out what occurs twice, rather than referring to it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class CfgNode(_CfgNode):
    """A section of a config: a dict whose keys are attributes, with fixed names and types once it has defaults.

    A section that names a part, as `NECK: {NAME: PAFPN, OUT_CHANNELS: 64}`, takes any key: `build_component` compares
    them with what the part takes.

    Files may name others to build on under `_BASE_`: a path or a list of them, each relative to the file, absolute,
    starting with `~`, or a URL. Later ones win over earlier ones, and the file itself over all. Sections are joined key
    by key, and other values replaced; see `merge` for `_DELETE_` and single items of lists, `custom_imports` for
    modules of the user.
    """

    def __init__(
        self, init_dict: dict[str, Any] | None = None, key_list: list[str] | None = None, new_allowed: bool = False
    ) -> None:
        super().__init__(init_dict, key_list, new_allowed)
        self.__dict__["_places"] = {}
        self.__dict__["_section"] = None  # Dotted name among the defaults; None for what code adds.
        self.__dict__["_is_part"] = False
        self.__dict__["_added"] = set()  # Keys of a part that code has set.

    @classmethod
    def from_defaults(cls, defaults: Mapping[str, Any], section: str = "") -> "CfgNode":
        """A section of the default config, which knows its name."""
        node = cls(plain(defaults))
        node.__dict__["_section"] = section
        if isinstance(defaults, Part):
            node._become_part()
        for key, value in defaults.items():
            if isinstance(value, Mapping):
                dict.__setitem__(node, key, cls.from_defaults(value, f"{section}.{key}" if section else key))
        return node

    def _become_part(self) -> None:
        self.__dict__["_is_part"] = True
        self.set_new_allowed(True)

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        return PathManager.open(PathManager.get_local_path(filename), "r", encoding="utf-8")

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Read a config file and the files that it builds on into one dict.

        Args:
            filename: Path or URL.
            allow_unsafe: Kept for old calls. Files can only hold data, and never run code.

        Raises:
            MissingFileError: The file, or one that it builds on, cannot be read.
            ConfigError: A file is not valid, or builds on itself.
        """
        tree, _ = cls._load(os.fspath(filename), chain=())
        return tree

    @classmethod
    def _load(cls, filename: str, chain: tuple[str, ...]) -> tuple[LocatedDict, list[CustomImport]]:
        name = _tidy(filename)
        _check_path(filename, chain)
        if _identity(filename) in map(_identity, chain):
            circle = " -> ".join(map(_tidy, (*chain, filename)))
            raise ConfigError(f"config files build on each other in a circle: {circle}")
        tree = safe_yaml.load(cls._read(filename, chain), name)
        tree = LocatedDict() if tree is None else tree
        if not isinstance(tree, LocatedDict):
            raise ConfigError(f"{name}: expected `KEY: value` lines at the top level, got a {type(tree).__name__}")
        take_delete_markers(tree)
        result, imports = LocatedDict(), []
        for base in _as_paths(tree.pop(_BASE, []), places(tree).get(_BASE, name)):
            base_tree, base_imports = cls._load(_resolve(base, filename), (*chain, filename))
            result, imports = overlay(result, base_tree), [*imports, *base_imports]
        declared = declared_imports(tree, name)
        result, imports = overlay(result, tree), declared if drops_imports(tree) else [*imports, *declared]
        join_imports(result, imports)
        return result, imports

    @classmethod
    def _read(cls, filename: str, chain: tuple[str, ...]) -> str:
        try:
            with cls._open_cfg(filename) as file:
                return file.read()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{_tidy(filename)} is not a text file: {error}") from error
        except (OSError, ValueError) as error:  # A URL can be malformed.
            named_by = f", which {_tidy(chain[-1])} names under {_BASE}" if chain else ""
            reason = getattr(error, "strerror", None) or error
            raise MissingFileError(f"cannot read the config file {_tidy(filename)}{named_by}: {reason}") from error

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True, import_custom_modules: bool = True) -> None:
        """Set options from a YAML file and the files that it builds on; older versions of the format are upgraded.

        Args:
            cfg_filename: Path or URL.
            allow_unsafe: Kept for old calls. Files hold data, and run no code but what they name as CUSTOM_IMPORTS.
            import_custom_modules: Import these, before any value is set.

        Raises:
            MissingFileError: A file cannot be read.
            CustomImportError: A module cannot be imported.
            ConfigKeyError: A key does not exist.
            ConfigError: A file is not valid, or a value has the wrong type.
        """
        tree, imports = self._load(os.fspath(cfg_filename), chain=())
        if import_custom_modules and imports and "CUSTOM_IMPORTS" in self:
            self._require_mutable("merged into")
            import_for_tree(tree, imports, self)
        if "VERSION" in self:
            version = tree.get("VERSION", guess_version(tree))
            if version != LATEST:
                _logger.warning(f"{cfg_filename} is written in version {version} of the format: reading it as {LATEST}")
                rename_between(tree, version, LATEST, str(cfg_filename))
        self._merge_root(tree)

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any]) -> None:
        """Set options from another config.

        Raises:
            ConfigKeyError: A key does not exist.
            ConfigError: A value has the wrong type.
        """
        self._merge_root(cfg_other)

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Set options from command line arguments: `KEY VALUE` pairs and `KEY=VALUE`, mixed as one likes.

        Keys reach into lists and mappings, as in `DATASETS.TRAIN.0=my_dataset`. Values that are text are read as Python
        literals or YAML.

        Raises:
            ConfigKeyError: A key does not exist.
            ConfigError: A value is missing or has the wrong type.
        """
        self._require_mutable("merged into")
        pairs = list(_pairs(cfg_list))
        imports = [(key, given) for key, given in pairs if key.startswith("CUSTOM_IMPORTS")]
        for key, given in imports:
            if key == "CUSTOM_IMPORTS.IMPORTS":
                add_imports(decode(given, []), self, COMMAND_LINE)
            else:
                self._override(key, given)
        if imports:
            import_custom_modules(self)
        for key, given in pairs:
            if (key, given) not in imports:
                self._override(key, given)

    def _override(self, key: str, given: Any) -> None:
        section, path = self, key.split(".")
        if DELETE in path or DELETE in str(given):
            raise ConfigError(f"{COMMAND_LINE}: {key}: {DELETE} is for files only; set the keys themselves")
        while len(path) > 1 and isinstance(section.get(path[0]), CfgNode):
            section = section[path.pop(0)]
        name = path.pop(0)
        if section.__dict__["_is_part"] and path and name not in section:
            section._merge({name: {}}, self, "")
            section._override(".".join((name, *path)), given)
        elif isinstance(section.get(name), CfgNode) and isinstance(decode(given, {}), Mapping):
            section[name]._merge(decode(given, {}), self, key)
        elif section.__dict__["_is_part"] and not path:
            section._merge({name: decode(given, {})}, self, key.rpartition(".")[0])
        elif name in section:
            section[name] = override(section[name], path, given, key, COMMAND_LINE)
        else:
            self._refuse_unless_deprecated(key, COMMAND_LINE)
            return
        put_places(section, ".".join((name, *path)), None, COMMAND_LINE)
        places(section)[name] = COMMAND_LINE

    def _merge_root(self, tree: Mapping[str, Any]) -> None:
        self._require_mutable("merged into")
        self._merge(tree, self, "")

    def _merge(self, tree: Mapping[str, Any], root: "CfgNode", prefix: str) -> None:
        if deletes(tree):
            self._forget(places(tree), prefix)
        for name, given in tree.items():
            if name == DELETE:
                continue
            key = f"{prefix}.{name}" if prefix else str(name)
            place = places(tree).get(name, CODE)
            if name not in self and not self.is_new_allowed():
                root._refuse_unless_deprecated(key, place)
                continue
            self._merge_value(name, given, root, key, place)
            places(self).update(places_within(tree, name))

    def _merge_value(self, name: str, given: Any, root: "CfgNode", key: str, place: str) -> None:
        current, is_part = self.get(name), self.__dict__["_is_part"]
        if isinstance(given, Mapping) and isinstance(current, list | tuple) and is_items(given):
            self._merge_items(name, given, key, place)
            return
        if isinstance(given, Mapping) and (name not in self or (is_part and not isinstance(current, CfgNode))):
            current = type(self)(new_allowed=True)
            current.__dict__["_section"] = key if is_part else None
            if is_part:
                current._become_part()
            dict.__setitem__(self, name, current)
        if isinstance(given, Mapping) and isinstance(current, CfgNode):
            current._merge(given, root, key)
            return
        if isinstance(given, list | tuple):
            refuse_markers(given, place)
        # What a part takes is known where it is built.
        expected = None if is_part and not isinstance(current, CfgNode) else current
        self[name] = check_type(decode(plain(given), current), expected, key, place)
        put_places(self, name, [given] if isinstance(given, Mapping) else given, place)

    def _merge_items(self, name: str, changes: Mapping[Any, Any], key: str, place: str) -> None:
        items, before = set_items(self[name], changes, key, place), dict(places(self))
        self[name] = plain(items)
        put_places(self, name, items, place)
        self.__dict__["_places"] = {**before, **places(self)}

    def _forget(self, places_of_tree: Mapping[str, str], key: str) -> None:
        """Bring a section back to what detlib sets; one that takes any key becomes empty."""
        section = self.__dict__["_section"]
        if self.__dict__["_is_part"] or (section is None and self.is_new_allowed()):
            self.clear()
            places(self).clear()
            return
        if section is None:
            place = next(iter(places_of_tree.values()), CODE)
            raise ConfigError(f"{place}: {key} was added by code and has no defaults to return to; leave {DELETE} out")
        defaults = DEFAULTS
        for part in filter(None, section.split(".")):
            defaults = defaults[part]
        self._reset(type(self).from_defaults(defaults, section))

    def _reset(self, defaults: "CfgNode") -> None:
        """What code has added stays as it is, as its defaults are not known."""
        for name, value in defaults.items():
            current = self.get(name)
            if isinstance(value, CfgNode) and isinstance(current, CfgNode) and not value.__dict__["_is_part"]:
                current._reset(value)
            else:
                dict.__setitem__(self, name, value)
            places(self).pop(name, None)

    def _refuse_unless_deprecated(self, key: str, place: str) -> None:
        if self.key_is_deprecated(key):
            return
        if self.key_is_renamed(key):
            self.raise_key_rename_error(key)
        is_base = key.rpartition(".")[2].upper() == _BASE
        hint = f"write {_BASE} at the top level of the file" if is_base else did_you_mean(key, all_keys(self))
        raise ConfigKeyError(f"{place}: unknown config key {key}: {hint}")

    def _require_mutable(self, change: str) -> None:
        if self.is_frozen():
            # The type that yacs raises.
            raise AttributeError(f"a frozen config cannot be {change}; call defrost() first, or change its clone()")

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name.startswith("_"):  # Python itself asks for such names, when copying for example.
            raise AttributeError(name)
        return self.__missing__(name)

    def __missing__(self, name: str) -> Any:
        section = self.__dict__.get("_section")
        known = [*all_keys(self, section or ""), *(all_keys(DEFAULTS) if section is not None else ())]
        key = f"{section}.{name}" if section else str(name)
        raise ConfigKeyError(f"the config has no {key}: {did_you_mean(key, dict.fromkeys(known))}")

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("COMPUTED_"):  # fvcore: may be set once, even when frozen.
            super().__setattr__(name, val)
            return
        self._require_mutable(f"given {name}")
        section = self.__dict__["_section"]
        key = f"{section}.{name}" if section else name
        current = self.get(name)
        if isinstance(current, CfgNode) and current.__dict__["_is_part"] and isinstance(val, Mapping):
            val = plain(val)  # It may be the section itself.
            current.clear()
            places(current).clear()
            current._merge(val, self, key)
            added_by_code(current).update(val)
            return
        if self.__dict__["_is_part"]:
            added_by_code(self).add(name)
            self._merge_value(name, val, self, key, CODE)
            return
        if name in self:
            val = adapt(val, current, key)
        else:
            check_type(val, None, key)
            meant = misplaced(section, name, all_keys(DEFAULTS)) if section is not None else None
            if meant:
                _logger.warning(f"{key} is a new option that nothing reads yet; did you mean {meant}?")
        super().__setattr__(name, val)
        put_places(self, name, val, CODE)

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return the config as YAML that reads back to an equal one; arguments are those of `yaml.dump`."""
        return yaml.dump(to_yaml(self), *args, Dumper=_Dumper, **kwargs)


def _check_path(filename: str, chain: tuple[str, ...]) -> None:
    try:
        is_path = b"\0" not in os.fsencode(filename)
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        named_by = f", which {_tidy(chain[-1])} names under {_BASE}," if chain else ""
        raise ConfigError(f"{filename!r}{named_by} cannot be the name of a file")


def _identity(filename: str) -> str:
    return filename if "://" in filename else os.path.realpath(filename)


def _tidy(filename: str) -> str:
    """The name to show; it is not the one to open, as `link/..` can lead elsewhere."""
    return filename if "://" in filename else os.path.normpath(filename)


def _as_paths(value: Any, place: str) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f"{place}: {_BASE} must be a path or a list of paths, got {value!r}")
    return paths


def _resolve(base: str, filename: str) -> str:
    """Path of a base file; a relative one starts from the file that names it."""
    base = os.path.expanduser(base)
    return base if "://" in base else os.path.join(os.path.dirname(filename), base)


def _pairs(arguments: list[Any]) -> Iterator[tuple[str, Any]]:
    remaining = iter(arguments)
    for argument in remaining:
        if str(argument).startswith("--"):
            raise ConfigError(f"the option {argument} stands after an override; write options before KEY=VALUE")
        match = re.fullmatch(r"([\w.]+)=(.*)", str(argument), re.DOTALL)
        if match:
            yield match[1], match[2]
            continue
        try:
            yield str(argument), next(remaining)
        except StopIteration:
            raise ConfigError(f"{argument!r} has no value; expected KEY VALUE pairs or KEY=VALUE") from None
