"""Which classes a sample is of, in whatever form it says so."""

from typing import Any

__all__ = ["classes_of", "is_labelled"]


def is_labelled(sample: dict[str, Any]) -> bool:
    """Tell whether a sample is one of image classification, with a "label" or "labels"."""
    return "label" in sample or "labels" in sample


def classes_of(sample: dict[str, Any]) -> set[int]:
    """Return the classes of a sample: its "label", its "labels", or those of its objects; none without any of them."""
    if "label" in sample:
        return {sample["label"]}
    if "labels" in sample:
        return set(sample["labels"])
    return {annotation["category_id"] for annotation in sample.get("annotations", ())}
