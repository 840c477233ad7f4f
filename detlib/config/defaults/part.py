"""How a default says that a section names a part."""

from typing import Any

__all__ = ["Part"]


class Part(dict[str, Any]):
    """A section that names an object and its arguments, `{NAME: X, ...}`, and therefore takes any key.

    `detlib.config.build_component` builds the object.
    """
