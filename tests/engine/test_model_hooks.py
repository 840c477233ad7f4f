import json
import logging

import numpy as np
import pytest
import torch
from torch import nn

from detlib.engine import HookBase, hooks
from detlib.structures import Boxes, Instances
from detlib.utils.events import get_event_storage

from .toy import toy_trainer


class NormModel(nn.Module):
    training_state_buffers = ("num_calls",)

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.register_buffer("num_calls", torch.tensor(0), persistent=False)

    def forward(self, batch):
        self.num_calls += 1
        get_event_storage().put_scalar("seen", 1.0)
        return {"loss": self.norm(batch).sum()}


def test_precise_bn_averages_over_batches_and_changes_nothing_else():
    model = NormModel()
    batches = [torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [6.0]])]
    hook = hooks.PreciseBN(0, model, batches, num_iter=2)
    hook.update_stats()
    # Means 1 and 5; of all four values, the mean is 3 and the mean square 14.
    assert model.norm.running_mean.item() == pytest.approx(3.0)
    assert model.norm.running_var.item() == pytest.approx(14.0 - 9.0)
    assert model.num_calls == 0


class DrawnBatches:
    """Batches that are drawn, as augmented images are, without end."""

    def __iter__(self):
        while True:
            yield torch.rand(2, 1)


def test_precise_bn_finds_the_same_in_a_training_that_was_resumed():
    means = []
    for start in (0, 2):
        torch.manual_seed(start)
        model, trainer = NormModel(), toy_trainer(1)
        trainer.register_hooks([hooks.PreciseBN(2, model, DrawnBatches(), num_iter=2)])
        trainer.train(start, 4)
        means.append(model.norm.running_mean.item())
    assert means[0] == means[1]


def test_precise_bn_keeps_the_random_numbers_of_the_training():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    hooks.PreciseBN(0, NormModel(), DrawnBatches(), num_iter=2).update_stats()
    assert torch.rand(1) == expected


def test_precise_bn_runs_after_the_last_iteration():
    trainer, model = toy_trainer(1), NormModel()
    trainer.register_hooks([hooks.PreciseBN(0, model, [torch.tensor([[4.0], [6.0]])], num_iter=1)])
    trainer.train(0, 2)
    assert model.norm.running_mean.item() == pytest.approx(5.0)


def test_precise_bn_leaves_models_without_norm_in_training_mode_alone():
    model = NormModel()
    model.norm.eval()
    hooks.PreciseBN(0, model, [torch.tensor([[4.0], [6.0]])], num_iter=1).update_stats()
    assert model.norm.running_mean.item() == 0


@pytest.mark.parametrize("save_tensorboard", [False, True])
def test_torch_profiler_writes_a_table_and_a_trace_of_selected_iterations(tmp_path, save_tensorboard):
    trainer = toy_trainer(1)
    profiler = hooks.TorchProfiler(lambda trainer: trainer.iter == 1, str(tmp_path), save_tensorboard=save_tensorboard)
    trainer.register_hooks([profiler])
    trainer.train(0, 3)
    assert "aten::mul" in (tmp_path / "profiler-trace-iter1.txt").read_text()
    traces = list((tmp_path / "log").glob("*.json*")) if save_tensorboard else list(tmp_path.glob("*.json"))
    assert len(traces) == 1
    assert json.loads(traces[0].read_text())["traceEvents"]


def test_autograd_profiler_writes_a_table(tmp_path):
    trainer = toy_trainer(1)
    trainer.register_hooks([hooks.AutogradProfiler(lambda trainer: True, str(tmp_path), use_cuda=False)])
    trainer.train(0, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"profiler-trace-iter0.txt", "profiler-trace-iter0.json"}


