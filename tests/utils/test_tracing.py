import pytest
import torch
from torch import fx, nn

from detlib.utils.tracing import assert_fx_safe, is_fx_tracing, is_fx_tracing_legacy


class Checked(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append((is_fx_tracing(), is_fx_tracing_legacy()))
        assert_fx_safe(x.shape[0] == 2, "expected two rows")
        return x + 1


def test_tracing_is_noticed_and_only_while_it_lasts():
    model = Checked()
    model(torch.zeros(2, 3))
    fx.symbolic_trace(model)
    model(torch.zeros(2, 3))
    assert model.seen == [(False, False), (True, True), (False, False)]


def test_check_fails_with_its_message():
    with pytest.raises(AssertionError, match="expected two rows"):
        Checked()(torch.zeros(3, 3))


def test_check_of_traced_values_becomes_part_of_the_graph():
    traced = fx.symbolic_trace(Checked())
    torch.testing.assert_close(traced(torch.zeros(2, 3)), torch.ones(2, 3))
    with pytest.raises(AssertionError, match="expected two rows"):
        traced(torch.zeros(3, 3))
