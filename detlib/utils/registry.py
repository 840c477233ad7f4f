"""Names to objects: what a config file can choose by name."""

import difflib
import pydoc
import sys
from collections.abc import Callable
from typing import Any

from fvcore.common.registry import Registry as _Registry

from detlib.utils.errors import DuplicateNameError, UnknownNameError

__all__ = ["Registry", "locate"]


class Registry(_Registry):
    """fvcore's registry, with names of one's own and errors that help.

    >>> @LOSS_REGISTRY.register()  # as "MyLoss"
    ... class MyLoss(nn.Module): ...
    >>> @LOSS_REGISTRY.register("my")  # by another name
    ... class MyLoss(nn.Module): ...
    >>> LOSS_REGISTRY.register(MyLoss)
    >>> LOSS_REGISTRY.register("my", MyLoss)
    """

    def register(self, obj: Any = None, target: Any = None, *, name: str | None = None) -> Any:
        """Register an object, or decorate one.

        Args:
            obj: the object; or the name, of ``target`` or, as a decorator, of what follows; by default its own.
            target: the object, after its name.
            name: by default that of the object.

        Raises:
            DuplicateNameError: the name is taken.
        """
        if isinstance(obj, str) and target is not None:
            name, obj = obj, target
        if obj is None or isinstance(obj, str):
            return self._decorator(name or obj)
        self._do_register(name or obj.__name__, obj)
        return None

    def _decorator(self, name: str | None) -> Callable[[Any], Any]:
        def register(target: Any) -> Any:
            self._do_register(name or target.__name__, target)
            return target

        return register

    def _do_register(self, name: str, obj: Any) -> None:
        if name in self._obj_map and not _is_left_over(self._obj_map[name], obj):
            raise DuplicateNameError(
                f"{self._name} has {name!r} already: it is {_describe(self._obj_map[name])}, and {_describe(obj)} was "
                f"to get the same name. Register it under another one: @registry.register('another_name')"
            )
        self._obj_map[name] = obj

    def get(self, name: str) -> Any:
        """Return the object registered as `name`.

        Raises:
            UnknownNameError: There is none.
        """
        if not isinstance(name, str) or name not in self._obj_map:
            raise UnknownNameError(self._describe_missing(name))
        return self._obj_map[name]

    def _describe_missing(self, name: str) -> str:
        names = {known.lower(): known for known in self._obj_map}
        close = difflib.get_close_matches(str(name).lower(), names, n=1)
        hint = f"did you mean {names[close[0]]!r}? " if close else ""
        known = ", ".join(sorted(self._obj_map)) or "nothing yet"
        return f"{self._name} has no {name!r}; {hint}Known: {known}. Is its module in CUSTOM_IMPORTS?"


def _is_left_over(old: Any, new: Any) -> bool:
    """Whether an import failed after it had registered `old`, and now defines the same thing again."""
    if _describe(old) != _describe(new) or "<locals>" in _describe(old):
        return False
    module = sys.modules.get(getattr(old, "__module__", ""))
    return getattr(module, old.__qualname__, None) is not old


def _describe(obj: Any) -> str:
    return f"{getattr(obj, '__module__', '?')}.{getattr(obj, '__qualname__', obj)}"


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
