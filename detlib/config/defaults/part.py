"""How a default says that a section takes any key."""

from typing import Any

__all__ = ["Part"]


class Part(dict[str, Any]):
    """A section that takes any key, as it names an object and its arguments, `{NAME: X, ...}`.

    `detlib.config.build_component` builds the object.
    """
