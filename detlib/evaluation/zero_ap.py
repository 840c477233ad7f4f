"""Why an average precision is 0: detections are compared with the objects in other ways than the metric does."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from detlib.data import MetadataCatalog
from detlib.structures import Boxes, pairwise_iou

if TYPE_CHECKING:
    from pycocotools.coco import COCO

__all__ = ["explain_zero_ap"]

# Images that are looked at; among so many, mistakes of this kind show.
MAX_IMAGES = 500
# Detections per object that are looked at, the best first: with enough of them, some fit by chance.
DETECTIONS_PER_OBJECT = 3
# Share of the objects from which on boxes count as found, other than by chance.
MIN_FOUND = 0.3


class Image(NamedTuple):
    """Objects and detections on an image; boxes as x, y, width, height."""

    object_boxes: Tensor
    object_categories: list[int]
    boxes: Tensor
    categories: list[int]
    size: Tensor  # width, height


def explain_zero_ap(
    coco_gt: "COCO",
    detections: Sequence[Mapping[str, Any]],
    dataset_name: str,
    img_ids: Sequence[int] | None = None,
) -> list[str]:
    """What speaks for a mistake in classes, boxes or images, most telling first, in sentences.

    Args:
        detections: in COCO's result format, with the category ids of the dataset.
        dataset_name: whose classes are compared with those of the other datasets in the catalog.
        img_ids: look at these images only.
    """
    objects = [annotation for annotation in coco_gt.anns.values() if not annotation.get("iscrowd")]
    if img_ids is not None:
        objects, detections = ([x for x in items if x["image_id"] in img_ids] for items in (objects, detections))
    if not objects:
        return ["The ground truth has no objects (other than crowds), so that AP is undefined"]
    if not detections:
        return [
            "The model predicted nothing on any image: all scores are below the threshold (SCORE_THRESH_TEST of the "
            "model), which is usual before training, and after it if MODEL.WEIGHTS was not loaded or inputs are "
            "normalised in another way (INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD)"
        ]
    with_objects = {annotation["image_id"] for annotation in objects}
    if not with_objects & {detection["image_id"] for detection in detections}:
        return ["All detections are on images without objects: compare the image_id of the inputs with the annotations"]
    names = {category: info.get("name", str(category)) for category, info in coco_gt.cats.items()}
    findings = _classes_without_objects(objects, detections, names)
    images = _collect(coco_gt, objects, detections)
    if not images:
        return findings or ["The boxes are rotated or missing, so that more is not known"]
    pairs = _matched_categories(images)
    if len(pairs) >= MIN_FOUND * sum(len(image.object_categories) for image in images):
        return [*_confusions(pairs, images, names, dataset_name), *findings]
    return [*_misplaced(images, len(pairs)), *findings]


def _classes_without_objects(
    objects: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]], names: Mapping[int, str]
) -> list[str]:
    known = {annotation["category_id"] for annotation in objects}
    other = Counter(d["category_id"] for d in detections if d["category_id"] not in known)
    if other.total() < len(detections) / 2:
        return []
    listed = ", ".join(f"{names[category]} ({count})" for category, count in other.most_common(3))
    return [
        f"{other.total()} of {len(detections)} detections are of classes without objects, such as {listed}; objects "
        f"are {', '.join(names[category] for category in sorted(known)[:5])}"
    ]


def _collect(
    coco_gt: "COCO", objects: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]]
) -> list[Image]:
    """The images with objects and detections; none if boxes are rotated or missing."""
    sides: tuple[dict[Any, list[Mapping[str, Any]]], ...] = ({}, {})
    for items, by_image in zip((objects, detections), sides, strict=True):
        for item in items:
            if len(item.get("bbox", ())) != 4:
                return []
            by_image.setdefault(item["image_id"], []).append(item)
    objects_of, detections_of = sides
    images = []
    for image_id in [image_id for image_id in objects_of if image_id in detections_of][:MAX_IMAGES]:
        on_image = objects_of[image_id]
        best = sorted(detections_of[image_id], key=lambda detection: -detection["score"])
        best = best[: DETECTIONS_PER_OBJECT * len(on_image)]
        info = coco_gt.imgs[image_id]
        images.append(
            Image(
                torch.tensor([item["bbox"] for item in on_image], dtype=torch.float32),
                [item["category_id"] for item in on_image],
                torch.tensor([item["bbox"] for item in best], dtype=torch.float32),
                [item["category_id"] for item in best],
                torch.tensor([info.get("width", 1), info.get("height", 1)], dtype=torch.float32),
            )
        )
    return images


def _matched_categories(images: Sequence[Image], boxes: Sequence[Tensor] | None = None) -> list[tuple[int, int]]:
    """Categories of object and detection where their boxes overlap by half, whatever the categories are.

    Args:
        boxes: in place of those of the detections.
    """
    pairs = []
    for image, detected in zip(images, boxes or [image.boxes for image in images], strict=True):
        overlaps = pairwise_iou(Boxes(_corners(detected)), Boxes(_corners(image.object_boxes)))
        for i, category in enumerate(image.categories):  # The best scored chooses first.
            overlap, j = overlaps[i].max(dim=0)
            if overlap >= 0.5:
                pairs.append((image.object_categories[j], category))
                overlaps[:, j] = 0
    return pairs


def _corners(boxes_xywh: Tensor) -> Tensor:
    return torch.cat([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], dim=1)


def _confusions(
    pairs: list[tuple[int, int]], images: Sequence[Image], names: Mapping[int, str], dataset_name: str
) -> list[str]:
    """What the classes of rightly placed boxes say."""
    num_objects = sum(len(image.object_categories) for image in images)
    num_right = sum(actual == predicted for actual, predicted in pairs)
    found = f"Boxes of {len(pairs)} of {num_objects} objects are found, whatever their class"
    counts = Counter(pairs)
    mistaken = "; ".join(
        f"{names[actual]} is called {names[predicted]} ({count} of {sum(a == actual for a, _ in pairs)})"
        for (actual, predicted), count in counts.most_common(4)
        if actual != predicted
    )
    return [
        f"{found}, but only {num_right} with the right one: {mistaken}. So the classes are in another order than in "
        "training: compare thing_classes and the category ids of the datasets",
        *_order_that_fits(pairs, names, dataset_name),
    ]


def _order_that_fits(pairs: list[tuple[int, int]], names: Mapping[int, str], dataset_name: str) -> list[str]:
    """The shift or the dataset by which most classes would be right."""
    metadata = MetadataCatalog.get(dataset_name)
    in_order = {category: index for index, category in enumerate(sorted(names))}
    class_of = metadata.get("thing_dataset_id_to_contiguous_id", in_order)
    own = [names[category] for category, _ in sorted(class_of.items(), key=lambda item: item[1]) if category in names]
    indices = [(class_of[a], class_of[p]) for a, p in pairs if a in class_of and p in class_of]
    if not indices or len(own) != len(class_of):
        return []
    shift, count = Counter(predicted - actual for actual, predicted in indices).most_common(1)[0]
    if shift and count > 0.8 * len(indices) and len(set(indices)) > 1:
        places = "1 place" if abs(shift) == 1 else f"{abs(shift)} places"
        return [
            f"{count} of them are {places} {'later' if shift > 0 else 'earlier'} than they should be, as if category "
            "ids of the file, not places from 0 on, had been learnt"
        ]
    for name, other in MetadataCatalog.items():
        classes = other.get("thing_classes")
        if not classes or list(classes) == own:
            continue
        num_right = sum(p < len(classes) and classes[p] == own[a] for a, p in indices)
        if num_right > 0.8 * len(indices):
            return [f"With the classes of the dataset {name!r} ({', '.join(classes[:10])}), {num_right} would be right"]
    return []


def _misplaced(images: Sequence[Image], num_found: int) -> list[str]:
    """What would have to be done to the boxes for them to fit."""
    num_objects = sum(len(image.object_categories) for image in images)
    scale = _size(torch.cat([i.object_boxes for i in images])) / _size(torch.cat([i.boxes for i in images])).clamp(1e-6)
    shift = torch.cat([_nearest_shifts(image) for image in images]).median(dim=0).values
    candidates: dict[str, Callable[[Image], Tensor]] = {
        "they are relative to the image's size, not pixels": lambda image: image.boxes * image.size.repeat(2),
        "x and y are swapped": lambda image: image.boxes[:, [1, 0, 3, 2]],
        # What instances_to_coco_json took for corners.
        "they are x, y, width, height where corners are expected": lambda image: _corners(image.boxes),
        "they are center, width, height where corners are expected": lambda image: _uncentered(image.boxes),
        f"they are {1 / scale:.3g} times as large as the image has them": lambda image: image.boxes * scale,
        f"they are shifted by {-shift[0]:.3g}, {-shift[1]:.3g} pixels": lambda image: torch.cat(
            [image.boxes[:, :2] + shift, image.boxes[:, 2:]], dim=1
        ),
    }
    fits = {what: len(_matched_categories(images, [undo(i) for i in images])) for what, undo in candidates.items()}
    best = max(fits, key=fits.__getitem__)
    if fits[best] >= MIN_FOUND * num_objects and fits[best] > 2 * num_found:
        return [
            f"The boxes fit {num_found} of {num_objects} objects, whatever their class, but would fit {fits[best]} if "
            f"{best}: check the boxes that the model returns, and 'height' and 'width' of the inputs"
        ]
    return [
        f"The boxes fit {num_found} of {num_objects} objects, whatever their class, so that the classes are not the "
        "reason: the model has not learnt enough, its weights were not loaded, or inputs are normalised in another way "
        "than in training (INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD)"
    ]


def _size(boxes_xywh: Tensor) -> Tensor:
    return (boxes_xywh[:, 2] * boxes_xywh[:, 3]).clamp(min=0).sqrt().median()


def _nearest_shifts(image: Image) -> Tensor:
    """From each detection's center to that of the nearest object, (D, 2)."""
    ours, theirs = (boxes[:, :2] + boxes[:, 2:] / 2 for boxes in (image.boxes, image.object_boxes))
    nearest = torch.cdist(ours, theirs).argmin(dim=1)
    return theirs[nearest] - ours


def _uncentered(boxes: Tensor) -> Tensor:
    """Of boxes that were center, width and height before they were taken for corners."""
    boxes = _corners(boxes)
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], dim=1)
