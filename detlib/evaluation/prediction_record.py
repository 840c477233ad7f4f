"""What a model finds in one image, as a dict for a JSON file and as a line of text."""

from collections.abc import Sequence
from typing import Any

import torch

from detlib.data import Metadata
from detlib.evaluation.coco_evaluation import instances_to_coco_json

__all__ = ["describe_record", "to_record"]

MAX_CLASSES = 5


def to_record(
    outputs: dict[str, Any], metadata: Metadata, file_name: str, image_id: int, height: int, width: int
) -> dict[str, Any]:
    """Return what was found in an image of ``height`` x ``width`` pixels.

    Args:
        outputs: of the model for this image.
        metadata: for names of classes, and category ids of the dataset; numbers are given without it.
        file_name: of the image.
        image_id: number of the image.

    Returns:
        These values, and what the outputs have of

        * "instances": objects in COCO's format of results with "category_name"; an empty list without any outputs.
        * "stuff": classes of pixels, each with its "area" in pixels, the largest first.
        * "classes": the classes of the image with the highest scores, and "pred_label", the predicted one, or several.
    """
    record = {"file_name": file_name, "image_id": image_id, "height": height, "width": width}
    if "instances" in outputs or "pred_score" not in outputs:
        record["instances"] = _instances(outputs, metadata, image_id)
    if "sem_seg" in outputs:
        record["stuff"] = _stuff_areas(outputs, metadata)
    if "pred_score" in outputs:
        record |= {"pred_label": _pred_label(outputs), "classes": _best_classes(outputs, metadata)}
    return record


def describe_record(record: dict[str, Any]) -> str:
    """Say what was found.

    For example "3 objects (2 car, 1 person)"; what the picture is of, "60 % road, 20 % sky"; or its class, with the
    next best ones in parentheses: "cat 90 % (dog 8 %, bird 1 %)".
    """
    parts = []
    if "classes" in record:
        parts.append(_describe_classes(record))
    if record.get("instances") or not record.keys() & {"classes", "stuff"}:
        parts.append(_describe_objects(record["instances"]))
    if "stuff" in record:
        pixels = record["height"] * record["width"]
        areas = [f"{100 * stuff['area'] / pixels:.0f} % {stuff['category_name']}" for stuff in record["stuff"][:5]]
        parts.append(", ".join(areas) or "nothing")
    return "; ".join(parts)


def _instances(outputs: dict[str, Any], metadata: Metadata, image_id: int) -> list[dict[str, Any]]:
    if "instances" not in outputs:
        return []
    dataset_ids = {v: k for k, v in (metadata.get("thing_dataset_id_to_contiguous_id") or {}).items()}
    instances = instances_to_coco_json(outputs["instances"].to("cpu"), image_id)
    for found in instances:
        class_id = found["category_id"]
        found["category_id"] = dataset_ids.get(class_id, class_id)
        found["category_name"] = _name(class_id, metadata.get("thing_classes"))
    return instances


def _stuff_areas(outputs: dict[str, Any], metadata: Metadata) -> list[dict[str, Any]]:
    """Class and number of pixels of what has no instances, the largest first."""
    if "panoptic_seg" in outputs:
        areas = {s["category_id"]: s["area"] for s in outputs["panoptic_seg"][1] if not s["isthing"]}
    else:
        areas = dict(enumerate(outputs["sem_seg"].argmax(dim=0).flatten().bincount().tolist()))
    return [
        {"category_id": i, "category_name": _name(i, metadata.get("stuff_classes")), "area": area}
        for i, area in sorted(areas.items(), key=lambda item: -item[1])
        if area > 0
    ]


def _pred_label(outputs: dict[str, Any]) -> int | list[int]:
    label = outputs.get("pred_label", outputs["pred_score"].argmax())
    return label.tolist() if isinstance(label, torch.Tensor) else label


def _best_classes(outputs: dict[str, Any], metadata: Metadata) -> list[dict[str, Any]]:
    """The best five classes, or all that are predicted if these are more."""
    scores, label = outputs["pred_score"].float().cpu(), _pred_label(outputs)
    count = max(MAX_CLASSES, 1 if isinstance(label, int) else len(label))
    best = scores.argsort(descending=True, stable=True)[:count]
    return [
        {"category_id": i, "category_name": _name(i, metadata.get("classes")), "score": score}
        for i, score in zip(best.tolist(), scores[best].tolist(), strict=True)
    ]


def _name(class_id: int, names: Sequence[str] | None) -> str:
    return names[class_id] if names is not None and class_id < len(names) else str(class_id)


def _describe_objects(instances: list[dict[str, Any]]) -> str:
    names = [found["category_name"] for found in instances]
    counts = sorted(((names.count(name), name) for name in set(names)), reverse=True)
    listed = ", ".join(f"{count} {name}" for count, name in counts[:5]) + (", ..." if len(counts) > 5 else "")
    return f"{len(names)} object{'' if len(names) == 1 else 's'}" + (f" ({listed})" if listed else "")


def _describe_classes(record: dict[str, Any]) -> str:
    label = record["pred_label"]
    predicted = {label} if isinstance(label, int) else set(label)
    texts: dict[bool, list[str]] = {True: [], False: []}
    for entry in record["classes"]:
        text = f"{entry['category_name']} {100 * entry['score']:.0f} %"
        texts[entry["category_id"] in predicted].append(text)
    others = f" ({', '.join(texts[False])})" if texts[False] else ""
    return (", ".join(texts[True]) or "no class") + others
