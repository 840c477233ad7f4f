"""Building and running the nodes of a ModuleGraph."""
