"""The steps from a sample of a dataset to model input; :class:`DatasetMapper` strings them together."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detlib.data import transforms as T
from detlib.data.catalog import MetadataCatalog
from detlib.data.image_reading import (
    SizeMismatchError,
    check_image_size,
    convert_image_to_rgb,
    convert_PIL_to_numpy,
    image_of,
    read_image,
)
from detlib.data.input_augmentations import build_augmentation, build_crop
from detlib.data.rotated_annotations import (
    annotations_to_instances_rotated,
    filter_invisible_rotated,
    transform_instance_annotations_rotated,
    uses_rotated_boxes,
)
from detlib.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
    polygons_to_bitmask,
)
from detlib.utils.errors import ConfigError, DatasetError

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "annotations_to_instances_rotated",
    "build_augmentation",
    "build_crop",
    "build_transform_gen",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "create_keypoint_hflip_indices",
    "filter_empty_instances",
    "filter_invisible_rotated",
    "get_fed_loss_cls_weights",
    "image_of",
    "read_image",
    "transform_instance_annotations",
    "transform_instance_annotations_rotated",
    "transform_keypoint_annotations",
    "transform_proposals",
    "transform_proposals_rotated",
    "uses_rotated_boxes",
]


def transform_proposals(
    dataset_dict: dict[str, Any],
    image_shape: tuple[int, int],
    transforms: T.Transform,
    *,
    proposal_topk: int,
    min_box_size: float = 0,
) -> None:
    """Turn precomputed proposals of a sample, if it has any, into its key "proposals".

    Args:
        dataset_dict: loses "proposal_boxes", "proposal_bbox_mode" and "proposal_objectness_logits".
        image_shape: (height, width) of the transformed image, to which boxes are clipped.
        proposal_topk: how many to keep; they are sorted by falling score.
        min_box_size: proposals with a side of at most that length are dropped.
    """
    if "proposal_boxes" not in dataset_dict:
        return
    boxes_xyxy = BoxMode.convert(
        dataset_dict.pop("proposal_boxes"), dataset_dict.pop("proposal_bbox_mode"), BoxMode.XYXY_ABS
    )
    _put_proposals(dataset_dict, Boxes(transforms.apply_box(boxes_xyxy)), image_shape, proposal_topk, min_box_size)


def transform_proposals_rotated(
    dataset_dict: dict[str, Any], image_shape: tuple[int, int], transforms: T.Transform, *, proposal_topk: int
) -> None:
    """As :func:`transform_proposals`, to RotatedBoxes, at an angle of 0 where the proposals have none."""
    if "proposal_boxes" not in dataset_dict:
        return
    boxes, mode = np.array(dataset_dict.pop("proposal_boxes"), dtype=float), dataset_dict.pop("proposal_bbox_mode")
    if mode == BoxMode.XYXY_ABS:
        boxes, mode = BoxMode.convert(boxes, mode, BoxMode.XYWH_ABS), BoxMode.XYWH_ABS
    boxes_xywha = transforms.apply_rotated_box(BoxMode.convert(boxes, mode, BoxMode.XYWHA_ABS))
    _put_proposals(dataset_dict, RotatedBoxes(boxes_xywha), image_shape, proposal_topk)


def _put_proposals(
    dataset_dict: dict[str, Any], boxes: Boxes, image_shape: tuple[int, int], topk: int, min_box_size: float = 0
) -> None:
    boxes.clip(image_shape)
    logits = torch.as_tensor(np.asarray(dataset_dict.pop("proposal_objectness_logits"), dtype=np.float32))
    keep = boxes.nonempty(threshold=min_box_size)
    proposals = Instances(image_shape)
    proposals.proposal_boxes = boxes[keep][:topk]
    proposals.objectness_logits = logits[keep][:topk]
    dataset_dict["proposals"] = proposals


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> dict[str, Any]:
    """Apply a transform to the box, mask and keypoints of one object, in place.

    Boxes become absolute XYXY, clipped to the image; polygons stay polygons and RLE becomes a bitmap.

    Args:
        annotation: "bbox" and "bbox_mode", optionally "segmentation" and "keypoints".
        image_size: (height, width) after the transform.
        keypoint_hflip_indices: see create_keypoint_hflip_indices; needed where the transform flips.

    Returns:
        The same dict.
    """
    if isinstance(transforms, (tuple, list)):
        transforms = T.TransformList(transforms)
    _require(annotation, "bbox", "bbox_mode")
    height, width = image_size
    box_xyxy = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    box_xyxy = transforms.apply_box(np.array([box_xyxy]))[0]
    annotation["bbox"] = box_xyxy.clip(0, (width, height, width, height))
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms, image_size)
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def _require(annotation: dict[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in annotation]
    if missing:
        raise DatasetError(f"an annotation lacks {', '.join(missing)}; it has {', '.join(sorted(annotation))}")


def _transform_segmentation(
    segmentation: Any, transforms: T.Transform, image_size: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    if isinstance(segmentation, list):
        polygons = [np.array(polygon, dtype=float).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    bitmap = (_to_bitmap(segmentation, image_size) != 0).astype(np.uint8)
    # A transform that pads fills in the label of pixels that do not count, 255, which is no part of an object.
    mask = (transforms.apply_segmentation(bitmap) == 1).astype(np.uint8)
    if mask.shape[:2] != tuple(image_size):
        raise DatasetError(
            f"a mask is {mask.shape[:2]} after the transform, but the image is {tuple(image_size)} (height, width): "
            "the RLE was made for another image size"
        )
    return mask


def _to_bitmap(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """Rasterize polygons in an image of (height, width), or decode RLE, compressed or not."""
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        return segmentation
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        from pycocotools import mask as mask_util

        if isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        return mask_util.decode(segmentation)
    raise DatasetError(
        f"a segmentation is {type(segmentation).__name__}; it must be a list of polygons [[x, y, x, y, ...], ...], "
        "RLE in the form of COCO {'size': [height, width], 'counts': ...}, or a bitmap (H, W)"
    )


def transform_keypoint_annotations(
    keypoints: Sequence[float],
    transforms: T.Transform,
    image_size: tuple[int, int],
    keypoint_hflip_indices: np.ndarray | None = None,
) -> np.ndarray:
    """Transform the keypoints of one object; those that leave the image become unlabelled.

    Args:
        keypoints: x, y, visibility of one after the other.
        image_size: (height, width) after the transform.
        keypoint_hflip_indices: for every keypoint the one that takes its name when left and right are exchanged.

    Returns:
        (K, 3); an unlabelled keypoint is 0, 0, 0, as in COCO.
    """
    keypoints = np.array(keypoints, dtype=float).reshape(-1, 3)
    keypoints[:, :2] = transforms.apply_coords(keypoints[:, :2].copy())
    height, width = image_size
    outside = ((keypoints[:, :2] < 0) | (keypoints[:, :2] > (width, height))).any(axis=1)
    keypoints[outside, 2] = 0
    if keypoint_hflip_indices is not None and len(keypoint_hflip_indices) != len(keypoints):
        raise DatasetError(
            f"an object has {len(keypoints)} keypoints, but the metadata of its dataset names "
            f"{len(keypoint_hflip_indices)}; correct keypoint_names or the annotations"
        )
    if _num_horizontal_flips(transforms) % 2 == 1:
        if keypoint_hflip_indices is None:
            raise DatasetError(
                "the image was flipped, but it is not known which keypoints exchange their names; set keypoint_names "
                "and keypoint_flip_map in the metadata of the dataset, or INPUT.RANDOM_FLIP: none"
            )
        keypoints = keypoints[np.asarray(keypoint_hflip_indices, dtype=np.int64)]
    keypoints[keypoints[:, 2] == 0] = 0
    return keypoints


def _num_horizontal_flips(transform: T.Transform) -> int:
    if isinstance(transform, T.TransformList):
        return sum(_num_horizontal_flips(part) for part in transform.transforms)
    return int(isinstance(transform, T.HFlipTransform))


def annotations_to_instances(
    annos: list[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Gather the transformed annotations of one image into training targets.

    Args:
        annos: what transform_instance_annotations returns, one for each object.
        image_size: (height, width).
        mask_format: "polygon" or "bitmask".

    Returns:
        Instances with gt_boxes, gt_classes and, where annotated, gt_masks and gt_keypoints.
    """
    for annotation in annos:
        _require(annotation, "bbox", "bbox_mode", "category_id")
    boxes_xyxy = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annos]
    target = Instances(image_size)
    target.gt_boxes = Boxes(torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4))
    target.gt_classes = torch.tensor([int(a["category_id"]) for a in annos], dtype=torch.int64)
    if any("segmentation" in a for a in annos):
        segmentations = _of_all(annos, "segmentation")
        target.gt_masks = _to_masks(segmentations, image_size, mask_format)
    if any("keypoints" in a for a in annos):
        target.gt_keypoints = Keypoints(np.stack(_of_all(annos, "keypoints")).reshape(len(annos), -1, 3))
    return target


