"""Why an average precision is 0: detections are compared with the objects in other ways than the metric does."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from detlib.data import MetadataCatalog
from detlib.evaluation.predictions import class_of_category
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
    """What speaks for a mistake in classes, boxes or images, most telling first; empty if nothing does.

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
        return findings
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
    """What the classes of rightly placed boxes say; nothing if most are right."""
    num_right = sum(actual == predicted for actual, predicted in pairs)
    if num_right > len(pairs) / 2:
        return []
    called = {
        actual: Counter(predicted for a, predicted in pairs if a == actual).most_common(1)[0]
        for actual in dict.fromkeys(actual for actual, _ in pairs)
    }
    num_objects = sum(len(image.object_categories) for image in images)
    found = (
        f"Boxes of {len(pairs)} of {num_objects} objects are found, whatever their class, but only {num_right} with "
        "the right one"
    )
    if len(called) > 1 and len({predicted for predicted, _ in called.values()}) == 1:
        only = names[next(iter(called.values()))[0]]
        return [f"{found}: most are called {only}, so that the classes have not been learnt yet"]
    examples = "; ".join(
        f"{names[actual]} is called {names[predicted]} ({count} of {sum(a == actual for a, _ in pairs)})"
        for actual, (predicted, count) in list(called.items())[:4]
        if actual != predicted
    )
    return [
        f"{found}: {examples}. So the classes are in another order than in training: compare thing_classes and the "
        "category ids of the datasets",
        *_order_that_fits(pairs, {actual: predicted for actual, (predicted, _) in called.items()}, names, dataset_name),
    ]


def _order_that_fits(
    pairs: list[tuple[int, int]], called: Mapping[int, int], names: Mapping[int, str], dataset_name: str
) -> list[str]:
    """The dataset, or the shift, with which the classes would be right.

    Args:
        called: the category that each category is most often taken for.
    """
    class_of = class_of_category(MetadataCatalog.get(dataset_name), names)
    if not set(names) <= set(class_of):
        return []
    own = {class_of[category]: name for category, name in names.items()}
    for name, other in MetadataCatalog.items():
        classes = vars(other).get("thing_classes", ())  # Not get(), as some metadata then read their files.
        num_right = sum(class_of[p] < len(classes) and classes[class_of[p]] == own[class_of[a]] for a, p in pairs)
        if num_right > 0.8 * len(pairs):
            return [f"With the classes of the dataset {name!r} ({', '.join(classes[:10])}), {num_right} would be right"]
    shifts = {class_of[predicted] - class_of[actual] for actual, predicted in called.items()}
    if len(called) > 1 and len(shifts) == 1:
        shift = shifts.pop()
        places = "1 place" if abs(shift) == 1 else f"{abs(shift)} places"
        return [
            f"Each is {places} {'later' if shift > 0 else 'earlier'} than it should be, as if category ids of the "
            "file, not places from 0 on, had been learnt"
        ]
    return []


def _misplaced(images: Sequence[Image], num_found: int) -> list[str]:
    """What would have to be done to the boxes for them to fit; nothing if that is not known."""
    num_objects = sum(len(image.object_categories) for image in images)
    # The best ones, as many as there are objects.
    best = torch.cat([image.boxes[: len(image.object_boxes)] for image in images])
    scale = _size(torch.cat([image.object_boxes for image in images])) / _size(best).clamp(min=1e-6)
    shift = torch.cat([_nearest_shifts(image) for image in images]).median(dim=0).values
    remedies: dict[str, Callable[[Image], Tensor]] = {
        "multiplied by the image's size": lambda image: image.boxes * image.size.repeat(2),
        "with x and y swapped": lambda image: image.boxes[:, [1, 0, 3, 2]],
        # What instances_to_coco_json took for corners.
        "read as x, y, width, height, not as corners": lambda image: _corners(image.boxes),
        "read as center, width, height, not as corners": lambda image: _uncentered(image.boxes),
        f"multiplied by {scale:.3g}": lambda image: image.boxes * scale,
        f"shifted by {shift[0]:.3g}, {shift[1]:.3g} pixels": lambda image: torch.cat(
            [image.boxes[:, :2] + shift, image.boxes[:, 2:]], dim=1
        ),
    }
    fits = {what: len(_matched_categories(images, [undo(i) for i in images])) for what, undo in remedies.items()}
    remedy = max(fits, key=fits.__getitem__)
    if fits[remedy] < MIN_FOUND * num_objects or fits[remedy] < 2 * num_found:
        return []
    return [
        f"The boxes fit {num_found} of {num_objects} objects, whatever their class, but {fits[remedy]} when "
        f"{remedy}: check the boxes that the model returns, and 'height' and 'width' of the inputs"
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
