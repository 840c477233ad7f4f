"""What may be wrong with a dataset: the kinds of it, one finding of a kind, and the report of all findings."""

import collections
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate

__all__ = ["KINDS", "SEVERITIES", "DatasetSummary", "Finding", "Kind", "Report"]

SEVERITIES = ("error", "warning", "note")
"""It fails, or gives a wrong result; something is lost, or likely a mistake; good to know."""

NUM_EXAMPLES = 5  # of a kind, in text
MAX_CLASSES = 100  # of which the counts are printed


@dataclass(frozen=True)
class Kind:
    """Attributes:
    severity: unless a finding says another one.
    title: what is found, in the plural.
    remedy: what to do.
    """

    severity: str
    title: str
    remedy: str


KINDS = {
    # The dataset as a whole.
    "not-loadable": Kind("error", "datasets that cannot be read", "correct what the message names"),
    "not-checked": Kind("note", "datasets that are no list of samples, and are not looked into", "check them yourself"),
    "num-classes": Kind("error", "datasets whose classes do not fit the model", "set the number of classes as it says"),
    "no-usable-images": Kind(
        "error",
        "trainings without any usable image",
        "annotate images, or keep those without objects: DATALOADER.FILTER_EMPTY_ANNOTATIONS: False",
    ),
    # Entries of annotation files.
    "bad-entry": Kind("error", "entries that the loader refuses", "correct or delete the entry"),
    "repeated-id": Kind("error", "ids that come more than once", "give every image, annotation and category its own"),
    "unknown-image": Kind("error", "annotations of unknown images", "add the image, or delete the annotation"),
    "unknown-category": Kind("error", "annotations of unknown categories", "add the category, or correct the id"),
    # Classes.
    "category-gap": Kind("note", "category ids with gaps", "nothing, ids are mapped to 0, 1, ... in their order"),
    "category-unused": Kind("warning", "classes without examples", "add some, or take the class out"),
    "category-name-repeated": Kind("warning", "classes of the same name", "join them, or name them differently"),
    "class-outside": Kind("error", "objects or labels of a class that does not exist", "correct the class"),
    # Boxes.
    "box-invalid": Kind(
        "error", "boxes that are not finite numbers", "correct or delete them; four numbers are needed"
    ),
    "box-flat": Kind("warning", "boxes without area, which are not learned", "correct or delete them"),
    "box-outside": Kind("warning", "boxes outside of their image, which are not learned", "correct or delete them"),
    "box-over-edge": Kind("warning", "boxes that reach more than a pixel beyond the image", "cut them at its border"),
    "box-corners": Kind(
        "warning", "datasets whose boxes look like two corners", "write [x, y, width, height], not [x0, y0, x1, y1]"
    ),
    "box-repeated": Kind("warning", "objects that are annotated twice, with the same box and class", "delete one"),
    # Masks and keypoints.
    "mask-polygon": Kind(
        "warning", "polygons that are left out", "give each at least 3 points, as an even number of values"
    ),
    "mask-size": Kind("error", "masks made for another image size", "encode them in the size of the image"),
    "mask-missing": Kind(
        "error", "objects without a mask", "give all objects of an image a mask; or MODEL.MASK_ON: False"
    ),
    "mask-format": Kind("error", "objects whose mask is no polygon", "set INPUT.MASK_FORMAT: bitmask"),
    "keypoints-missing": Kind(
        "error", "objects without keypoints", "give all objects of an image keypoints; or MODEL.KEYPOINT_ON: False"
    ),
    "keypoints-count": Kind("error", "objects with a wrong number of keypoints", "give as many as have names"),
    "keypoints-outside": Kind("warning", "keypoints outside of their image, which do not count", "correct them"),
    # Images.
    "image-missing": Kind(
        "error", "images that do not exist", "restore the file, or take the image out of the dataset"
    ),
    "image-unreadable": Kind("error", "images that cannot be read", "replace the file, or take the image out"),
    "image-size": Kind("error", "images of another size than the dataset states", "correct the size, or the file"),
    "image-turned": Kind(
        "warning",
        "images that are stored turned (EXIF) and are loaded upright",
        "see that annotations are of the upright image; or store it upright, without the EXIF entry",
    ),
    "image-repeated": Kind("warning", "images that come twice in a dataset", "delete one, and see that labels agree"),
    "image-leak": Kind("error", "test images that are trained on", "take them out of one of the two datasets"),
    "image-without-objects": Kind("note", "images without objects", "nothing if there is nothing in them"),
    "file-left-out": Kind("warning", "files that are no images to the loader", "convert them, for example to PNG"),
    # Label maps.
    "labels-unreadable": Kind("error", "label maps that cannot be read", "replace the file, or take the image out"),
    "labels-size": Kind("error", "label maps of another size than their image", "resize the map (nearest neighbour)"),
    "labels-outside": Kind("error", "label maps with values that are no class", "correct the map, or name the classes"),
    "labels-ignored": Kind("warning", "label maps of which no pixel counts", "label them, or take the image out"),
}
"""All that is looked for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Attributes:
    kind: of KINDS.
    severity: of SEVERITIES.
    message: what is there.
    remedy: what to do.
    file, image_id, annotation_id: where it is, as far as that is known.
    """

    kind: str
    severity: str
    dataset: str
    message: str
    remedy: str
    file: str | None = None
    image_id: Any = None
    annotation_id: Any = None

    @classmethod
    def of(cls, kind: str, dataset: str, message: str, *, severity: str | None = None, **where: Any) -> "Finding":
        """A finding of the kind's severity and remedy, if no other severity is given."""
        return cls(kind, severity or KINDS[kind].severity, dataset, message, KINDS[kind].remedy, **where)

    @property
    def place(self) -> str:
        parts = [
            self.file or "",
            f"image {self.image_id!r}" if self.image_id is not None else "",
            f"annotation {self.annotation_id!r}" if self.annotation_id is not None else "",
        ]
        return ", ".join(part for part in parts if part)


