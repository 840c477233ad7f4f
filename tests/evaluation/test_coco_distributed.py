import json

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from detlib.data.datasets import register_coco_instances
from detlib.evaluation import COCOEvaluator, inference_on_dataset
from detlib.structures import Boxes, Instances
from detlib.utils import comm


def find_the_object(inputs):
    box = Boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0]]))
    return [
        {"instances": Instances((100, 100), pred_boxes=box, scores=torch.ones(1), pred_classes=torch.zeros(1).long())}
        for _ in inputs
    ]


def evaluate_a_share(rank, folder):
    """Rank 0 has images 1 and 2, rank 1 has image 3."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    register_coco_instances("shared", {}, f"{folder}/coco.json", folder)
    batches = [[[{"image_id": 1}], [{"image_id": 2}]], [[{"image_id": 3}]]][rank]
    results = inference_on_dataset(find_the_object, batches, COCOEvaluator("shared"))
    with open(f"{folder}/results{rank}.json", "w") as f:
        json.dump(results, f)
    comm.leave()


def test_main_process_evaluates_the_images_of_all(tmp_path):
    annotation = {"category_id": 1, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0}
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{**annotation, "id": i, "image_id": i} for i in (1, 2, 3)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    mp.spawn(evaluate_a_share, args=(str(tmp_path),), nprocs=2)
    main, other = (json.loads((tmp_path / f"results{rank}.json").read_text()) for rank in (0, 1))
    assert main["bbox"]["AP"] == pytest.approx(100)
    assert other == {}
