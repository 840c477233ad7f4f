import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detlib.config import CfgNode, get_cfg
from detlib.data import DatasetCatalog
from detlib.data.samplers import UniformClusterSampler
from detlib.engine import DefaultTrainer
from detlib.engine.clustering_hook import ClusteringHook, build_clustering_hook
from detlib.modeling import build_model
from detlib.utils.errors import ConfigError

NUM_SAMPLES = 12


@pytest.fixture
def cfg(tmp_path):
    """DeepCluster on 12 images, 4 of a batch: an epoch has 3 iterations."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(NUM_SAMPLES):
        file = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(file)
        samples.append({"file_name": str(file), "image_id": i, "height": 20, "width": 20})
    DatasetCatalog.register("clustered", lambda: samples)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "DeepCluster"
    cfg.MODEL.DEVICE = "cpu"
    backbone = {"NAME": "ResNet_CIFAR", "DEPTH": 18, "BASE_CHANNELS": 4, "FREEZE_AT": 0}
    ssl = {
        "NECK": {"NAME": "AvgPool2dNeck"},
        "HEAD": {"NAME": "LinearClsHead", "NUM_CLASSES": 3},
        "MEMORY": {"NAME": "PseudoLabels"},
    }
    cfg.MODEL.merge_from_other_cfg(CfgNode({"BACKBONE": backbone, "SSL": ssl}))
    cfg.DATASETS.TRAIN = ("clustered",)
    cfg.INPUT.VIEWS = [{"AUGMENTATIONS": [{"NAME": "RandomResizedCrop", "SIZE": 16}]}]
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.SAMPLER_TRAIN = "UniformClusterSampler"
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.MAX_ITER = 9
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    yield cfg
    DatasetCatalog.remove("clustered")


@pytest.fixture
def calls(monkeypatch):
    """The iterations in which the hook clusters."""
    iterations = []
    cluster = ClusteringHook.cluster
    monkeypatch.setattr(ClusteringHook, "cluster", lambda self: iterations.append(self.trainer.iter) or cluster(self))
    return iterations


def test_deepcluster_clusters_before_training_and_after_each_epoch_but_the_last(cfg, calls):
    trainer = DefaultTrainer(cfg)
    assert not trainer.model.is_clustered
    trainer.train()
    assert calls == [0, 2, 5]
    assert trainer.model.memory_bank.num_clusterings == 3
    assert trainer.model.training


def test_odc_clusters_once(cfg, calls):
    cfg.MODEL.META_ARCHITECTURE = "ODC"
    cfg.MODEL.SSL.NECK = CfgNode({"NAME": "ODCNeck", "HID_CHANNELS": 8, "OUT_CHANNELS": 4})
    cfg.MODEL.SSL.MEMORY = CfgNode({"NAME": "ODCMemory", "MIN_CLUSTER": 2})
    cfg.DATALOADER.SAMPLER_TRAIN = "ReplacementSampler"
    trainer = DefaultTrainer(cfg)
    trainer.train()
    assert calls == [0]
    assert trainer.model.memory_bank.num_steps == 9


def test_features_are_in_the_order_of_the_dataset_and_of_the_whole_network_in_evaluation_mode(cfg):
    cfg.MODEL.SSL.MEMORY.LENGTH = NUM_SAMPLES
    model = build_model(cfg)
    hook = build_clustering_hook(cfg, model)
    model.backbone.stem.eval()
    features = hook._features()
    assert not model.backbone.stem.training and model.training  # as they were
    model.eval()
    batch = [sample for part in hook._data_loader for sample in part]
    assert [sample["sample_idx"] for sample in batch] == list(range(NUM_SAMPLES))
    torch.testing.assert_close(features, model.clustering_features(batch), rtol=1e-3, atol=1e-4)
    hook._data_loader = [batch[7:], batch[:7]]
    torch.testing.assert_close(hook._features(), features, rtol=1e-3, atol=1e-4)


def test_optimizer_forgets_the_head_only(cfg):
    trainer = DefaultTrainer(cfg)
    hook = next(hook for hook in trainer._hooks if isinstance(hook, ClusteringHook))
    trainer.train()
    head, stem = trainer.model.head.fc.weight, next(trainer.model.backbone.parameters())
    assert head in trainer.optimizer.state and stem in trainer.optimizer.state
    hook.cluster()
    assert head not in trainer.optimizer.state and stem in trainer.optimizer.state


@pytest.mark.parametrize("num_workers", [0, 2])
def test_next_batches_are_drawn_from_the_new_clusters(cfg, num_workers):
    cfg.DATALOADER.NUM_WORKERS = num_workers
    trainer = DefaultTrainer(cfg)
    hook = next(hook for hook in trainer._hooks if isinstance(hook, ClusteringHook))
    loading = trainer._trainer
    next(loading._data_loader_iter)  # Workers have loaded more already.
    # The sample 0 has a cluster of its own, and hence half of the draws: at least 5 of 12.
    trainer.model.memory_bank.label_bank.copy_(torch.tensor([0] + [1] * 11))
    hook._tell_sampler(epoch=0)
    trainer.data_loader.restart(1)
    drawn = [sample["sample_idx"] for _ in range(3) for sample in next(loading._data_loader_iter)]
    loading.reset_data_loader(list)  # ends the workers
    assert drawn.count(0) >= 5


def test_another_sampler_stays(cfg, calls):
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    trainer = DefaultTrainer(cfg)
    trainer.train()
    assert calls == [0, 2, 5]


def test_resumed_training_goes_on_with_its_labels(cfg, calls, monkeypatch):
    cfg.SOLVER.CHECKPOINT_PERIOD = 4
    trainer = DefaultTrainer(cfg)
    trainer.max_iter = 4
    trainer.train()
    assert calls == [0, 2]
    labels = trainer.model.memory_bank.label_bank.clone()

    resumed = DefaultTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert torch.equal(resumed.model.memory_bank.label_bank, labels)
    calls.clear()
    told = []

    def set_labels(self, labels, epoch):
        told.append((epoch, labels.tolist()))

    monkeypatch.setattr(UniformClusterSampler, "set_labels", set_labels)
    resumed.train()
    assert calls == [5]
    assert [epoch for epoch, _ in told] == [1, 2]
    assert told[0][1] == labels.tolist()


def test_checkpoint_at_the_end_of_an_epoch_has_the_labels_of_the_next(cfg):
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    trainer = DefaultTrainer(cfg)
    trainer.train()
    state = torch.load(f"{cfg.OUTPUT_DIR}/model_0000002.pth", weights_only=False)["model"]
    assert state["memory_bank.num_clusterings"] == 2


def test_memory_for_another_number_of_samples_is_an_error(cfg):
    with pytest.raises(ConfigError, match=r"is for 0 samples, but DATASETS.TRAIN has 12; build .* with_memory_length"):
        build_clustering_hook(cfg, build_model(cfg))
    cfg.MODEL.SSL.MEMORY.LENGTH = 13
    with pytest.raises(ConfigError, match=r"MODEL.SSL.MEMORY.LENGTH is 13, but DATASETS.TRAIN has 12 samples; leave"):
        DefaultTrainer(cfg)


@pytest.mark.parametrize(("batch_size", "expected"), [(5, [0, 1, 3]), (20, [0, 0, 1, 2, 3])])
def test_epoch_has_the_full_batches_of_the_dataset_and_at_least_one(cfg, calls, batch_size, expected):
    cfg.SOLVER.IMS_PER_BATCH = batch_size
    cfg.SOLVER.MAX_ITER = 5
    DefaultTrainer(cfg).train()
    assert calls == expected


def test_time_of_a_clustering_is_in_the_log(cfg, caplog):
    cfg.SOLVER.MAX_ITER = 1
    with caplog.at_level("INFO", logger="detlib"):
        DefaultTrainer(cfg).train()
    assert re.search(r"Clustered 12 samples in \d+\.\d s: 3 clusters have members, the largest one \d+\.", caplog.text)


def test_other_models_have_no_such_hook(cfg):
    assert build_clustering_hook(cfg, nn.Linear(1, 1)) is None


def test_dark_and_bright_images_are_the_two_clusters(cfg):
    for i, sample in enumerate(DatasetCatalog.get("clustered")):
        Image.fromarray(np.full((20, 20, 3), 250 if i % 2 else 5, dtype=np.uint8)).save(sample["file_name"])
    cfg.MODEL.SSL.HEAD.NUM_CLASSES = 2
    cfg.SOLVER.BASE_LR = 0.05
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.MAX_ITER = 6  # 2 epochs
    trainer = DefaultTrainer(cfg)
    trainer.train()
    labels = trainer.model.memory_bank.label_bank
    assert labels.tolist() in ([0, 1] * 6, [1, 0] * 6)
