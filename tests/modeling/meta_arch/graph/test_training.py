"""Graphs under the trainer: what nodes say of rates, weights, freezing and drawing, and how training goes on."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detlib.config import get_cfg
from detlib.engine import DefaultPredictor, DefaultTrainer, HookBase, create_ddp_model, hooks, launch
from detlib.layers import ShapeSpec
from detlib.modeling import build_model
from detlib.solver import build_optimizer
from detlib.utils import comm

ROOT = Path(__file__).parents[4]

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="processes share the CPU only where no GPU is")


class Net(nn.Module):
    """A convolution and its norm."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def output_shape(self):
        return {"map": ShapeSpec(channels=self.conv.out_channels, stride=1)}

    def forward(self, data):
        return {"features": [self.norm(self.conv(data["image"]))], "strides": [1]}


class Head(nn.Module):
    """A linear classifier."""

    def __init__(self, in_planes, node_name, num_classes=3):
        super().__init__()
        self.fc = nn.Linear(in_planes, num_classes)
        self.node_name = node_name

    def forward(self, data):
        logits = self.fc(data["features"][0].mean(dim=(2, 3)))
        if self.training:
            return {f"{self.node_name}.loss": F.cross_entropy(logits, data["label"])}
        return {f"{self.node_name}_scores": logits.softmax(dim=1)}


NET = {"name": "net", "type": f"{__name__}.Net"}
HEAD = {"name": "head", "type": f"{__name__}.Head", "prev": "net"}


class Trainer(DefaultTrainer):
    """Trains on images of noise; the batch of an iteration does not depend on where the training began."""

    first_batch = 0

    @classmethod
    def build_train_loader(cls, cfg):
        index = cls.first_batch
        while True:
            yield batch(index)
            index += 1

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        raise NotImplementedError


def batch(index, task=None):
    generator = torch.Generator().manual_seed(index)
    images = torch.randint(0, 256, (2, 3, 8, 12), generator=generator, dtype=torch.uint8)
    more = {} if task is None else {"task": task}
    return [{"image": image, "label": label, **more} for label, image in enumerate(images)]


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path / "output", NET, HEAD)


def config(output_dir, *nodes):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "ModuleGraph", "cpu"
    cfg.MODEL.MODULE_GRAPH.NET = [dict(node) for node in nodes]
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR = 6, (4,), 0, 0.1
    cfg.OUTPUT_DIR, cfg.SEED = str(output_dir), 1
    return cfg


def with_node(cfg, name, **keys):
    """The config with more keys in one node."""
    cfg = cfg.clone()
    cfg.MODEL.MODULE_GRAPH.NET = [{**n, **keys} if n["name"] == name else n for n in cfg.MODEL.MODULE_GRAPH.NET]
    return cfg


def trained(cfg, *own_hooks):
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks(list(own_hooks))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    after = trainer.model.state_dict()
    return trainer, {name for name, value in after.items() if not torch.equal(value, before[name])}


class Losses(HookBase):
    def __init__(self):
        self.values = []

    def after_step(self):
        self.values.append(self.trainer.storage.latest()["total_loss"][0])


