"""Datasets, what turns their samples into model input, and the loaders."""

from detlib.data import transforms
from detlib.data.catalog import DatasetCatalog, Metadata, MetadataCatalog

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog", "transforms"]
