import itertools

import pytest
import torch
from torch import nn

from detlib.data import build_batch_data_loader
from detlib.data.samplers import TrainingSampler
from detlib.engine.training_state import ProcessStates
from detlib.utils import comm

SAMPLES = [{"id": i} for i in range(8)]


def loader(seed=0):
    return build_batch_data_loader(SAMPLES, TrainingSampler(8, seed=seed), None, single_gpu_batch_size=2, seed=seed)


def take(batches, n):
    return [[sample["id"] for sample in batch] for batch in itertools.islice(batches, n)]


def test_random_states_come_back_when_asked_for():
    states = ProcessStates(nn.Identity(), [])
    saved = states.state_dict()
    expected = torch.rand(2)
    states.load_state_dict(saved)
    torch.rand(5)  # What is drawn between loading and the first step does not count.
    states.restore_random_states()
    assert torch.rand(2).equal(expected)
    states.restore_random_states()
    assert not torch.rand(2).equal(expected)


@pytest.fixture
def two_processes(monkeypatch):
    """The process of rank 1 of two, which gathers its own state twice."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    monkeypatch.setattr(comm, "gather", lambda state: [{**state, "buffers": {}, "data": {}}, state])


def test_each_process_gets_its_own_state(two_processes):
    model = nn.BatchNorm1d(1)
    model.running_mean.fill_(3)
    data = loader()
    expected = take(loader(), 5)
    take(data, 2)
    states = ProcessStates(model, data)
    states.gather()
    saved = states.state_dict()
    resumed = ProcessStates(nn.BatchNorm1d(1), loader(seed=1))
    resumed.load_state_dict(saved)
    assert resumed.model.running_mean.item() == 3
    assert take(resumed.data_loader, 3) == expected[2:]


def test_what_was_gathered_before_the_last_step_does_not_count(two_processes):
    states = ProcessStates(nn.Identity(), loader())
    states.gather()
    assert len(states.state_dict()["processes"]) == 2
    states.forget_gathered()
    assert len(states.state_dict()["processes"]) == 1


def test_another_number_of_processes_goes_on_after_as_many_samples(caplog):
    state = {"random": {}, "data": {**loader().state_dict(), "position": 4, "waiting": (1,)}, "buffers": {}}
    states = ProcessStates(nn.Identity(), loader(seed=5))
    states.load_state_dict({"processes": [state, state]})
    assert "states of 2 processes, but there are 1 now" in caplog.text
    assert take(states.data_loader, 1) == take(loader(), 5)[4:]
