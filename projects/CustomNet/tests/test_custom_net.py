"""CustomNet and CustomHead: a classifier wired in YAML, trained and evaluated like any other."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.engine import DefaultTrainer
from detlib.evaluation import build_evaluator
from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.projects.custom_net import CustomHead, CustomNet
from detlib.utils.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"

# The graph of the specification: 3 layers, 21 classes.
GRAPH = """
CUSTOM_IMPORTS: {IMPORTS: ["detlib.projects.custom_net"]}
MODEL:
  META_ARCHITECTURE: ModuleGraph
  DEVICE: cpu
  MODULE_GRAPH:
    NET:
      - name: backbone
        type: custom_net
        kwargs: {depth: 3, out_planes: [8, 16, 32]}
      - name: head
        prev: backbone
        type: custom_head
        kwargs: {num_classes: 21}
"""


def read(path, **changes):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.merge_from_list([x for pair in changes.items() for x in pair])
    return cfg


@pytest.fixture
def graph(tmp_path):
    """Builds the graph above, with changes of the config."""
    (tmp_path / "custom_net.yaml").write_text(GRAPH)

    def build(**changes):
        torch.manual_seed(0)
        return build_model(read(tmp_path / "custom_net.yaml", **changes))

    return build


def batch(num_images=16, num_classes=21):
    return [{"image": torch.rand(3, 12, 10) * 255, "label": i % num_classes} for i in range(num_images)]


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_graph_has_6725_parameters_and_the_head_knows_its_channels(graph):
    model = graph()
    assert [count(layer) for layer in model.nodes.backbone.body[::2]] == [224, 1168, 4640]
    assert count(model.nodes.head) == 693  # 32 * 21 + 21
    assert count(model) == 6725
    assert model.nodes.head.fc.in_features == 32


def test_each_convolution_has_a_relu_of_its_own(graph):
    kinds = [type(layer) for layer in graph().nodes.backbone.body]
    assert kinds == [nn.Conv2d, nn.ReLU] * 3


def test_loss_of_a_head_of_zeros_is_the_logarithm_of_the_number_of_classes(graph):
    model = graph()
    nn.init.zeros_(model.nodes.head.fc.weight)
    nn.init.zeros_(model.nodes.head.fc.bias)
    (loss,) = model.train()(batch()).values()
    assert loss.item() == pytest.approx(math.log(21))


def test_loss_teaches_all_layers(graph):
    model = graph()
    losses = model.train()(batch())
    assert list(losses) == ["head.ce_loss"]
    losses["head.ce_loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_prediction_of_an_image_is_its_scores_and_the_best_class(graph):
    results = graph().eval()([{"image": image["image"]} for image in batch(3)])
    assert len(results) == 3
    for result in results:
        assert result["pred_score"].shape == (21,) and result["pred_score"].sum().item() == pytest.approx(1)
        assert result["pred_label"] == result["pred_score"].argmax()


def test_layers_keep_the_resolution_unless_strides_say_otherwise():
    net = CustomNet(depth=2, out_planes=[4, 5])
    assert net({"image": torch.zeros(1, 3, 6, 8)})["features"][0].shape == (1, 5, 6, 8)
    assert net.output_shape() == {"conv": ShapeSpec(channels=5, stride=1)}
    net = CustomNet(depth=2, out_planes=[4, 5], layer_strides=[2, 2])
    data = net({"image": torch.zeros(1, 3, 6, 8)})
    assert data["features"][0].shape == (1, 5, 2, 2) and data["strides"] == [4]
    assert net.output_shape() == {"conv": ShapeSpec(channels=5, stride=4)}


def test_wrong_number_of_widths_is_an_error_of_the_node(graph):
    with pytest.raises(ConfigError, match=r"node 'backbone'.*depth is 3, so out_planes .* have 1 and 3"):
        graph(**{"MODEL.MODULE_GRAPH.OVERRIDES": {"backbone": {"out_planes": [256]}}})


def test_head_without_prev_says_what_it_needs(tmp_path):
    (tmp_path / "custom_net.yaml").write_text(GRAPH.replace("        prev: backbone\n", ""))
    with pytest.raises(ConfigError, match="node 'head': CustomHead needs in_planes"):
        build_model(read(tmp_path / "custom_net.yaml"))


def test_loss_has_the_name_of_the_node():
    head = CustomHead(in_planes=2, num_classes=3, node_name="kind")
    assert list(head({"features": [torch.zeros(2, 2, 1, 1)], "label": torch.tensor([0, 2])})) == ["kind.ce_loss"]


@pytest.fixture
def two_colors(tmp_path):
    """Folders of black and of white images, declared as datasets of a config."""
    for name, value in (("black", 0), ("white", 255)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    yield [{"NAME": "two_colors", "TYPE": "image_folder", "IMAGES": str(tmp_path / "images")}]
    DatasetCatalog.remove("two_colors")
    MetadataCatalog.remove("two_colors")


def test_trained_from_yaml_it_tells_black_from_white(two_colors, tmp_path):
    cfg = read(
        CONFIGS / "custom_net_trashnet.yaml",
        **{
            "DATASETS.REGISTER": two_colors,
            "DATASETS.TRAIN": ["two_colors"],
            "DATASETS.TEST": ["two_colors"],
            "MODEL.MODULE_GRAPH.OVERRIDES": {
                "backbone": {"depth": 1, "out_planes": [4], "layer_strides": [2]},
                "head": {"num_classes": 2},
            },
            "INPUT.AUGMENTATIONS_TRAIN": [],
            "INPUT.AUGMENTATIONS_TEST": [],
            "DATALOADER.NUM_WORKERS": 0,
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.BASE_LR": 0.05,
            "SOLVER.WARMUP_ITERS": 0,
            "SOLVER.MAX_ITER": 10,
            "TEST.EVAL_PERIOD": 0,
            "OUTPUT_DIR": str(tmp_path / "output"),
        },
    )
    torch.manual_seed(0)
    trainer = DefaultTrainer(cfg)
    trainer.train()
    result = trainer.test(cfg, trainer.model, [build_evaluator(cfg, "two_colors")])["classification"]
    assert result["top1"] == 100 and result["f1-black"] == 100
    lines = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").read_text().splitlines()]
    assert any("head.ce_loss" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "channels", "stride"), [("custom_net_trashnet", 128, 8), ("custom_net_plain_trashnet", 64, 1)]
)
def test_shipped_config_builds_a_classifier_of_6_classes(name, channels, stride):
    with torch.device("meta"):
        model = build_model(read(CONFIGS / f"{name}.yaml", **{"MODEL.DEVICE": "meta"}))
    assert model.nodes.backbone.output_shape() == {"conv": ShapeSpec(channels=channels, stride=stride)}
    assert (model.nodes.head.fc.in_features, model.nodes.head.fc.out_features) == (channels, 6)
