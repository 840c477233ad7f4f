"""Sending functions to other processes."""

import pickle
from typing import Any

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Wraps an object, such as a lambda, so that it can be pickled; it is called and read like the object itself.

    This needs the package cloudpickle. Without it only what pickle itself can take goes through.
    """

    def __init__(self, obj: Any) -> None:
        self._obj = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            import cloudpickle
        except ImportError:
            return PicklableWrapper, (self._obj,)
        return _unwrap, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)

    def __getattr__(self, attr: str) -> Any:
        if attr == "_obj":  # While being copied, before it is set.
            raise AttributeError(attr)
        return getattr(self._obj, attr)


def _unwrap(pickled: bytes) -> PicklableWrapper:
    return PicklableWrapper(pickle.loads(pickled))
