"""Checkpoints: weights and training state in files, from detlib and from other libraries."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from detlib.checkpoint import catalog as _catalog  # noqa: F401  (makes catalog:// paths known)
from detlib.checkpoint.detection_checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer"]
