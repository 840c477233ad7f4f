"""From a file of proposals to a Fast R-CNN that trains on them and predicts."""

import numpy as np
import pytest
import torch
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detlib.evaluation.proposal_recall import save_box_proposals
from detlib.modeling import build_model
from detlib.structures import Boxes, BoxMode, Instances
from detlib.utils.errors import DatasetError


@pytest.fixture
def cfg(tiny_rcnn_cfg, tmp_path):
    """Two images of 40 x 80, twice the size of which the network sees; the second has neither objects nor proposals."""
    Image.fromarray(np.full((40, 80, 3), 99, dtype=np.uint8)).save(tmp_path / "image.png")
    annotation = {"bbox": [10, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2}
    common = {"file_name": str(tmp_path / "image.png"), "height": 40, "width": 80}
    samples = [{**common, "image_id": 1, "annotations": [annotation]}, {**common, "image_id": 2, "annotations": []}]
    DatasetCatalog.register("with_proposals", lambda: [dict(sample) for sample in samples])
    MetadataCatalog.get("with_proposals").thing_classes = ["a", "b", "c"]
    some = Instances((40, 80), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9], [11, 6, 30, 24], [50, 0, 70, 39]])))
    some.objectness_logits = torch.tensor([0.5, 3.0, 1.0])
    none = Instances((40, 80), proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0))
    save_box_proposals([{"image_id": 1, "proposals": some}, {"image_id": 2, "proposals": none}], str(tmp_path))

    cfg = tiny_rcnn_cfg
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("with_proposals",)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (str(tmp_path / "box_proposals.pkl"),)
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 2
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RANDOM_FLIP = (80,), 80, "none"
    yield cfg
    DatasetCatalog.remove("with_proposals")
    MetadataCatalog.remove("with_proposals")


def test_best_proposals_reach_the_model_at_its_scale(cfg):
    first, second = (batch[0]["proposals"] for batch in build_detection_test_loader(cfg, "with_proposals"))
    assert first.proposal_boxes.tensor.tolist() == [[22, 12, 60, 48], [100, 0, 140, 78]]
    assert first.objectness_logits.tolist() == [3.0, 1.0]
    assert len(second) == 0


def test_fast_rcnn_trains_on_given_proposals_and_predicts(cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    losses = model(next(iter(build_detection_train_loader(cfg))))
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.roi_heads.parameters())
    model.eval()
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    first, second = (model(batch)[0]["instances"] for batch in build_detection_test_loader(cfg, "with_proposals"))
    assert first.image_size == (40, 80)
    assert len(first) > 0
    assert len(second) == 0


def test_model_without_proposals_in_its_input_says_which_key_to_set(cfg):
    cfg.MODEL.LOAD_PROPOSALS = False
    with pytest.raises(DatasetError, match=r"image\.png.*MODEL\.LOAD_PROPOSALS: True"):
        build_model(cfg)(next(iter(build_detection_train_loader(cfg))))