@dataclass
class DatasetSummary:
    """How much there is of a dataset.

    Attributes:
        roles: "train", "test".
        unit: what is counted of each class: "objects", or "images".
        class_counts: name of a class -> number of objects, or images.
    """

    name: str
    roles: list[str]
    num_images: int = 0
    num_objects: int = 0
    unit: str = "objects"
    class_counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """All findings.

    Attributes:
        left_out: what was not looked for.
    """

    datasets: list[DatasetSummary]
    findings: list[Finding]
    left_out: str = ""

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def summary(self) -> str:
        parts = [_numbered(self.count(severity), severity) for severity in SEVERITIES]
        return f"{', '.join(parts)} in {_numbered(len(self.datasets), 'dataset')}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "summary": {f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "left_out": self.left_out,
            "datasets": [asdict(dataset) for dataset in self.datasets],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def text(self) -> str:
        """For people: datasets with the numbers of their classes, then findings by kind, with some examples each."""
        parts = [_text_of_dataset(dataset) for dataset in self.datasets]
        parts += [text_of_findings(self.findings)] if self.findings else []
        parts += [f"Not looked at: {self.left_out}."] if self.left_out else []
        return "\n\n".join([*parts, self.summary])


def _numbered(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _text_of_dataset(dataset: DatasetSummary) -> str:
    objects = f", {_numbered(dataset.num_objects, 'object')}" if dataset.unit == "objects" else ""
    text = f"{dataset.name} ({', '.join(dataset.roles)}): {_numbered(dataset.num_images, 'image')}{objects}"
    counts = list(dataset.class_counts.items())
    if not counts:
        return text
    counts = counts[:MAX_CLASSES] + ([("...", "")] if len(counts) > MAX_CLASSES else [])
    rows = [[cell for pair in counts[i : i + 3] for cell in pair] for i in range(0, len(counts), 3)]
    headers = ["class", dataset.unit] * min(3, len(counts))
    names = list(range(0, len(headers), 2))  # Even if they look like numbers.
    return f"{text}\n{tabulate(rows, headers=headers, tablefmt='pipe', disable_numparse=names)}"


def text_of_findings(findings: Iterable[Finding]) -> str:
    """Findings by kind and dataset, the worst first, each with its remedy."""
    groups: dict[tuple[str, str, str], list[Finding]] = collections.defaultdict(list)
    for finding in findings:
        groups[finding.severity, finding.kind, finding.dataset].append(finding)
    order = sorted(groups, key=lambda key: (SEVERITIES.index(key[0]), list(KINDS).index(key[1])))
    return "\n".join(_text_of_group(*key, groups[key]) for key in order)


def _text_of_group(severity: str, kind: str, dataset: str, findings: list[Finding]) -> str:
    lines = [f"{severity}: {dataset}: {KINDS[kind].title} [{kind}]: {len(findings)}"]
    for finding in findings[:NUM_EXAMPLES]:
        lines.append(f"    {finding.place}{': ' if finding.place else ''}{finding.message}")
    if len(findings) > NUM_EXAMPLES:
        lines.append(f"    and {len(findings) - NUM_EXAMPLES} more")
    return "\n".join([*lines, f"    -> {findings[0].remedy}"])
