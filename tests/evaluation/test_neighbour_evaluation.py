import json
import logging

import numpy as np
import pytest
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.evaluation import evaluate_neighbours
from detlib.modeling.preprocessing import ImagePreprocessor, PreprocessesImages
from detlib.utils import comm

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "orange": (255, 50, 0), "turquoise": (0, 255, 50)}


class MeanColour(PreprocessesImages, nn.Module):
    """Its features are the mean red, green and blue of an image."""

    def __init__(self):
        super().__init__()
        self.preprocessor = ImagePreprocessor([0.0] * 3, [1.0] * 3)
        self.backbone = nn.Module()
        self.backbone.forward = self.colours
        self.sizes = []

    def colours(self, images):
        self.sizes += [tuple(images.shape)]
        return {"pixels": images}


def images(*colours_and_labels, sizes=(8,)):
    return [
        {"image": np.full((sizes[i % len(sizes)], 8, 3), COLOURS[colour], dtype=np.uint8), "label": label}
        for i, (colour, label) in enumerate(colours_and_labels)
    ]


TRAIN = images(("red", 0), ("green", 1), ("green", 1))
TEST = images(("orange", 0), ("turquoise", 1), ("orange", 1))  # Two of them are near images of their class.


@pytest.fixture
def cfg():
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "RandomFlip", "PROB": 0.0}]
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


@pytest.fixture
def evaluate(cfg, dataset):
    """The results by name for the model above, or another; datasets are lists of samples or names."""

    def run(train, test, model=None):
        for key, parts in (("TRAIN", train), ("TEST", test)):
            cfg.DATASETS[key] = [part if isinstance(part, str) else dataset(part) for part in parts]
        return dict(evaluate_neighbours(cfg, model or MeanColour()))

    return run


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "detlib")
    return caplog


def test_images_get_the_class_of_the_nearest_training_images(evaluate):
    (results,) = evaluate([TRAIN], [TEST]).values()
    assert results == {"knn": {"top1": pytest.approx(200 / 3)}}


def test_images_are_prepared_as_for_testing_and_not_padded(evaluate, cfg):
    cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "ResizeShortestEdge", "SHORT_EDGE_LENGTH": 4}]
    model = MeanColour()
    train = images(("red", 0), ("red", 0), ("green", 1), sizes=(8, 8, 16))
    (results,) = evaluate([train], [TEST], model).values()
    assert results["knn"]["top1"] == pytest.approx(200 / 3)
    assert sorted(model.sizes) == [(1, 3, 8, 4), (2, 3, 4, 4), (3, 3, 4, 4)]


def test_feature_is_the_one_that_the_model_learns_from(evaluate, cfg, monkeypatch):
    cfg.MODEL.SSL.IN_FEATURE = "cls_token"
    model = MeanColour()
    monkeypatch.setattr(model.backbone, "forward", lambda x: {"map": x, "cls_token": x.new_ones(len(x), 3)})
    (results,) = evaluate([TRAIN], [TEST[:2]], model).values()
    assert results["knn"]["top1"] == 50  # All tokens are the same, so that most votes are for the second class.


def test_features_of_the_training_set_are_computed_once(evaluate):
    model = MeanColour()
    first, second = evaluate([TRAIN], [TEST, TEST[:1]], model).values()
    assert (first["knn"]["top1"], second["knn"]["top1"]) == (pytest.approx(200 / 3), 100)
    assert len(model.sizes) == 3


def test_mode_of_each_layer_is_as_before(evaluate):
    model = MeanColour()
    model.norm, model.frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval()
    evaluate([TRAIN], [TEST], model)
    assert model.training and model.norm.training and not model.frozen.training


def test_images_without_a_class_are_not_evaluated_and_the_log_says_so(evaluate, log):
    without = [{"image": TRAIN[0]["image"], "file_name": "cell.png", "annotations": [{"category_id": 0}]}]
    several = [{**TRAIN[0], "label": [0, 1]}]
    results = evaluate([TRAIN], [without, several, TEST])
    assert [bool(found) for found in results.values()] == [False, False, True]
    warnings = [record.getMessage() for record in log.records if record.levelname == "WARNING"]
    first, second, _ = results
    assert len(warnings) == 2
    assert f"{first!r} is not evaluated" in warnings[0] and "cell.png has no label" in warnings[0]
    assert f"{second!r} is not evaluated" in warnings[1] and "the label [0, 1]" in warnings[1]


def test_neighbours_are_training_images_that_have_a_class(evaluate):
    without = [{"image": TRAIN[1]["image"]}] * 3
    (results,) = evaluate([without, TRAIN], [TEST]).values()
    assert results["knn"]["top1"] == pytest.approx(200 / 3)


def test_without_training_images_of_a_class_there_is_no_evaluation(evaluate, log):
    (results,) = evaluate([[{"image": TRAIN[1]["image"]}]], [TEST]).values()
    assert results == {}
    assert "DATASETS.TRAIN has no images of its classes" in log.text and "has no label" in log.text


def test_neighbours_of_other_classes_are_not_asked(evaluate, dataset, log):
    animals = dataset(TRAIN, classes=["cat", "dog"])
    colours = dataset(TEST, classes=["red", "green"])
    (results,) = evaluate([animals], [colours]).values()
    assert results == {}
    assert f"{animals!r} has other classes" in log.text


def test_images_are_not_their_own_neighbours(evaluate, dataset, log):
    both = dataset(TRAIN)
    (results,) = evaluate([both], [both]).values()
    assert results == {}
    assert "would be their own neighbours" in log.text


def evaluate_share(rank, folder, cfg):
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, samples in (("share_train", TRAIN), ("share_test", TEST), ("share_one", TEST[:1])):
        DatasetCatalog.register(name, lambda samples=samples: samples)
        MetadataCatalog.get(name)
    results = {}
    # The second process has no image of share_one.
    for train in ("share_train", "share_one"):
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [train], ["share_test", "share_one"]
        results[train] = dict(evaluate_neighbours(cfg, MeanColour()))
    with open(f"{folder}/results{rank}.json", "w") as file:
        json.dump(results, file)
    comm.leave()


def test_processes_share_the_images_and_the_main_one_has_the_results(cfg, tmp_path):
    mp.spawn(evaluate_share, args=(str(tmp_path), cfg), nprocs=2)
    main, other = (json.loads((tmp_path / f"results{rank}.json").read_text()) for rank in range(2))
    assert main["share_train"]["share_test"]["knn"]["top1"] == pytest.approx(200 / 3)
    assert main["share_train"]["share_one"]["knn"]["top1"] == 100
    assert main["share_one"]["share_test"]["knn"]["top1"] == pytest.approx(100 / 3)  # All get the class of one image.
    assert main["share_one"]["share_one"] == {}
    assert all(found == {} for run in other.values() for found in run.values())
