"""Datasets, what turns their samples into model input, and the loaders."""

from detlib.data import transforms
from detlib.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from detlib.data.dataset_mapper import DatasetMapper

from detlib.data import datasets  # isort: skip  # Last, as it registers in the catalogs the datasets that detlib knows.

__all__ = ["DatasetCatalog", "DatasetMapper", "Metadata", "MetadataCatalog", "datasets", "transforms"]