class DetectorOfOneBox(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.norm = nn.BatchNorm2d(1).eval()

    def forward(self, batch):
        if self.training:
            return {"loss": self.weight * 1.0}
        assert "height" not in batch[0]
        found = Instances((32, 48), pred_boxes=Boxes([[8.0, 8, 40, 24]]), scores=torch.ones(1))
        found.pred_classes = torch.zeros(1, dtype=torch.long)
        torch.rand(1)  # Some models draw, also when they predict.
        return [{"instances": found}]


def drawings_of(sample, image_format="BGR", model=None):
    """What the hook puts into the storage, by name, and the model afterwards."""
    model = DetectorOfOneBox() if model is None else model
    trainer = toy_trainer(1)
    trainer.model, trainer.data_loader = model, iter(lambda: [sample], None)
    seen = []

    class Keep(HookBase):
        def after_step(self):
            seen.extend((name, image) for name, image, _ in self.trainer.storage._images)
            self.trainer.storage.clear_images()

    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model.norm.eval()
    trainer.register_hooks([hooks.VisualizePredictions(2, image_format), Keep()])
    trainer.train(0, 3)
    assert len(seen) == len(dict(seen))
    return dict(seen), model


def drawing_of(sample, image_format="BGR", model=None):
    """The one drawing, and the model."""
    drawings, model = drawings_of(sample, image_format, model)
    (drawing,) = drawings.values()
    return drawing, model


def test_visualize_predictions_draws_truth_beside_predictions_every_period():
    truth = Instances((32, 48), gt_boxes=Boxes([[2.0, 2, 20, 20]]), gt_classes=torch.tensor([0]))
    blue = torch.zeros(3, 32, 48, dtype=torch.uint8)
    blue[0] = 255
    before = torch.get_rng_state()
    drawing, model = drawing_of({"image": blue, "instances": truth, "height": 320, "width": 480})
    assert torch.equal(torch.get_rng_state(), before)
    assert drawing.shape == (3, 32, 96)
    assert drawing.dtype == np.uint8
    assert drawing[:, 31, 0].tolist() == [0, 0, 255]  # BGR in, RGB out
    left, right = drawing[:, :, :48], drawing[:, :, 48:]
    assert not np.array_equal(left, right)
    assert model.training
    assert not model.norm.training  # a part that was in evaluation mode stays there


def test_visualize_predictions_draws_the_views_of_self_supervised_training():
    views = [torch.zeros(3, size, size, dtype=torch.uint8) for size in (32, 16)]
    views[0][0] = 255
    drawings, _ = drawings_of({"views": views})
    assert {name: drawing.shape for name, drawing in drawings.items()} == {"view 0": (3, 32, 32), "view 1": (3, 16, 16)}
    assert drawings["view 0"][:, 0, 0].tolist() == [0, 0, 255]  # BGR in, RGB out


def test_visualize_predictions_works_without_annotations_and_without_objects():
    image = torch.zeros(3, 32, 48)
    none = Instances((32, 48), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0, dtype=torch.long))
    assert drawing_of({"image": image}, "RGB")[0].shape == (3, 32, 96)
    assert drawing_of({"image": image, "instances": none}, "RGB")[0].shape == (3, 32, 96)


class ClassifierOfThree(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.norm = nn.BatchNorm2d(1).eval()

    def forward(self, batch):
        if self.training:
            return {"loss": self.weight * 1.0}
        return [{"pred_score": torch.tensor([0.1, 0.7, 0.2]), "pred_label": 1} for _ in batch]


@pytest.mark.parametrize("labels", [{"label": 1}, {"labels": [0, 2]}, {}])
def test_visualize_predictions_enlarges_the_images_of_classifiers_and_writes_their_classes(labels):
    sample = {"image": torch.full((3, 32, 32), 128, dtype=torch.uint8), **labels}
    drawing, _ = drawing_of(sample, "RGB", ClassifierOfThree())
    assert drawing.shape == (3, 384, 2 * 384)
    left, right = drawing[:, :, :384], drawing[:, :, 384:]
    assert (left != 128).any() == bool(labels)
    assert (right != 128).any()
    assert (drawing[:, 200:] == 128).all()  # The lines are in the upper half.


class Spread(HookBase):
    """Logs a spread for each iteration."""

    def __init__(self, *values):
        self.values = values

    def after_step(self):
        self.trainer.storage.put_scalar("embedding_spread", self.values[self.trainer.iter])


@pytest.mark.parametrize(
    ("spreads", "num_warnings"),
    [
        ((0.9, 0.9, 0.02, 0.02, 0.01, 0.01), 1),
        ((0.01, 0.9, 0.9, 0.01, 0.9, 0.9), 0),  # Medians of two are 0.455 and more.
    ],
)
def test_small_spread_of_embeddings_is_warned_of_once_if_it_lasts(caplog, spreads, num_warnings):
    trainer = toy_trainer(1)
    trainer.register_hooks([Spread(*spreads), hooks.CollapseWarning(period=2)])
    with caplog.at_level(logging.WARNING):
        trainer.train(0, len(spreads))
    assert caplog.text.count("embedding_spread was about 0.02 in the last 2 iterations") == num_warnings
    assert caplog.text.count("embedding_spread") == num_warnings
