"""What happens during training: stored by iteration in an `EventStorage`, and written by `EventWriter`s."""

from detlib.utils.event_storage import EventStorage, get_event_storage, has_event_storage, log_scalar
from detlib.utils.event_writers import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
    "log_scalar",
]
