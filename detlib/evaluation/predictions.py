"""What evaluators do with predictions before they measure them: collect, number as the dataset does, write."""

import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from detlib.utils import comm
from detlib.utils.errors import DatasetError
from detlib.utils.file_io import PathManager

__all__ = ["class_of_category", "gather_predictions", "save_predictions", "to_dataset_categories", "write_json"]

logger = logging.getLogger(__name__)


def gather_predictions(
    predictions: list[Any], dataset_name: str, distributed: bool = True, *, field: str = "predictions"
) -> list[Any] | None:
    """Join the predictions of all processes, of which some may have none.

    Args:
        predictions: of this process; ``None`` stands for an image for which the model did not return the field.
        field: what is evaluated, for the warning when the model never returns it.

    Returns:
        Those that are not ``None``. ``None`` in processes other than the main one, and if nothing is left.

    Raises:
        DatasetError: no process has any.
    """
    if distributed and comm.get_world_size() > 1:
        comm.synchronize()
        gathered = comm.gather(predictions, dst=0)
        if not comm.is_main_process():
            return None
        predictions = list(itertools.chain(*gathered))
    if not predictions:
        raise DatasetError(f"There is nothing to evaluate: the model was run on no image of {dataset_name!r}")
    predictions = [prediction for prediction in predictions if prediction is not None]
    if not predictions:
        logger.warning("The model returns no %r for %r, so there is nothing to evaluate", field, dataset_name)
    return predictions or None


def class_of_category(metadata: Any, category_ids: Iterable[int]) -> dict[int, int]:
    """Category id in the dataset -> the model's class; by rising id where the metadata does not tell."""
    in_order = {category: index for index, category in enumerate(sorted(category_ids))}
    return metadata.get("thing_dataset_id_to_contiguous_id", in_order)


def to_dataset_categories(
    detections: Sequence[dict[str, Any]], class_of: Mapping[int, int], dataset_name: str
) -> list[dict[str, Any]]:
    """Return detections with category ids of the dataset in place of the model's classes 0, 1, ...

    Raises:
        DatasetError: the dataset has no such class.
    """
    category_of = {class_id: category for category, class_id in class_of.items()}
    unknown = sorted({detection["category_id"] for detection in detections} - category_of.keys())
    if unknown:
        raise DatasetError(
            f"The model predicted class {unknown[0]}, but dataset {dataset_name!r} has {len(category_of)} "
            f"classes, numbered {min(category_of, default=0)} to {max(category_of, default=0)}; "
            "set the model's NUM_CLASSES to their number, and load weights trained with these classes"
        )
    return [{**detection, "category_id": category_of[detection["category_id"]]} for detection in detections]


def save_predictions(content: Any, folder: str, name: str) -> None:
    """Write tensors, numbers and containers with ``torch.save``; ``torch.load`` reads them with ``weights_only``."""
    PathManager.mkdirs(folder)
    with PathManager.open(os.path.join(folder, name), "wb") as file:
        torch.save(content, file)


def write_json(content: Any, folder: str, name: str) -> None:
    """Write results in the format of a benchmark, and log where."""
    PathManager.mkdirs(folder)
    path = os.path.join(folder, name)
    logger.info("Saving results to %s", path)
    with PathManager.open(path, "w") as file:
        json.dump(content, file)
