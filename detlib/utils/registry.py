"""Names to objects: what a config file can choose by name."""

import difflib
import pydoc
from typing import Any

from fvcore.common.registry import Registry as _Registry

from detlib.utils.errors import UnknownNameError

__all__ = ["Registry", "locate"]


class Registry(_Registry):
    """fvcore's registry, whose failed lookup names the closest entry and all known ones."""

    def get(self, name: str) -> Any:
        """Return the object registered as `name`.

        Raises:
            UnknownNameError: There is none.
        """
        if name not in self._obj_map:
            raise UnknownNameError(self._describe_missing(name))
        return self._obj_map[name]

    def _describe_missing(self, name: str) -> str:
        close = difflib.get_close_matches(str(name), self._obj_map, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = ", ".join(sorted(self._obj_map)) or "nothing yet"
        return f"{self._name} has no {name!r}; {hint}Known: {known}. Has the module that registers it been imported?"


def locate(name: str) -> Any:
    """Import the object at a dotted path such as `"torch.nn.Linear"`.

    Raises:
        ImportError: Nothing is found at that path.
    """
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(f"nothing can be imported as {name!r}; expected a path like 'package.module.Name'")
    return found


def _convert_target_to_string(t: Any) -> str:
    """Return the shortest dotted path from which `t` can be imported."""
    module, name = t.__module__, t.__qualname__
    packages = module.split(".")
    for end in range(1, len(packages)):
        path = f"{'.'.join(packages[:end])}.{name}"
        if pydoc.locate(path) is t:
            return path
    return f"{module}.{name}"
