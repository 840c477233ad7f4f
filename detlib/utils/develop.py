"""Stand-ins for what an optional package would provide."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

__all__ = ["create_dummy_class", "create_dummy_func"]


def create_dummy_class(klass: str, dependency: str, message: str = "") -> type:
    """Make a class that, when anything is done with it, says which package is missing.

    Args:
        klass: Its name.
        dependency: Name of the package.
        message: Added to the error, for example how to install it.
    """
    complaint = _complaint(klass, dependency, message)

    class _Missing(type):
        def __getattr__(cls, _: str) -> NoReturn:
            raise ImportError(complaint)

    def fail(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError(complaint)

    return _Missing(klass, (), {"__init__": fail})


def create_dummy_func(func: str, dependency: str | Sequence[str], message: str = "") -> Callable[..., NoReturn]:
    """Make a function that, when called, says which packages are missing.

    Args:
        func: Its name.
        dependency: Name of the package or packages.
        message: Added to the error, for example how to install it.
    """
    complaint = _complaint(func, dependency if isinstance(dependency, str) else ", ".join(dependency), message)

    def dummy(*args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError(complaint)

    dummy.__name__ = func
    return dummy


def _complaint(name: str, dependency: str, message: str) -> str:
    return f"{name} needs {dependency}, which cannot be imported. {message}".rstrip()
