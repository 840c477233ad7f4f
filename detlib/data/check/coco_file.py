"""All mistakes in a file of COCO's format, where the loader stops at the first one.

What is a mistake, the functions of the loader decide: entries are given to them one by one.
"""

from typing import Any

from detlib.data.catalog import MetadataCatalog
from detlib.data.check.findings import Finding
from detlib.data.datasets import coco, coco_format, lvis
from detlib.data.datasets.coco_keypoints import keypoint_metadata_of
from detlib.data.datasets.coco_values import check_entries, check_one_kind_of_ids, is_box, short
from detlib.data.datasets.json_files import read_json
from detlib.data.datasets.paths import Folder
from detlib.utils.errors import DetlibError

__all__ = ["CocoFile", "bad_entries"]

Entry = dict[str, Any]


class CocoFile:
    """A file in the format of COCO, or its variant LVIS, read entry by entry.

    Attributes:
        findings: all mistakes.
        samples: those of the entries without mistakes, as the loader would give them. Annotations keep their "id".
        class_names: in the order of the ids.
    keypoint_names: as metadata has them; None if there are none.
    """

    def __init__(self, name: str) -> None:
        """
        Args:
            name: of a dataset that is registered by ``register_coco_instances`` or ``register_lvis_instances``.
        """
        metadata = MetadataCatalog.get(name)
        self.name, self.json_file = name, metadata.json_file
        self.findings: list[Finding] = []
        self.samples: list[Entry] = []
        self.class_names: list[str] = []
        self.keypoint_names: list[str] | None = metadata.get("keypoint_names")
        self._is_lvis = metadata.evaluator_type == "lvis"
        self._folder = Folder(metadata.get("image_root", ""), self.json_file, metadata.get("allow_outside", False))
        try:
            content = read_json(self.json_file)
        except DetlibError as error:
            self._report("not-loadable", str(error))
            return
        self._read(content)

    def _report(self, kind: str, message: str, **where: Any) -> None:
        self.findings.append(Finding.of(kind, self.name, message, **{"file": self.json_file, **where}))

    def _read(self, content: Any) -> None:
        if not isinstance(content, dict):
            self._report("not-loadable", "expected an object with 'images', 'annotations' and 'categories'")
            return
        image_keys = lvis.IMAGE_KEYS if self._is_lvis else coco_format.IMAGE_KEYS
        categories = self._entries(content, "categories", coco_format.CATEGORY_KEYS)
        images = self._entries(content, "images", image_keys)
        annotations = self._entries(content, "annotations", coco_format.ANNOTATION_KEYS)
        class_of_id = self._classes(categories)
        sample_of_id = self._samples(images)
        self._find_repeated(annotations, "annotation")
        for annotation in annotations:
            self._add(annotation, sample_of_id, class_of_id)
        self.samples = list(sample_of_id.values())

    def _entries(self, content: Entry, key: str, required: frozenset[str]) -> list[Entry]:
        """Those of a list that the loader takes."""
        entries = content.get(key, [] if key == "annotations" else None)
        if not isinstance(entries, list):
            self._report("not-loadable", f"it has no list {key!r}, which COCO's format needs")
            return []
        bad = bad_entries(entries, required, key, self.json_file, self.name)
        self.findings += bad.values()
        return [entry for index, entry in enumerate(entries) if index not in bad] if bad else entries

    def _find_repeated(self, entries: list[Entry], kind: str) -> None:
        try:
            check_one_kind_of_ids(entries, kind, self.json_file)
        except DetlibError as error:
            self._report("bad-entry", _plain(error, self.json_file))
        if len({entry["id"] for entry in entries}) == len(entries):
            return
        is_known = self.json_file.endswith(coco_format.FILES_WITH_KNOWN_DUPLICATES)
        seen: set[Any] = set()
        for entry in entries:
            if entry["id"] in seen:
                where = {} if kind == "category" else {f"{kind}_id": entry["id"]}
                finding = Finding.of(
                    "repeated-id",
                    self.name,
                    f"the {kind} id {short(entry['id'])} comes again",
                    severity="warning" if is_known else None,
                    file=self.json_file,
                    **where,
                )
                self.findings.append(finding)
            seen.add(entry["id"])

    def _classes(self, categories: list[Entry]) -> dict[Any, int]:
        """Category id -> class."""
        self._find_repeated(categories, "category")
        categories = sorted(
            {c["id"]: c for c in categories}.values(), key=lambda c: (isinstance(c["id"], str), c["id"])
        )
        names = [c["name"] for c in categories]
        declared = MetadataCatalog.get(self.name).get("thing_classes") or names
        if len(declared) != len(names) or (not self._is_lvis and list(declared) != names):
            message = f"it was declared with the classes {short(list(declared))}, but the file has {short(names)}"
            self._report("not-loadable", f"{message}; remove the declaration, or correct one of the two")
        try:
            described = keypoint_metadata_of(categories, self.json_file)
            self.keypoint_names = self.keypoint_names or described.get("keypoint_names")
        except DetlibError as error:
            self._report("not-loadable", _plain(error, self.json_file))
        self.class_names = list(declared) if len(declared) == len(names) else names  # Those of LVIS are synonyms.
        self._look_at_classes(categories, names)
        return {category["id"]: index for index, category in enumerate(categories)}

    def _look_at_classes(self, categories: list[Entry], names: list[str]) -> None:
        ids = [c["id"] for c in categories if isinstance(c["id"], int)]
        if ids and ids[-1] - ids[0] != len(ids) - 1:
            missing = sorted(set(range(ids[0], min(ids[-1], ids[0] + 10000))) - set(ids))
            self._report("category-gap", f"the ids are {ids[0]} to {ids[-1]} without {coco_format.some(missing)}")
        for name in sorted({name for name in names if names.count(name) > 1}, key=str):
            own = [c["id"] for c, other in zip(categories, names, strict=True) if other == name]
            self._report("category-name-repeated", f"{name!r} is the name of the categories {coco_format.some(own)}")

    def _samples(self, images: list[Entry]) -> dict[Any, Entry]:
        """Image id -> sample without objects."""
        self._find_repeated(images, "image")
        samples: dict[Any, Entry] = {}
        sample_of = lvis.sample_of if self._is_lvis else coco.sample_of
        for image in sorted(images, key=lambda image: (isinstance(image["id"], str), image["id"])):
            try:
                samples[image["id"]] = sample_of(image, self._folder)
            except DetlibError as error:
                self._report("bad-entry", _plain(error, self.json_file), image_id=image["id"])
        return samples

    def _add(self, annotation: Entry, sample_of_id: dict[Any, Entry], class_of_id: dict[Any, int]) -> None:
        """Put an annotation into its sample, or say why that cannot be."""
        sample, class_id = sample_of_id.get(annotation["image_id"]), class_of_id.get(annotation["category_id"])
        if sample is None:
            message = f"image {short(annotation['image_id'])} is not in 'images', or refused"
            self._report_annotation("unknown-image", annotation, message)
        if class_id is None:
            message = f"category {short(annotation['category_id'])} is not in 'categories', or refused"
            self._report_annotation("unknown-category", annotation, message)
        if not is_box(annotation["bbox"]):
            self._report_annotation("box-invalid", annotation, f"its box is {short(annotation['bbox'])}")
            return
        try:
            instance = coco_format.parse_instance(annotation, class_id or 0, ("id",), self.json_file)
        except DetlibError as error:
            self._report_annotation("bad-entry", annotation, _plain(error, self.json_file))
            return
        if isinstance(annotation.get("segmentation"), list):
            self._find_lost_polygons(annotation, instance)
        if instance is not None and sample is not None and class_id is not None:
            sample["annotations"].append(instance)

    def _find_lost_polygons(self, annotation: Entry, instance: Entry | None) -> None:
        polygons = annotation["segmentation"]
        num_lost = len(polygons) - len((instance or {}).get("segmentation", ()))
        if num_lost:
            lost = next(polygon for polygon in polygons if len(polygon) < 6 or len(polygon) % 2)
            message = (
                f"{num_lost} of its {len(polygons)} polygons are lost, as one of {len(lost)} values: {short(lost)}"
            )
            whole = "; the whole annotation is left out" if instance is None else ""
            self._report_annotation("mask-polygon", annotation, message + whole)

    def _report_annotation(self, kind: str, annotation: Entry, message: str) -> None:
        self._report(kind, message, image_id=annotation["image_id"], annotation_id=annotation["id"])


def bad_entries(
    entries: list[Any], required: frozenset[str], key: str, json_file: str, name: str
) -> dict[int, Finding]:
    """Those of a list of the file that the loader refuses, by their places.

    Args:
        required: keys that each needs.
        key: of the list.
        name: of the dataset.
    """
    found = {}
    try:
        check_entries(entries, required, key, json_file)  # Quicker than one by one.
        return found
    except DetlibError:
        pass
    for index, entry in enumerate(entries):
        try:
            check_entries([entry], required, key, json_file)
        except DetlibError as error:
            message = _plain(error, json_file).replace(f"{key}[0]", f"{key}[{index}]", 1)
            found[index] = Finding.of("bad-entry", name, message, file=json_file, **_ids(entry, key))
    return found


def _ids(entry: Any, key: str) -> dict[str, Any]:
    known = entry if isinstance(entry, dict) else {}
    if key == "annotations":
        return {"image_id": known.get("image_id"), "annotation_id": known.get("id")}
    return {"image_id": known.get("id")} if key == "images" else {}


def _plain(error: Exception, json_file: str) -> str:
    """The message without the file, which a finding has anyway."""
    return str(error).removeprefix(f"{json_file}: ")