def test_rate_of_a_node_is_that_of_the_others_times_its_factor(cfg):
    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    model = build_model(with_node(cfg, "net", lr_factor=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    assert {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]} == pytest.approx(
        {
            "nodes.net.conv.weight": 0.05,
            "nodes.net.conv.bias": 0.1,
            "nodes.net.norm.weight": 0.05,
            "nodes.net.norm.bias": 0.1,
            "nodes.head.fc.weight": 0.1,
            "nodes.head.fc.bias": 0.2,
        }
    )


def test_node_with_factor_0_learns_nothing_but_statistics(cfg):
    _, changed = trained(with_node(cfg, "net", lr_factor=0))
    assert changed == {
        "nodes.net.norm.running_mean",
        "nodes.net.norm.running_var",
        "nodes.net.norm.num_batches_tracked",
        "nodes.head.fc.weight",
        "nodes.head.fc.bias",
    }


@pytest.mark.parametrize("amp", [False, True])
def test_frozen_node_stays_as_it_is_through_training_and_precise_bn(cfg, amp):
    cfg.SOLVER.AMP.ENABLED = amp
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER, cfg.TEST.EVAL_PERIOD = True, 2, 2
    trainer, changed = trained(with_node(cfg, "net", freeze=True))
    assert changed == {"nodes.head.fc.weight", "nodes.head.fc.bias"}
    net = trainer.model.nodes["net"]
    assert trainer.model.train().training
    assert not any(module.training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    in_optimizer = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in in_optimizer} == {id(p) for p in trainer.model.nodes["head"].parameters()}


def test_precise_bn_sets_the_statistics_of_nodes_that_learn(cfg):
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 2
    _, changed = trained(cfg)
    assert "nodes.net.norm.running_mean" in changed


def test_frozen_node_without_weights_is_warned_of_with_advice_for_graphs(cfg, caplog):
    Trainer(with_node(cfg, "net", freeze=True)).resume_or_load(resume=False)
    (warning,) = [record.getMessage() for record in caplog.records if "they stay random" in record.getMessage()]
    assert warning.startswith("4 parameters are frozen, but MODEL.WEIGHTS is empty")
    assert "nodes.net.conv.weight" in warning
    assert "node weights of its own" in warning


@pytest.fixture
def net_file(tmp_path):
    """Weights of another Net, all of which are 0.25, under the names of a detector."""
    weights = {f"backbone.{name}": torch.full_like(value, 0.25) for name, value in Net().state_dict().items()}
    torch.save({"model": weights}, tmp_path / "detector.pth")
    return str(tmp_path / "detector.pth")


def test_frozen_node_with_weights_of_its_own_is_not_warned_of(cfg, net_file, caplog):
    trainer = Trainer(with_node(cfg, "net", freeze=True, weights=net_file))
    trainer.resume_or_load(resume=False)
    assert (trainer.model.nodes["net"].conv.weight == 0.25).all()
    assert "they stay random" not in caplog.text


def test_predictor_takes_trained_weights_and_needs_no_files_of_nodes(cfg, net_file, tmp_path):
    trained(with_node(cfg, "net", weights=net_file))
    final = with_node(cfg, "net", weights=str(tmp_path / "deleted.pth"))
    final.MODEL.WEIGHTS = str(tmp_path / "output" / "model_final.pth")
    model = DefaultPredictor(final).model
    saved = torch.load(final.MODEL.WEIGHTS, weights_only=True)["model"]
    assert torch.equal(model.nodes["net"].conv.weight, saved["nodes.net.conv.weight"])
    assert not (model.nodes["net"].conv.weight == 0.25).all()  # It went on from there.


def test_predictor_without_trained_weights_takes_those_of_nodes(cfg, net_file):
    model = DefaultPredictor(with_node(cfg, "net", weights=net_file)).model
    assert (model.nodes["net"].conv.weight == 0.25).all()


def test_interrupted_training_ends_where_an_uninterrupted_one_does(cfg, net_file, tmp_path, monkeypatch):
    cfg = with_node(cfg, "net", weights=net_file, lr_factor=0.5)
    whole, _ = trained(cfg)
    cfg.OUTPUT_DIR, cfg.SOLVER.CHECKPOINT_PERIOD = str(tmp_path / "again"), 3

    class Interrupt(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(cfg, Interrupt())
    cfg = with_node(cfg, "net", weights=str(tmp_path / "deleted.pth"))
    monkeypatch.setattr(Trainer, "first_batch", 3)
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, msg=name)
    assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


@pytest.fixture
def retinanet_cfg(tiny_cfg):
    """A backbone and a RetinaNet as nodes."""
    tiny_cfg.MODEL.META_ARCHITECTURE = "ModuleGraph"
    tiny_cfg.MODEL.MODULE_GRAPH.NET = [
        {"name": "body", "type": "backbone"},
        {"name": "boxes", "type": "retinanet_head", "prev": "body", "kwargs": {"num_classes": 2}},
    ]
    return tiny_cfg


def test_loss_normaliser_of_a_retinanet_node_survives_a_resume(retinanet_cfg, sample, tmp_path):
    cfg = retinanet_cfg
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = str(tmp_path), 1, (), 0

    class BoxTrainer(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return iter(lambda: [sample(64, 64, [[8, 8, 40, 40]], [1])], None)

    first = BoxTrainer(cfg)
    first.train()
    second = BoxTrainer(cfg)
    normaliser = "nodes.boxes.loss_normalizer"
    initial = second.state_dict()["_trainer"]["training_state"][normaliser]
    second.resume_or_load(resume=True)
    trained_value = first.state_dict()["_trainer"]["training_state"][normaliser]
    assert second.state_dict()["_trainer"]["training_state"][normaliser] == trained_value
    assert trained_value != initial


@pytest.mark.parametrize(
    ("graph", "weight", "num_outputs"),
    [("cfg", "nodes.head.fc.weight", 7), ("retinanet_cfg", "nodes.boxes.head.cls_score.weight", 2 * 3 * 7)],
)
def test_dumped_config_builds_the_same_model(request, tmp_path, graph, weight, num_outputs):
    cfg = request.getfixturevalue(graph)
    cfg.MODEL.MODULE_GRAPH.OVERRIDES = {cfg.MODEL.MODULE_GRAPH.NET[-1]["name"]: {"num_classes": 7}}
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "config.yaml"))
    shapes = [{n: x.shape for n, x in build_model(c).state_dict().items()} for c in (cfg, again)]
    assert shapes[0] == shapes[1]
    assert shapes[1][weight][0] == num_outputs


