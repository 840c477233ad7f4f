import logging

import pytest
import torch
from torch import nn

from detlib.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from detlib.evaluation.progress import InferenceProgress


class Count(DatasetEvaluator):
    """Counts images and notes whether gradients were on."""

    def __init__(self, task="count"):
        self.task = task

    def reset(self):
        self.images = []
        self.gradients = []

    def process(self, inputs, outputs):
        self.images += outputs
        self.gradients.append(torch.is_grad_enabled())

    def evaluate(self):
        return {self.task: {"images": len(self.images)}}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.modes = []

    def forward(self, inputs):
        self.modes.append(self.training)
        return inputs


def batches(*sizes):
    return [[{}] * size for size in sizes]


def test_every_image_is_evaluated_without_gradients():
    evaluator = Count()
    assert inference_on_dataset(Model(), batches(2, 2, 1), evaluator) == {"count": {"images": 5}}
    assert evaluator.gradients == [False] * 3


def test_model_is_in_evaluation_mode_and_back_afterwards():
    model = Model()
    model.norm.eval()
    inference_on_dataset(model, batches(1), None)
    assert model.modes == [False]
    assert model.training
    assert not model.norm.training


def test_modes_come_back_after_an_error():
    model = Model()
    with pytest.raises(ZeroDivisionError), inference_context(model):
        raise ZeroDivisionError
    assert model.training


def test_empty_loader_gives_the_results_of_no_images():
    assert inference_on_dataset(Model(), [], Count()) == {"count": {"images": 0}}


def test_loader_of_unknown_length_is_accepted():
    assert inference_on_dataset(Model(), (batch for batch in batches(1, 1)), Count()) == {"count": {"images": 2}}


def test_plain_function_is_accepted_as_model():
    assert inference_on_dataset(lambda inputs: inputs, batches(3), [Count()]) == {"count": {"images": 3}}


def test_without_evaluator_the_result_is_empty():
    assert inference_on_dataset(Model(), batches(1), None) == {}


def test_callbacks_are_called_in_order():
    calls = []
    names = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {name: lambda name=name: calls.append(name) for name in names}
    inference_on_dataset(Model(), batches(1, 1), None, callbacks)
    assert calls == ["on_start", *["before_inference", "after_inference"] * 2, "on_end"]


def test_results_of_several_evaluators_are_put_together():
    both = DatasetEvaluators([Count("a"), Count("b")])
    assert inference_on_dataset(Model(), batches(2), both) == {"a": {"images": 2}, "b": {"images": 2}}


def test_evaluators_that_report_the_same_task_are_refused():
    with pytest.raises(ValueError, match="'a'"):
        inference_on_dataset(Model(), batches(1), [Count("a"), Count("a")])


def test_summary_tells_the_time_of_each_stage(caplog):
    with caplog.at_level(logging.INFO):
        inference_on_dataset(Model(), batches(1, 1), None)
    assert "2 images" in caplog.text
    assert "milliseconds per image: data" in caplog.text


def test_warm_up_is_left_out_of_the_average_times():
    with InferenceProgress(num_batches=3, num_warmup=2) as progress:
        for _, seconds in zip(progress.timed_batches(range(3)), (100.0, 100.0, 1.0), strict=True):
            progress.step(10, model=seconds)
    assert progress.seconds["model"] == 1
    assert progress.timed_images == 10
    assert "model 100.0" in progress.summary(1)


def test_run_shorter_than_the_warm_up_still_times_its_last_batch():
    with InferenceProgress(num_batches=1, num_warmup=5) as progress:
        for _ in progress.timed_batches(range(1)):
            progress.step(1, model=1.0)
    assert progress.timed_images == 1


def test_log_lines_tell_the_time_left(caplog, monkeypatch):
    monkeypatch.setattr("detlib.evaluation.progress.SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level(logging.INFO), InferenceProgress(num_batches=2, num_warmup=0) as progress:
        for _ in progress.timed_batches(range(2)):
            progress.step(1, model=1.0)
    assert "Inference: 1 of 2 batches done" in caplog.messages[0]
    assert "ETA 0:00:00" in caplog.messages[1]
