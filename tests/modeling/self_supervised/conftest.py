import pytest
import torch

from detlib.config import CfgNode, get_cfg


@pytest.fixture
def ssl_cfg():
    """Makes a config of an algorithm on a narrow ResNet-18 for 32-pixel images: ``ssl_cfg("MoCo", NECK={...})``."""

    def make(name, **ssl):
        cfg = get_cfg()
        cfg.MODEL.META_ARCHITECTURE = name
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.merge_from_other_cfg(
            CfgNode({"BACKBONE": {"NAME": "ResNet_CIFAR", "DEPTH": 18, "BASE_CHANNELS": 8, "FREEZE_AT": 0}, "SSL": ssl})
        )
        cfg.SOLVER.MAX_ITER = 100
        return cfg

    return make


@pytest.fixture
def samples():
    """Makes a batch: ``samples(4)`` has 4 samples of 2 random views of 32 x 32 pixels."""

    def make(count, sizes=(32, 32), seed=0):
        generator = torch.Generator().manual_seed(seed)
        return [
            {"views": [torch.rand(3, s, s, generator=generator) * 255 for s in sizes], "sample_idx": i}
            for i in range(count)
        ]

    return make
