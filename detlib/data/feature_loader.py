"""The loader of images whose features are wanted: for clustering, for neighbours, for a picture of them."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Subset

from detlib.config import CfgNode
from detlib.data import transforms as T
from detlib.data.build import build_detection_test_loader, get_detection_dataset_dicts, with_sample_idx
from detlib.data.image_reading import image_of
from detlib.data.input_augmentations import build_augmentation
from detlib.data.view_mapper import build_views, image_to_tensor, without_annotations
from detlib.utils.errors import DatasetError

__all__ = ["build_feature_loader"]


def build_feature_loader(
    cfg: CfgNode,
    batch_size: int,
    dataset_names: str | Sequence[str] | None = None,
    limit: int | None = None,
) -> DataLoader:
    """Build a loader that gives every sample once, in the order of the dataset; with several processes, each its part.

    Args:
        batch_size: images per batch in each process.
        dataset_names: by default DATASETS.TRAIN.
        limit: how many samples at most; of more than these, random ones are taken, always the same.

    Returns:
        Batches, list[dict]. Samples have "image" (C, H, W) uint8, augmented as INPUT.AUGMENTATIONS_TEST says; where
        that is empty and there are INPUT.VIEWS, it is the middle of the image in the size of the first of these. They
        have "sample_idx", as those of the loader for training with INPUT.VIEWS have it, and keep keys as "label";
        annotations are dropped, and no image is left out for having none.
    """
    dataset = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN if dataset_names is None else dataset_names, filter_empty=False, check_consistency=False
    )
    if isinstance(dataset, IterableDataset):
        raise DatasetError("features need samples that have a place in their dataset, got an IterableDataset")
    dataset = with_sample_idx(dataset)
    if limit is not None and limit < len(dataset):
        dataset = Subset(dataset, sorted(random.Random(0).sample(range(len(dataset)), limit)))
    mapper = _FeatureMapper(_build_augmentations(cfg), cfg.INPUT.FORMAT)
    return build_detection_test_loader(
        dataset, mapper=mapper, batch_size=batch_size, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


class _FeatureMapper:
    def __init__(self, augmentations: Sequence[T.Augmentation], image_format: str) -> None:
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        aug_input = T.AugInput(image_of(dataset_dict, self.image_format))
        self.augmentations(aug_input)
        return {**without_annotations(dataset_dict), "image": image_to_tensor(aug_input.image)}


def _build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    if cfg.INPUT.AUGMENTATIONS_TEST or not cfg.INPUT.VIEWS:
        return build_augmentation(cfg, is_train=False)
    height, width = _size_of_first_view(cfg)
    # 256 pixels for a crop of 224, as is usual for ImageNet.
    return [T.ResizeShortestEdge(round(max(height, width) * 8 / 7)), T.CenterCrop((height, width))]


def _size_of_first_view(cfg: CfgNode) -> tuple[int, int]:
    """Height and width, before any split, found by making one: its augmentations may be the user's own."""
    state = np.random.get_state()
    aug_input = T.AugInput(np.zeros((512, 512, 3), dtype=np.uint8))
    build_views(cfg)[0].augmentations(aug_input)
    np.random.set_state(state)  # Looking must not change what is drawn afterwards.
    return aug_input.image.shape[:2]
