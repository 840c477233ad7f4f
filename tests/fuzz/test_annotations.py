"""Whatever is in an annotation file, what loads can be mapped, and the rest is refused by an error of detlib's."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detlib.config import get_cfg
from detlib.data import DatasetMapper, MetadataCatalog
from detlib.data.datasets import load_coco_json
from detlib.data.datasets.cityscapes import load_cityscapes_instances
from detlib.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from detlib.data.datasets.coco_panoptic import load_coco_panoptic_json
from detlib.data.datasets.image_folder import load_image_list
from detlib.data.datasets.lvis import load_lvis_json
from detlib.data.datasets.panoptic_instances import load_panoptic_with_instances
from detlib.data.datasets.pascal_voc import load_voc_instances, load_voc_labels
from detlib.data.datasets.sem_seg import load_sem_seg_json
from detlib.data.preparation import load_proposals_into_dataset
from detlib.utils.errors import DetlibError
from tests.fuzz.hostile import VALUES, damaged, mutated

NAME = "fuzzed"
HEIGHT, WIDTH = 24, 32
IMAGES = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)]
COCO = {
    "images": [{**image, "sem_seg_file_name": f"{image['id']}.png"} for image in IMAGES],
    "categories": [
        {"id": 3, "name": "person", "keypoints": ["left_eye", "right_eye"], "skeleton": [[1, 2]], "isthing": 1},
        {"id": 7, "name": "car", "isthing": 1},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "bbox": [2, 3, 10, 12],
            "area": 120,
            "iscrowd": 0,
            "segmentation": [[2, 3, 12, 3, 12, 15, 2, 15]],
            "keypoints": [4, 5, 2, 8, 5, 1],
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 7,
            "bbox": [0, 0, 5, 6],
            "iscrowd": 1,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 6, HEIGHT * WIDTH - 6]},
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 7,
            "bbox": [1, 1, 9, 9],
            "iscrowd": 0,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": "ig01e03e0000"},
            "keypoints": [4, 5, 2, 8, 5, 1],
        },
    ],
}
LVIS = {
    "images": [
        {
            "id": 1,
            "coco_url": "http://images/train2017/1.png",
            "height": HEIGHT,
            "width": WIDTH,
            "neg_category_ids": [7],
            "not_exhaustive_category_ids": [],
        },
        {**IMAGES[1], "file_name": "train2017/2.png"},
    ],
    "categories": [{**c, "synonyms": [c["name"]], "image_count": 1, "frequency": "f"} for c in COCO["categories"]],
    "annotations": [COCO["annotations"][0]],
}
SEM_SEG = {
    "images": COCO["images"],
    "categories": [{"id": 0, "name": "sky", "color": [1, 2, 3]}, {"id": 1, "name": "sea"}],
    "ignore_label": 255,
}
PANOPTIC = {
    "images": IMAGES,
    "categories": [
        {"id": 3, "name": "person", "isthing": 1},
        {"id": 7, "name": "car", "isthing": 1},
        {"id": 9, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
    ],
    "annotations": [
        {
            "image_id": 1,
            "file_name": "1.png",
            "segments_info": [
                {"id": 0, "category_id": 9, "iscrowd": 0, "bbox": [0, 0, 5, 5], "area": 5},
                {"id": 1 + 256 + 65536, "category_id": 3},
            ],
        },
        {"image_id": 2, "file_name": "2.png", "segments_info": [{"id": 0, "category_id": 9}]},
    ],
}
PANOPTIC_META = {
    "thing_dataset_id_to_contiguous_id": {3: 0, 7: 1},
    "stuff_dataset_id_to_contiguous_id": {9: 0},
}
CITYSCAPES = {
    "imgHeight": HEIGHT,
    "imgWidth": WIDTH,
    "objects": [
        {"label": "car", "polygon": [[1, 1], [9, 1], [9, 9]]},
        {"label": "cargroup", "polygon": [[1, 1], [9, 1], [9, 9]], "deleted": 0},
    ],
}
VOC = """<annotation><size><width>32</width><height>24</height><depth>3</depth></size><object><name>cat</name>
<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>
"""


@pytest.fixture(scope="module")
def root(folder):
    """Two images, in the places where each format has them; they are label maps, too."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[4:9, 5:9] = 1
    city = "leftImg8bit/train/ulm/ulm_0_0_leftImg8bit.png"
    for name in ("1.png", "2.png", "train2017/1.png", "train2017/2.png", "JPEGImages/1.jpg", city):
        os.makedirs(folder / os.path.dirname(name), exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    for name in ("Annotations", "ImageSets/Main", "gtFine/train/ulm", "panoptic"):
        os.makedirs(folder / name)
    for name in ("panoptic/p.png", "gtFine/train/ulm/ulm_0_0_gtFine_labelTrainIds.png"):
        Image.fromarray(pixels[..., 0]).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def forgotten_metadata():
    yield
    if NAME in MetadataCatalog:
        MetadataCatalog.remove(NAME)


def mapper(**options):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP, cfg.MODEL.DEVICE = (16,), "none", "cpu"
    for key, value in options.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return DatasetMapper(cfg, is_train=True)


MAPPERS = [
    mapper(),
    mapper(MODEL__MASK_ON=True, INPUT__MASK_FORMAT="polygon"),
    mapper(MODEL__MASK_ON=True, INPUT__MASK_FORMAT="bitmask", INPUT__CROP__ENABLED=True),
    mapper(MODEL__ANCHOR_GENERATOR__NAME="RotatedAnchorGenerator"),
]
KEYPOINT_MAPPER = DatasetMapper(True, augmentations=[], image_format="RGB", use_keypoint=True)


def load_or_refuse(load, *arguments, mappers=MAPPERS):
    """The samples, which mappers take or refuse, too; None where loading is refused."""
    if NAME in MetadataCatalog:
        MetadataCatalog.remove(NAME)
    try:
        samples = load(*arguments)
    except DetlibError as error:
        assert str(error)
        return None
    for sample in samples:
        for use in mappers:
            try:
                use(sample)
            except DetlibError as error:
                assert str(error)
    return samples


def write(root, content, name="a.json"):
    path = root / name
    path.write_text(json.dumps(content) if not isinstance(content, str) else content, encoding="utf-8")
    return str(path)


@given(content=mutated(COCO))
def test_mutated_coco_is_mapped_or_refused(root, content):
    load_or_refuse(load_coco_json, write(root, content), str(root), NAME, mappers=[*MAPPERS, KEYPOINT_MAPPER])


@given(content=mutated(LVIS))
def test_mutated_lvis_is_mapped_or_refused(root, content):
    load_or_refuse(load_lvis_json, write(root, content), str(root), NAME)


@given(content=mutated(SEM_SEG))
def test_mutated_list_of_label_maps_is_mapped_or_refused(root, content):
    load_or_refuse(load_sem_seg_json, write(root, content), str(root), str(root), NAME)


@given(content=mutated(PANOPTIC), instances=st.one_of(st.just(COCO), mutated(COCO)))
def test_mutated_panoptic_file_is_mapped_or_refused(root, content, instances):
    path, other = write(root, content), write(root, instances, "instances.json")
    load_or_refuse(load_coco_panoptic_json, path, str(root), str(root), PANOPTIC_META)
    load_or_refuse(load_panoptic_with_instances, path, str(root), str(root), other, NAME)


@given(content=mutated(CITYSCAPES))
def test_mutated_cityscapes_polygons_are_mapped_or_refused(root, content):
    write(root / "gtFine/train/ulm", content, "ulm_0_0_gtFine_polygons.json")
    load_or_refuse(load_cityscapes_instances, str(root / "leftImg8bit/train"), str(root / "gtFine/train"))


@given(
    content=mutated(
        {"annotations": [{"image_id": "ulm_0_0", "file_name": "p.png", "segments_info": [{"id": 1, "category_id": 3}]}]}
    )
)
def test_mutated_cityscapes_panoptic_file_is_mapped_or_refused(root, content):
    arguments = (str(root / "leftImg8bit/train"), str(root / "panoptic"), write(root, content), PANOPTIC_META)
    load_or_refuse(load_cityscapes_panoptic, *arguments)


@given(data=damaged(VOC.encode()))
def test_damaged_voc_annotation_is_mapped_or_refused(root, data):
    (root / "ImageSets/Main/train.txt").write_text("1\n")
    (root / "Annotations/1.xml").write_bytes(data)
    for load in (load_voc_instances, load_voc_labels):
        load_or_refuse(load, str(root), "train", ["cat", "dog"])


@given(data=st.one_of(st.binary(max_size=40), damaged(b"1.png 0\ntrain2017/1.png 1\n"), damaged(b"1\n2 -1\n")))
def test_damaged_lists_of_images_are_mapped_or_refused(root, data):
    (root / "list.txt").write_bytes(data)
    (root / "ImageSets/Main/other.txt").write_bytes(data)
    (root / "Annotations/1.xml").write_text(VOC)
    load_or_refuse(load_image_list, str(root / "list.txt"), str(root), ["a", "b"])
    load_or_refuse(load_voc_instances, str(root), "other", ["cat", "dog"])


@given(data=st.one_of(st.binary(max_size=60), VALUES.map(lambda value: json.dumps(value).encode())))
def test_what_is_no_annotation_file_is_refused(root, data):
    path = root / "a.json"
    path.write_bytes(data)
    for load, *arguments in (
        (load_coco_json, root),
        (load_lvis_json, root),
        (load_sem_seg_json, root, root),
        (load_coco_panoptic_json, root, root, PANOPTIC_META),
        (load_panoptic_with_instances, root, root, path, NAME),
        (load_proposals_into_dataset,),
    ):
        first = [] if load is load_proposals_into_dataset else path
        second = [path] if load is load_proposals_into_dataset else arguments
        load_or_refuse(load, first, *second)
