"""Datasets, what turns their samples into model input, and the loaders."""

from . import transforms
from .catalog import DatasetCatalog, Metadata, MetadataCatalog

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog", "transforms"]
