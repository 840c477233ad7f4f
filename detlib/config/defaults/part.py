"""How a default says that a section takes any key, or that a list is one of mappings."""

from typing import Any

__all__ = ["Part", "Parts"]


class Part(dict[str, Any]):
    """A section that takes any key, as it names an object and its arguments, `{NAME: X, ...}`.

    `detlib.config.build_component` builds the object.
    """


class Parts(list[Any]):
    """A list of mappings, for which one mapping may stand alone: `{NAME: X}` is `[{NAME: X}]`."""
