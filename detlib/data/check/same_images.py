"""Images that come more than once, in a dataset, or in one to train on and one to test on."""

import collections
import os
from collections.abc import Iterable, Sequence
from typing import Any

from detlib.data.check.dataset import CheckedDataset
from detlib.data.check.images import ImageFacts
from detlib.data.sample_classes import classes_of, is_labelled

__all__ = ["find_same_images"]

Place = tuple[CheckedDataset, int]


def find_same_images(seen: Iterable[tuple[CheckedDataset, Sequence[ImageFacts]]]) -> None:
    """Report images that two samples share, by their file or by its bytes.

    Within a dataset, they are repeated; in one to train on and one to test on, the test measures no longer how well the
    model does on images that it has not seen.
    """
    places: dict[str, list[Place]] = collections.defaultdict(list)
    for data, facts in seen:
        for index, sample in enumerate(data.samples):
            # Of the same bytes are also all links to a file.
            key = (facts[index].digest if index < len(facts) else "") or _real_path(sample)
            if key:
                places[key].append((data, index))
    for group in places.values():
        if len(group) > 1:
            _report(group)


def _report(group: list[Place]) -> None:
    first: dict[str, Place] = {}
    for data, index in group:
        if data.name in first:
            data.report_image("image-repeated", index, f"it is {_other((data, index), first[data.name])}")
        else:
            first[data.name] = (data, index)
    trained = [place for place in first.values() if place[0].is_train]
    for data, index in first.values():
        other = next((place for place in trained if place[0] is not data), None)
        if data.is_test and other is not None:
            message = f"it is trained on in {other[0].name!r}: {_other((data, index), other)}"
            data.report_image("image-leak", index, message)


def _other(place: Place, other: Place) -> str:
    """Which image the other one is, how it is the same, and whether the labels differ."""
    sample, same = place[0].samples[place[1]], other[0].samples[other[1]]
    path = _real_path(sample)
    if path and path == _real_path(same):
        text = f"the same file as image {same.get('image_id', other[1])!r}"
    else:
        text = f"the same bytes as {same.get('file_name', f'image {other[1]}')}"
    if is_labelled(sample) and is_labelled(same) and classes_of(sample) != classes_of(same):
        text += f", but labelled {_labels(place)} here and {_labels(other)} there"
    return text


def _labels(place: Place) -> str:
    data, index = place
    names = [data.class_names[i] if 0 <= i < len(data.class_names) else i for i in classes_of(data.samples[index])]
    return " and ".join(sorted(map(str, names))) or "nothing"


def _real_path(sample: dict[str, Any]) -> str:
    return os.path.realpath(sample["file_name"]) if "file_name" in sample else ""
