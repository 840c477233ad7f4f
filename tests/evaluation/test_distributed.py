"""Every evaluator in two processes: the main one must give what a single process gives, the other one nothing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed as dist
from torch import multiprocessing as mp

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    ClassificationEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    LVISEvaluator,
    MultiLabelEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    inference_on_dataset,
)
from detlib.structures import Boxes, Instances
from detlib.utils import comm

SIZE = 40
IMAGES = (1, 2, 3)
EVALUATORS = (
    COCOEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    COCOPanopticEvaluator,
    SemSegEvaluator,
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    ClassificationEvaluator,
    MultiLabelEvaluator,
)
NAMES = ["road", "car"]


def file_name(image_id):
    return f"ulm_{image_id:06d}_000019_leftImg8bit.png"


def write_dataset(folder):
    """Images of a road with a car on the left half, in the files of every evaluator."""
    polygon = [0, 0, SIZE // 2, 0, SIZE // 2, SIZE, 0, SIZE]
    car = {"category_id": 2, "iscrowd": 0, "area": SIZE * SIZE // 2, "bbox": [0, 0, SIZE // 2, SIZE]}
    car["segmentation"] = [polygon]
    categories = [{"id": i, "name": name, "isthing": i - 1, "frequency": "f"} for i, name in enumerate(NAMES, start=1)]
    images = [
        {"id": i, "file_name": file_name(i), "height": SIZE, "width": SIZE, "neg_category_ids": []} for i in IMAGES
    ]
    segments = [{"id": 7, "category_id": 1}, {"id": 26000, "category_id": 2}]
    annotations = [{**car, "id": i, "image_id": i} for i in IMAGES]
    panoptic = [{"image_id": i, "file_name": f"panoptic_{i}.png", "segments_info": segments} for i in IMAGES]
    for name, content in (("instances", annotations), ("panoptic", panoptic)):
        text = json.dumps({"images": images, "categories": categories, "annotations": content})
        (folder / f"{name}.json").write_text(text)
    for path in ("ulm", "Annotations", "ImageSets/Main"):
        (folder / path).mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("\n".join(map(str, IMAGES)))
    ids = np.full((SIZE, SIZE), 7, dtype=np.uint16)
    ids[:, : SIZE // 2] = 26000
    for i in IMAGES:
        Image.fromarray(ids).save(folder / "ulm" / file_name(i).replace("leftImg8bit", "gtFine_instanceIds"))
        Image.fromarray((ids > 7).astype(np.uint8)).save(folder / f"labels_{i}.png")
        Image.fromarray(np.stack([ids % 256, ids // 256, ids * 0], axis=2).astype(np.uint8)).save(
            folder / f"panoptic_{i}.png"
        )
        box = f"<xmin>1</xmin><ymin>1</ymin><xmax>{SIZE // 2}</xmax><ymax>{SIZE}</ymax>"
        xml = f"<annotation><object><name>car</name><bndbox>{box}</bndbox></object></annotation>"
        (folder / "Annotations" / f"{i}.xml").write_text(xml)


def register(folder):
    samples = [
        {
            "image_id": i,
            "file_name": file_name(i),
            "sem_seg_file_name": f"{folder}/labels_{i}.png",
            "label": 1,
            "labels": [1],
        }
        for i in IMAGES
    ]
    name = f"everything_{folder}"
    DatasetCatalog.register(name, lambda: samples)
    MetadataCatalog.get(name).set(
        json_file=f"{folder}/instances.json",
        panoptic_json=f"{folder}/panoptic.json",
        panoptic_root=str(folder),
        gt_dir=str(folder),
        dirname=str(folder),
        split="val",
        year=2012,
        classes=NAMES,
        thing_classes=NAMES,
        stuff_classes=NAMES,
    )
    return name


def model(batch):
    return [predict(image["image_id"]) for image in batch]


def predict(image_id):
    """Right on image 1, a part of the car on image 2, nothing on image 3."""
    width = {1: SIZE // 2, 2: SIZE // 3, 3: 0}[image_id]
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[:, :width] = True
    num = min(width, 1)
    return {
        "instances": Instances(
            (SIZE, SIZE),
            pred_boxes=Boxes(torch.tensor([[0.0, 0.0, width, SIZE]])[:num]),
            pred_masks=mask[None][:num],
            scores=torch.full((num,), 0.5),
            pred_classes=torch.ones(num, dtype=torch.int64),
        ),
        "proposals": Instances(
            (SIZE, SIZE),
            proposal_boxes=Boxes(torch.tensor([[0.0, 0.0, width, SIZE]])[:num]),
            objectness_logits=torch.zeros(num),
        ),
        "pred_score": torch.tensor([1 - 2 * width / SIZE, 2 * width / SIZE]),
        "sem_seg": torch.stack([~mask, mask]).float(),
        "panoptic_seg": (mask * 2 + ~mask * 1, [{"id": i, "category_id": i} for i in (1, 2)]),
    }


def evaluate(name, image_ids):
    """Class name of each evaluator -> its results."""
    batches = [[{"image_id": i, "file_name": file_name(i)}] for i in image_ids]
    return {kind.__name__: inference_on_dataset(model, batches, kind(name)) for kind in EVALUATORS}


def evaluate_shares(rank, folder):
    """First with images 1 and 3 here and 2 there, then with all of them in one process, not the main one."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    name = register(folder)
    results = [evaluate(name, shares[rank]) for shares in (([1, 3], [2]), ([], IMAGES))]
    with open(f"{folder}/results{rank}.json", "w") as file:
        json.dump(results, file)
    comm.leave()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Those of a single process, of the main of two, and of the other."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder)
    name = register(folder)
    single = json.loads(json.dumps(evaluate(name, IMAGES)))
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    mp.spawn(evaluate_shares, args=(str(folder),), nprocs=2)
    return single, *(json.loads((folder / f"results{rank}.json").read_text()) for rank in (0, 1))


@pytest.mark.parametrize("kind", [kind.__name__ for kind in EVALUATORS])
def test_main_process_evaluates_the_images_of_all(results, kind):
    single, main, other = results
    assert single[kind]
    for shares in (0, 1):
        assert not other[shares][kind]
        assert main[shares][kind].keys() == single[kind].keys()
        for task, metrics in single[kind].items():
            assert main[shares][kind][task] == pytest.approx(metrics, nan_ok=True)


def test_results_are_those_of_two_cars_of_three(results):
    single = results[0]
    # Found on images 1 (IoU 1) and 2 (IoU 0.65, right up to 0.65): recall 2/3 at 4 thresholds, 1/3 at 6.
    assert single["PascalVOCDetectionEvaluator"]["bbox"]["AP50"] == pytest.approx(200 / 3)
    assert single["COCOEvaluator"]["box_proposals"]["AR@100"] == pytest.approx(100 * (4 * 2 / 3 + 6 / 3) / 10)
    assert single["COCOPanopticEvaluator"]["panoptic_seg"]["RQ_th"] == pytest.approx(100 * 2 / (2 + 0.5))
    assert single["SemSegEvaluator"]["sem_seg"]["ACC-car"] == pytest.approx(100 * (20 + 13) / 60)
    assert single["CityscapesSemSegEvaluator"]["sem_seg"]["IoU-car"] == pytest.approx(100 * (20 + 13) / 60)
    assert single["CityscapesInstanceEvaluator"]["segm"]["AP50"] == pytest.approx(200 / 3)
    assert single["ClassificationEvaluator"]["classification"]["top1"] == pytest.approx(200 / 3)
    assert single["LVISEvaluator"]["bbox"]["AP50"] == single["COCOEvaluator"]["bbox"]["AP50"]
