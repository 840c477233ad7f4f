"""What everything else uses: registries, events, logging, processes, files, errors. Imports nothing of detlib."""

__all__: list[str] = []
