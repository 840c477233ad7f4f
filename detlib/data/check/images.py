"""Mistakes in image files and label maps. Each file is opened, and unless it must be quick, decoded, in workers."""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from detlib.data.check.dataset import CheckedDataset, Settings
from detlib.data.image_reading import SizeMismatchError, check_image_size, image_of, open_image
from detlib.data.label_maps import read_segment_ids, semantic_labels_of
from detlib.data.view_mapper import ANNOTATION_KEYS
from detlib.utils.errors import DatasetError, DetlibError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["ImageFacts", "find_image_mistakes", "look_at_image", "report_image_facts"]

EXIF_ORIENTATION = 0x0112
MIN_IMAGES_PER_WORKER = 50
LABEL_KEYS = ("sem_seg_file_name", "pan_seg_file_name")


@dataclass
class ImageFacts:
    """What was seen of the files of a sample.

    Attributes:
        problems: kind, what it is, and the severity if it is another one than that of the kind.
        digest: of the bytes of the image; empty if they were not read.
        labels: the values in its label map.
    """

    problems: list[tuple[str, str, str | None]] = field(default_factory=list)
    digest: str = ""
    labels: tuple[int, ...] = ()


def look_at_image(sample: dict[str, Any], image_format: str = "BGR", quick: bool = False) -> ImageFacts:
    """See what the mapper would have to say of the files of a sample, and what passes it but should be known.

    Args:
        sample: objects are not looked at.
        quick: read the header of the image only, and nothing of label maps.
    """
    facts = ImageFacts()
    try:
        size = _look_at_header(sample, facts) if "image" not in sample else None
        if not quick:
            size = image_of(sample, image_format).shape[:2]
            facts.digest = _digest(sample)
    except MissingFileError:
        facts.problems.append(("image-missing", "there is no such file", None))
        return facts
    except Exception as error:  # A damaged file may bring a decoder to raise anything.
        facts.problems.append(("image-unreadable", _told(error, sample), None))
        return facts
    if size is not None:
        _compare_sizes(sample, size, facts)
        _look_at_labels(sample, size, quick, facts)
    return facts


def _look_at_header(sample: dict[str, Any], facts: ImageFacts) -> tuple[int, int]:
    """Height and width of the upright image."""
    path = sample["file_name"]
    if not PathManager.isfile(path):  # A pipe, for example, would let the reader wait for ever.
        raise MissingFileError(f"there is no file {path}")
    with open_image(path) as image:
        width, height = image.size
        try:
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        except Exception:  # As for the reader, broken metadata must not cost the image.
            orientation = 1
    if orientation not in range(2, 9):
        return height, width
    if orientation >= 5:
        height, width = width, height
    # Sizes do not tell whether annotations are of the image as it is stored: it is turned by 180 degrees, or square.
    doubtful = "height" in sample and (orientation <= 4 or height == width)
    message = f"its EXIF orientation is {orientation}; upright, it is {width} x {height}"
    facts.problems.append(("image-turned", message, "warning" if doubtful else "note"))
    return height, width


def _compare_sizes(sample: dict[str, Any], size: tuple[int, int], facts: ImageFacts) -> None:
    try:
        check_image_size({**sample}, np.broadcast_to(np.uint8(0), size))
    except SizeMismatchError as error:
        facts.problems.append(("image-size", str(error), None))


def _look_at_labels(sample: dict[str, Any], size: tuple[int, int], quick: bool, facts: ImageFacts) -> None:
    paths = [sample[key] for key in LABEL_KEYS if sample.get(key)]
    missing = [path for path in paths if not PathManager.isfile(path)]
    if missing:
        facts.problems.append(("labels-unreadable", f"there is no file {missing[0]}", None))
    if missing or quick or not paths:
        return
    try:
        labels = semantic_labels_of(sample)
        shape = read_segment_ids(sample["pan_seg_file_name"]).shape if labels is None else labels.shape
    except Exception as error:  # As above.
        facts.problems.append(("labels-unreadable", _told(error, {}), None))
        return
    if shape != tuple(size):
        message = f"{paths[0]} is {shape[0]} x {shape[1]} (height x width), the image {size[0]} x {size[1]}"
        facts.problems.append(("labels-size", message, None))
    facts.labels = () if labels is None else tuple(np.unique(labels).tolist())


def _told(error: Exception, sample: dict[str, Any]) -> str:
    """The message without the file of the image, which a finding has anyway."""
    if not isinstance(error, DetlibError):
        return repr(error)
    text = str(error).removeprefix("image ").removeprefix(sample.get("file_name", "")).lstrip(" :")
    return f"it {text}" if text.startswith("is ") else text


def _digest(sample: dict[str, Any]) -> str:
    if "image" in sample:
        return hashlib.sha256(np.ascontiguousarray(sample["image"])).hexdigest()
    with PathManager.open(sample["file_name"], "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class _Files(Dataset):
    """The files of samples as something that workers of torch's loader take one by one."""

    def __init__(self, samples: Sequence[dict[str, Any]], settings: Settings) -> None:
        self.samples = [_slim(sample) for sample in samples]
        self.look = functools.partial(look_at_image, image_format=settings.image_format, quick=settings.quick)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ImageFacts:
        return self.look(self.samples[index])


def _slim(sample: dict[str, Any]) -> dict[str, Any]:
    """Without what workers do not need, such as objects; segments say what labels mean."""
    needed = {*LABEL_KEYS, "segments_info"}
    return {key: value for key, value in sample.items() if key in needed or key not in ANNOTATION_KEYS}


def find_image_mistakes(data: CheckedDataset, settings: Settings) -> Iterator[ImageFacts]:
    """Report on all files of a dataset, and give what was seen, sample by sample."""
    # To start a worker takes as long as some images do.
    num_workers = min(settings.num_workers, os.cpu_count() or 1, len(data.samples) // MIN_IMAGES_PER_WORKER)
    workers = {"num_workers": num_workers, "timeout": settings.timeout} if num_workers else {}
    seen = DataLoader(_Files(data.samples, settings), batch_size=None, **workers)
    index = -1
    try:
        for index, facts in enumerate(seen):
            report_image_facts(data, index, facts, settings)
            yield facts
    except RuntimeError as error:
        last = data.samples[index].get("file_name") if index >= 0 else "none"
        raise DatasetError(
            f"{data.name}: a worker that reads images died or hangs ({error}); the last image that was read is {last}. "
            "Look at those after it, or run it with DATALOADER.NUM_WORKERS=0"
        ) from error


def report_image_facts(data: CheckedDataset, index: int, facts: ImageFacts, settings: Settings) -> None:
    for kind, message, severity in facts.problems:
        data.report_image(kind, index, message, severity)
    ignored = {settings.ignored_label} if data.is_train else set()
    ignored |= {data.metadata.get("ignore_label")} if data.is_test else set()
    num_classes = len(data.metadata.get("stuff_classes", ()))
    labels = [label for label in facts.labels if label not in ignored]
    unknown = [label for label in labels if not 0 <= label < num_classes]
    if unknown and num_classes:
        known = f"there are 0 to {num_classes - 1}, and {sorted(ignored, key=str)} does not count"
        message = f"its label map has {unknown[:5]}; {known}"
        data.report_image("labels-outside", index, message)
    if facts.labels and not labels:
        data.report_image("labels-ignored", index, f"its label map has nothing but {list(facts.labels)}")
