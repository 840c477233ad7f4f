"""The brief look at the training data before the first step, at what takes no longer than about a second."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from detlib.config import CfgNode
from detlib.data.catalog import DatasetCatalog
from detlib.data.check.check import has_files
from detlib.data.check.dataset import CheckedDataset, Settings
from detlib.data.check.findings import Finding, text_of_findings
from detlib.data.check.images import look_at_image, report_image_facts
from detlib.data.check.objects import (
    find_boxes_outside,
    find_flat_boxes,
    find_invalid_boxes,
    find_keypoint_mistakes,
    find_mask_mistakes,
    find_repeated_objects,
)
from detlib.data.common import DatasetFromList, MapDataset
from detlib.data.dataset_mapper import DatasetMapper
from detlib.data.view_mapper import ViewMapper
from detlib.utils import comm
from detlib.utils.errors import DatasetError, DetlibError

__all__ = ["check_briefly"]

logger = logging.getLogger(__name__)

SECONDS = 0.5  # for the files of images, and as much for their objects
MAX_IMAGES = 1000
# Others tell about a dataset as a whole, which is not looked at.
CHECKS = (
    find_invalid_boxes,
    find_flat_boxes,
    find_boxes_outside,
    find_repeated_objects,
    find_mask_mistakes,
    find_keypoint_mistakes,
)


def check_briefly(cfg: CfgNode, loader: Any) -> None:
    """Look at some of the training data, and log what is found, unless ``DATALOADER.CHECK`` is off.

    Args:
        loader: of ``build_detection_train_loader``; others are left alone.

    Raises:
        DatasetError: a sample would stop the training, as far as that is sure.
    """
    if not cfg.DATALOADER.CHECK or not comm.is_main_process():
        return
    try:
        findings, is_sure = _look(cfg, loader)
    except Exception as error:  # No training shall fail by what is only to help it.
        logger.warning("The training data could not be checked: %s: %s", type(error).__name__, error)
        return
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors and is_sure:
        raise DatasetError(
            f"the training data has mistakes that would stop the training:\n{text_of_findings(errors)}\n"
            "`python tools/check_data.py --config-file ...` looks at all of the data; DATALOADER.CHECK: False trains "
            "unchecked, and DATALOADER.ON_CORRUPT: skip without images that cannot be read"
        )
    if findings:
        text = text_of_findings(findings)
        logger.warning("A brief look at the data found the following; tools/check_data.py looks at all.\n%s", text)


def _look(cfg: CfgNode, loader: Any) -> tuple[list[Finding], bool]:
    """What is found, and whether errors would stop the training."""
    findings = list(_lost_test_datasets(cfg))
    dataset, mapper = _source(loader)
    if dataset is None or not cfg.DATASETS.TRAIN or cfg.DATASETS.TRAIN[0] not in DatasetCatalog:
        return findings, False
    settings = Settings.from_config(cfg, quick=True)
    end = time.perf_counter() + SECONDS
    places = _spread(len(dataset))
    data = CheckedDataset(cfg.DATASETS.TRAIN[0], [dataset[i] for i in places if time.perf_counter() < end])
    data.keypoint_names = data.metadata.get("keypoint_names")
    end = time.perf_counter() + SECONDS
    for index, sample in enumerate(data.samples):
        if time.perf_counter() < end:
            report_image_facts(data, index, look_at_image(sample, quick=True), settings)
    if settings.uses_annotations:
        for check in CHECKS:
            check(data, settings)
    # A mapper of the user may well be able to do with what detlib's own cannot.
    is_sure = type(mapper) in (DatasetMapper, ViewMapper) and cfg.DATALOADER.ON_CORRUPT == "raise"
    logger.info("Looked at %d of %d training images before the first step", len(data.samples), len(dataset))
    return findings + [finding for finding in data.findings if finding.severity != "note"], is_sure


def _source(loader: Any) -> tuple[DatasetFromList | None, Any]:
    """The samples behind a loader, and its mapper; None if it is of another build."""
    mapper = None
    while not isinstance(loader, DatasetFromList):
        if isinstance(loader, MapDataset):
            mapper = loader.map_func if mapper is None else mapper
            loader = loader.source
        elif hasattr(loader, "dataset"):
            loader = loader.dataset
        else:
            return None, None
    return loader, mapper


def _spread(length: int) -> list[int]:
    """Places in the dataset in an order such that the first ones already are of everywhere in it."""
    return np.random.default_rng(0).permutation(length)[:MAX_IMAGES].tolist()


def _lost_test_datasets(cfg: CfgNode) -> Iterator[Finding]:
    """Those whose files are not there, which would else show at the first evaluation."""
    for name in dict.fromkeys(cfg.DATASETS.TEST):
        if name in DatasetCatalog and has_files(CheckedDataset(name).metadata):
            continue
        try:
            DatasetCatalog.get(name)  # Some make their files when they are first asked for.
        except DetlibError as error:
            yield Finding.of("not-loadable", name, f"{error} (it is in DATASETS.TEST)", severity="warning")
