import pytest
import torch

from detlib.checkpoint import DetectionCheckpointer
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.engine import DefaultPredictor, DefaultTrainer
from detlib.engine.checkpoint_metadata import checkpoint_metadata

CLASSES = ["cat", "dog", "bird"]


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    """Of a training on two images in memory."""
    image = torch.zeros(32, 48, 3, dtype=torch.uint8).numpy()
    samples = [
        {
            "image": image,
            "height": 32,
            "width": 48,
            "image_id": i,
            "annotations": [{"bbox": [4, 4, 20, 20], "bbox_mode": 0, "category_id": i}],
        }
        for i in range(2)
    ]
    DatasetCatalog.register("two_images", lambda: samples)
    MetadataCatalog.get("two_images").thing_classes = CLASSES
    tiny_cfg.DATASETS.TRAIN = ("two_images",)
    tiny_cfg.OUTPUT_DIR = str(tmp_path)
    tiny_cfg.SOLVER.MAX_ITER = 1
    yield tiny_cfg
    DatasetCatalog.remove("two_images")
    MetadataCatalog.remove("two_images")


def saved(cfg):
    trainer = DefaultTrainer(cfg)
    trainer.checkpointer.save("model")
    return trainer, torch.load(f"{cfg.OUTPUT_DIR}/model.pth")["detlib"]


def test_checkpoint_of_a_trainer_names_classes_data_and_preprocessing(cfg):
    trainer, metadata = saved(cfg)
    assert metadata["classes"] == {"thing_classes": CLASSES}
    assert metadata["preprocessing"]["INPUT.FORMAT"] == "BGR"
    assert metadata["preprocessing"]["MODEL.PIXEL_MEAN"] == cfg.MODEL.PIXEL_MEAN
    assert metadata["datasets"]["two_images"]["num_samples"] == 2
    assert metadata["config"] == trainer.cfg.dump()


def test_resumed_training_says_that_its_data_is_other(cfg, log):
    saved(cfg)
    DatasetCatalog.get("two_images")[1]["annotations"][0]["bbox"] = [4, 4, 20, 21]
    DefaultTrainer(cfg).resume_or_load(resume=True)
    assert "the dataset 'two_images' has other samples or annotations" in log.text


def test_evaluation_of_classes_in_another_order_is_warned_of(cfg, log):
    trainer, _ = saved(cfg)
    DatasetCatalog.register("shuffled", list)
    MetadataCatalog.get("shuffled").thing_classes = CLASSES[::-1]
    checkpointer = DetectionCheckpointer(trainer.model)
    checkpointer.metadata = checkpoint_metadata(cfg, ["shuffled"])
    checkpointer.load(f"{cfg.OUTPUT_DIR}/model.pth")
    DatasetCatalog.remove("shuffled")
    MetadataCatalog.remove("shuffled")
    assert "thing_classes had another order: cat, dog, bird; now: bird, dog, cat" in log.text


def test_predictor_knows_the_classes_of_a_dataset_that_is_not_there(cfg):
    saved(cfg)
    cfg.DATASETS.TEST = ("somewhere_else",)
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model.pth"
    assert DefaultPredictor(cfg).metadata.thing_classes == CLASSES
    assert MetadataCatalog.get("somewhere_else").get("thing_classes") is None
    MetadataCatalog.remove("somewhere_else")