def test_tapped_modules_are_drawn_and_change_nothing(cfg, tmp_path):
    plain, drawn = Losses(), Losses()
    trained(cfg, plain)
    cfg = with_node(with_node(cfg, "net", tap=["conv"]), "head", tap=True)
    cfg.VIS_PERIOD, cfg.OUTPUT_DIR = 3, str(tmp_path / "drawn")
    trained(cfg, drawn)
    assert drawn.values == plain.values
    names = {path.name for path in (tmp_path / "drawn" / "features").iterdir()}
    assert names == {f"nodes.net.conv.output_000000{i}.png" for i in (2, 5)}


def test_hook_for_taps_is_there_only_when_something_is_tapped(cfg):
    def has_hook(cfg):
        return any(isinstance(hook, hooks.VisualizeFeatures) for hook in Trainer(cfg).build_hooks())

    tapped = with_node(cfg, "net", tap=True)
    assert not has_hook(tapped)
    cfg.VIS_PERIOD = tapped.VIS_PERIOD = 2
    assert has_hook(tapped)
    assert not has_hook(cfg)


class TrainerOfTwoTasks(Trainer):
    """In each iteration, the processes have batches of different tasks."""

    @classmethod
    def build_train_loader(cls, cfg):
        index = comm.get_rank()
        while True:
            yield batch(index, task="ab"[index % 2])
            index += 1


def train_two_tasks(output_dir, with_plain_tool):
    cfg = config(output_dir, NET, {**HEAD, "name": "a", "tasks": ["a"]}, {**HEAD, "name": "b", "tasks": ["b"]})
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 2, ()
    if with_plain_tool:
        spec = importlib.util.spec_from_file_location("plain_train_net", ROOT / "tools" / "plain_train_net.py")
        tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        tool.build_detection_train_loader = TrainerOfTwoTasks.build_train_loader
        model = create_ddp_model(build_model(cfg), broadcast_buffers=False)
        tool.do_train(cfg, model)
    else:
        trainer = TrainerOfTwoTasks(cfg)
        trainer.train()
        model = trainer.model
    torch.save(model.module.nodes.state_dict(), f"{output_dir}/weights{comm.get_rank()}.pth")


@needs_no_gpu
@pytest.mark.parametrize("with_plain_tool", [False, True])
def test_tasks_train_in_two_processes(tmp_path, with_plain_tool):
    launch(train_two_tasks, 2, args=(str(tmp_path), with_plain_tool))
    first, second = (torch.load(tmp_path / f"weights{rank}.pth", weights_only=True) for rank in (0, 1))
    for name in ("net.conv.weight", "a.fc.weight", "b.fc.weight"):
        assert torch.equal(first[name], second[name])
    metrics = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    # Means over the processes and both iterations; in each, the other process has the other loss.
    assert metrics["total_loss"] == pytest.approx(metrics["a.loss"] + metrics["b.loss"])
