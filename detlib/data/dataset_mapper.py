"""The default way from a sample of a dataset to what the model takes. Copy it to write your own."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detlib.config import CfgNode, configurable
from detlib.data import detection_utils as utils
from detlib.data import transforms as T
from detlib.data.input_augmentations import cuts_objects
from detlib.data.label_maps import semantic_labels_of
from detlib.structures import BoxMode
from detlib.utils.errors import ConfigError, DatasetError

__all__ = ["DatasetMapper"]


class DatasetMapper:
    """Read the image, augment it with its annotations, and make tensors.

    A mapper is any function from the dict of one sample to a dict for the model, so a project's own can be as short
    as :meth:`__call__` here.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
        use_rotated_boxes: bool = False,
    ) -> None:
        """
        Args:
            is_train: whether annotations and label maps are kept; without, they are dropped.
            augmentations: applied in turn.
            image_format: see detection_utils.read_image.
            use_instance_mask: whether to process masks; use_keypoint: keypoints.
            instance_mask_format: "polygon" or "bitmask".
            keypoint_hflip_indices: see detection_utils.create_keypoint_hflip_indices.
            precomputed_proposal_topk: how many precomputed proposals to keep; None ignores them.
            recompute_boxes: make boxes tight around the masks again, as a crop cuts objects.
            use_rotated_boxes: make RotatedBoxes, at an angle of 0 where annotations have none; otherwise rotated
                boxes of annotations become the upright boxes around them. Masks and keypoints go with upright boxes.
        """
        if use_rotated_boxes and (use_instance_mask or use_keypoint):
            raise ConfigError(
                "masks and keypoints are for upright boxes; with rotated ones (MODEL.ANCHOR_GENERATOR.NAME is "
                "RotatedAnchorGenerator), set MODEL.MASK_ON and MODEL.KEYPOINT_ON to False"
            )
        if recompute_boxes and not use_instance_mask:
            raise ConfigError("recompute_boxes takes boxes from masks, hence needs use_instance_mask (MODEL.MASK_ON)")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        self.use_rotated_boxes = use_rotated_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        augmentations = utils.build_augmentation(cfg, is_train)
        if is_train and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, utils.build_crop(cfg))
        arguments = {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "recompute_boxes": is_train and cfg.MODEL.MASK_ON and cuts_objects(cfg),
            "use_rotated_boxes": utils.uses_rotated_boxes(cfg),
        }
        if cfg.MODEL.KEYPOINT_ON:
            arguments["keypoint_hflip_indices"] = utils.create_keypoint_hflip_indices(cfg.DATASETS.TRAIN)
        if cfg.MODEL.LOAD_PROPOSALS:
            split = "TRAIN" if is_train else "TEST"
            arguments["precomputed_proposal_topk"] = cfg.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{split}"]
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Turn one sample into model input.

        Args:
            dataset_dict: of the form that DatasetCatalog gives; it is not changed.

        Returns:
            Its other keys, such as the "label" of an image, and "image" (C, H, W) uint8; "instances", "sem_seg" and
            "proposals" where there are any.
        """
        dataset_dict = copy.copy(dataset_dict)  # Values are replaced below, never changed.
        image = utils.image_of(dataset_dict, self.image_format)
        utils.check_image_size(dataset_dict, image)

        boxes_xyxy = _boxes_xyxy(dataset_dict) if self.is_train else None
        sem_seg = _read_sem_seg(dataset_dict, image) if self.is_train else None
        aug_input = T.AugInput(image, boxes=boxes_xyxy, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)

        image_shape = aug_input.image.shape[:2]  # height, width
        dataset_dict["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        dataset_dict.pop("sem_seg_file_name", None)
        if aug_input.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        if self.proposal_topk is not None:
            transform = utils.transform_proposals_rotated if self.use_rotated_boxes else utils.transform_proposals
            transform(dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.Transform, image_shape: tuple[int, int]
    ) -> None:
        """Replace "annotations" by "instances". Crowd regions are no objects to learn, hence left out."""
        objects = [self._without_unused(a) for a in dataset_dict.pop("annotations") if a.get("iscrowd", 0) == 0]
        if self.use_rotated_boxes:
            objects = [utils.transform_instance_annotations_rotated(a, transforms) for a in objects]
            instances = utils.annotations_to_instances_rotated(objects, image_shape)
            dataset_dict["instances"] = utils.filter_invisible_rotated(instances)
            return
        annotations = [
            utils.transform_instance_annotations(
                annotation, transforms, image_shape, keypoint_hflip_indices=self.keypoint_hflip_indices
            )
            for annotation in objects
        ]
        instances = utils.annotations_to_instances(annotations, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def _without_unused(self, annotation: dict[str, Any]) -> dict[str, Any]:
        unused = set()
        if not self.use_instance_mask:
            unused.add("segmentation")
        if not self.use_keypoint:
            unused.add("keypoints")
        return {key: value for key, value in annotation.items() if key not in unused}


def _read_sem_seg(dataset_dict: dict[str, Any], image: np.ndarray) -> np.ndarray | None:
    """Read the (H, W) labels of a sample that has some."""
    labels = semantic_labels_of(dataset_dict)
    if labels is not None and labels.shape != image.shape[:2]:
        raise DatasetError(
            f"the label map of {dataset_dict.get('file_name', 'an image')}, "
            f"{dataset_dict.get('sem_seg_file_name') or dataset_dict['pan_seg_file_name']}, is {labels.shape[0]} x "
            f"{labels.shape[1]} (height x width), but the image {image.shape[0]} x {image.shape[1]}; resize the map "
            "(nearest neighbour), or correct the pair of files"
        )
    return labels


def _boxes_xyxy(dataset_dict: dict[str, Any]) -> np.ndarray | None:
    """Return (N, 4) boxes for augmentations that look at them; None if a sample has no annotations."""
    if "annotations" not in dataset_dict:
        return None
    boxes = [
        BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in dataset_dict["annotations"]
        if "bbox" in annotation and "bbox_mode" in annotation  # Without, an error follows that says so.
    ]
    return np.array(boxes, dtype=float).reshape(-1, 4)
