import pytest
import torch

from detlib.utils.torch_version_utils import min_torch_version


@pytest.mark.parametrize(("wanted", "enough"), [("1.13", True), ("2.9", True), ("2.14.1", True), ("2.15", False)])
def test_versions_compare_as_numbers(monkeypatch, wanted, enough):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.14.1+cpu"))
    assert min_torch_version(wanted) is enough
