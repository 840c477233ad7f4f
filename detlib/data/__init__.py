"""Datasets, what turns their samples into model input, and the loaders."""

from detlib.data import transforms
from detlib.data.build import (
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
    print_instances_class_histogram,
)
from detlib.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from detlib.data.common import DatasetFromList, MapDataset, ToIterableDataset
from detlib.data.dataset_mapper import DatasetMapper
from detlib.data.feature_loader import build_feature_loader
from detlib.data.view_mapper import ViewMapper
from detlib.data.wrappers import ClassBalancedDataset, KFold, RepeatDataset

from detlib.data import datasets  # isort: skip  # Last, as it registers in the catalogs the datasets that detlib knows.

__all__ = [
    "ClassBalancedDataset",
    "DatasetCatalog",
    "DatasetFromList",
    "DatasetMapper",
    "KFold",
    "MapDataset",
    "Metadata",
    "MetadataCatalog",
    "RepeatDataset",
    "ToIterableDataset",
    "ViewMapper",
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "build_feature_loader",
    "datasets",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "transforms",
]