def _of_all(annos: list[dict[str, Any]], key: str) -> list[Any]:
    num_missing = sum(key not in a for a in annos)
    if num_missing:
        raise DatasetError(
            f"{num_missing} of {len(annos)} objects of an image have no {key}, the others do; "
            "annotate all of them, or take the objects without it out of the dataset"
        )
    return [a[key] for a in annos]


def _to_masks(segmentations: list[Any], image_size: tuple[int, int], mask_format: str) -> PolygonMasks | BitMasks:
    if mask_format == "bitmask":
        bitmaps = [np.ascontiguousarray(_to_bitmap(s, image_size)) for s in segmentations]
        return BitMasks(torch.stack([torch.from_numpy(bitmap) for bitmap in bitmaps]))
    if mask_format != "polygon":
        raise ConfigError(f"INPUT.MASK_FORMAT must be 'polygon' or 'bitmask', got {mask_format!r}")
    if not all(isinstance(s, list) for s in segmentations):
        raise DatasetError(
            "an object's mask is RLE or a bitmap, which the format 'polygon' cannot hold; set INPUT.MASK_FORMAT: "
            "bitmask"
        )
    return PolygonMasks(segmentations)


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Drop objects that a crop left without area.

    Args:
        by_box: drop those with an empty box.
        by_mask: drop those with an empty mask, if there are masks.
        box_threshold: a box with a side of at most that length is empty.
        return_mask: also return which objects were kept, (N,) bool.
    """
    if not by_box and not by_mask:
        raise ValueError("filter_empty_instances needs by_box or by_mask to be True")
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty()
    return (instances[keep], keep) if return_mask else instances[keep]


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Raise a DatasetError unless datasets that are used together agree on a metadata key, where they have it."""
    stated = [(name, MetadataCatalog.get(name).get(key)) for name in dataset_names]
    stated = [(name, value) for name, value in stated if value is not None]
    for name, value in stated[1:]:
        if value != stated[0][1]:
            raise DatasetError(
                f"datasets {stated[0][0]!r} and {name!r} cannot be used together: their {key} differ, {stated[0][1]!r} "
                f"and {value!r}; register both with the same {key}, in the same order"
            )


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """Return for every keypoint the index of the one that takes its name when left and right are exchanged.

    With the names (nose, left_eye, right_eye) and the flip map ((left_eye, right_eye),) that is [0, 2, 1].
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    metadata = MetadataCatalog.get(names[0])
    for key in ("keypoint_names", "keypoint_flip_map"):
        if metadata.get(key) is None:
            raise DatasetError(
                f"MODEL.KEYPOINT_ON is set, but the metadata of dataset {names[0]!r} has no {key}; set it with "
                f"MetadataCatalog.get({names[0]!r}).{key} = ..."
            )
    keypoint_names = list(metadata.keypoint_names)
    flip_map = dict(metadata.keypoint_flip_map)
    flip_map.update({right: left for left, right in metadata.keypoint_flip_map})
    return [keypoint_names.index(flip_map.get(name, name)) for name in keypoint_names]


def get_fed_loss_cls_weights(dataset_names: str | Sequence[str], freq_weight_power: float = 1.0) -> torch.Tensor:
    """Return for every class its number of images to a power: the sampling weights of the federated loss (LVIS)."""
    name = dataset_names if isinstance(dataset_names, str) else dataset_names[0]
    counts = MetadataCatalog.get(name).get("class_image_count")
    if counts is None:
        raise DatasetError(
            f"the federated loss needs class_image_count in the metadata of dataset {name!r}: a list of "
            "{'id': ..., 'image_count': ...} for each class"
        )
    images_of_class = [count["image_count"] for count in sorted(counts, key=lambda count: count["id"])]
    return torch.tensor(images_of_class, dtype=torch.float32) ** freq_weight_power


build_transform_gen = build_augmentation
