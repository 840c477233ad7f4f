"""Building and running the nodes of a ModuleGraph."""

__all__: list[str] = []
