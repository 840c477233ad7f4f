"""Some faults, once each; `make faults` has all, several times."""

import random

import pytest

from tests.faults.faults import FAULTS, Case
from tests.faults.training import Run, write_dataset


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    run = Run(write_dataset(folder), folder / "undisturbed")
    assert run.start() == 0, run.output
    return run


@pytest.mark.parametrize(
    "name",
    [
        "SIGKILL in a step",
        "SIGKILL in a checkpoint's write",
        "SIGTERM",
        "truncated last checkpoint",
    ],
)
def test_training_survives(undisturbed, tmp_path, name):
    FAULTS[name](Case(undisturbed, Run(undisturbed.config, tmp_path / "run"), random.Random(name)))
