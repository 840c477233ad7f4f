import pytest
import torch

from detlib.modeling.backbone.utils import (
    Mlp,
    PatchEmbed,
    add_decomposed_rel_pos,
    attention_with_rel_pos,
    get_abs_pos,
    get_rel_pos,
    window_partition,
    window_unpartition,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_windows_are_cut_row_by_row_after_padding():
    x = torch.arange(1.0, 7.0).view(1, 2, 3, 1)
    windows, padded = window_partition(x, 2)
    assert padded == (2, 4)
    assert windows.flatten(1).tolist() == [[1, 2, 4, 5], [3, 0, 6, 0]]


@pytest.mark.parametrize("hw", [(4, 6), (5, 7), (1, 9)])
def test_unpartition_undoes_partition(hw):
    x = torch.randn(2, *hw, 3)
    windows, padded = window_partition(x, 3)
    torch.testing.assert_close(window_unpartition(windows, 3, padded, hw), x)


def test_relative_positions_are_looked_up_by_distance():
    table = torch.arange(5.0)[:, None]  # Distances -2 to 2.
    assert get_rel_pos(3, 3, table)[..., 0].tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


def test_fewer_keys_than_queries_lie_further_apart():
    table = torch.arange(7.0)[:, None]  # Distances -3 to 3 of 4 queries.
    # Keys are at 0 and 2.
    assert get_rel_pos(4, 2, table)[..., 0].tolist() == [[2, 0], [3, 1], [4, 2], [5, 3]]


def test_relative_positions_of_another_size_are_interpolated():
    table = torch.arange(3.0)[:, None]
    found = get_rel_pos(3, 3, table)[:, :, 0]
    assert found[2, 0] > found[1, 0] > found[0, 0] > found[0, 1] > found[0, 2]
    assert found[0, 0] == 1


def reference_attention(q, k, v, rel_pos_h, rel_pos_w, q_size, k_size):
    """One query and one key at a time, with tables of the right size."""
    (qh, qw), (kh, kw) = q_size, k_size
    logits = torch.empty(len(q), qh * qw, kh * kw)
    for b in range(len(q)):
        for i in range(qh * qw):
            for j in range(kh * kw):
                dy = i // qw * max(kh // qh, 1) - j // kw * max(qh // kh, 1) + (kh - 1) * max(qh // kh, 1)
                dx = i % qw * max(kw // qw, 1) - j % kw * max(qw // kw, 1) + (kw - 1) * max(qw // kw, 1)
                logits[b, i, j] = q[b, i] @ k[b, j] / q.shape[-1] ** 0.5 + q[b, i] @ (rel_pos_h[dy] + rel_pos_w[dx])
    return logits, logits.softmax(-1) @ v


@pytest.mark.parametrize(("q_size", "k_size"), [((3, 2), (3, 2)), ((4, 2), (2, 1)), ((2, 1), (2, 4))])
def test_attention_with_relative_positions_is_that_of_the_formula(q_size, k_size):
    q = torch.randn(2, q_size[0] * q_size[1], 4)
    k, v = torch.randn(2, 2, k_size[0] * k_size[1], 4)
    rel_pos_h = torch.randn(2 * max(q_size[0], k_size[0]) - 1, 4)
    rel_pos_w = torch.randn(2 * max(q_size[1], k_size[1]) - 1, 4)
    logits, expected = reference_attention(q, k, v, rel_pos_h, rel_pos_w, q_size, k_size)
    found = attention_with_rel_pos(q[:, None], k[:, None], v[:, None], rel_pos_h, rel_pos_w, q_size, k_size)
    torch.testing.assert_close(found[:, 0], expected)
    products = q @ k.transpose(1, 2) / 2
    torch.testing.assert_close(add_decomposed_rel_pos(products, q, rel_pos_h, rel_pos_w, q_size, k_size), logits)


def test_attention_without_relative_positions():
    q, k, v = torch.randn(3, 1, 2, 6, 4)
    expected = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
    torch.testing.assert_close(attention_with_rel_pos(q, k, v, None, None, (2, 3), (2, 3)), expected)


def test_absolute_positions_lose_the_class_token_and_fit_the_map():
    positions = torch.arange(10.0).view(1, 10, 1)
    assert get_abs_pos(positions, True, (3, 3)).flatten().tolist() == list(range(1, 10))
    assert get_abs_pos(positions[:, 1:], False, (3, 3)).flatten().tolist() == list(range(1, 10))
    larger = get_abs_pos(positions, True, (6, 9))
    assert larger.shape == (1, 6, 9, 1)
    torch.testing.assert_close(larger.mean(), torch.tensor(5.0))  # Symmetric about the middle.


def test_absolute_positions_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match="10 absolute positions make no square"):
        get_abs_pos(torch.zeros(1, 10, 4), False, (3, 3))


def test_patches_have_channels_last():
    assert PatchEmbed((4, 4), (4, 4), in_chans=2, embed_dim=5)(torch.zeros(1, 2, 8, 12)).shape == (1, 2, 3, 5)


def test_mlp_has_two_layers():
    mlp = Mlp(2, 3)
    x = torch.randn(4, 2)
    torch.testing.assert_close(mlp(x), mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x))))
    assert Mlp(2, 3, 5)(x).shape == (4, 5)
