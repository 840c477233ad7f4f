import pytest
import torch

from detlib.modeling.neck import GlobalAveragePooling


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 5)])
def test_a_constant_map_gives_the_constant(size):
    assert GlobalAveragePooling()(torch.full((2, 3, *size), 2.5)).tolist() == [[2.5] * 3] * 2


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_each_channel_gives_its_mean(dim):
    x = torch.randn(2, 3, *(4, 5, 6)[:dim])
    torch.testing.assert_close(GlobalAveragePooling(dim=dim)(x), x.mean(tuple(range(2, dim + 2))))


def test_a_tuple_list_or_dict_is_pooled_map_by_map():
    neck, maps = GlobalAveragePooling(), [torch.ones(2, 3, 4, 4), torch.zeros(2, 5, 2, 2)]
    for given in (maps, tuple(maps)):
        pooled = neck(given)
        assert type(pooled) is tuple and [x.shape for x in pooled] == [(2, 3), (2, 5)]
    pooled = neck({"res4": maps[0], "res5": maps[1]})
    assert {name: x.unique().tolist() for name, x in pooled.items()} == {"res4": [1], "res5": [0]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_type_of_the_numbers_stays(dtype):
    assert GlobalAveragePooling()(torch.ones(1, 2, 3, 3, dtype=dtype)).dtype == dtype


def test_it_has_no_parameters_and_makes_no_maps():
    neck = GlobalAveragePooling()
    assert not list(neck.parameters()) and not hasattr(neck, "output_shape")


@pytest.mark.parametrize("given", [None, "map", 3])
def test_what_is_no_map_is_a_type_error(given):
    with pytest.raises(TypeError, match=f"takes a feature map, .* got a {type(given).__name__}"):
        GlobalAveragePooling()(given)


@pytest.mark.parametrize("dim", [0, 4, "2"])
def test_other_numbers_of_axes_are_refused(dim):
    with pytest.raises(AssertionError, match=r"MODEL.NECK.DIM is"):
        GlobalAveragePooling(dim=dim)


def test_a_map_without_the_batch_axis_is_refused():
    with pytest.raises(ValueError, match=r"maps \(N, C, ...\) of 4 axes, got one of shape \(3, 4, 4\)"):
        GlobalAveragePooling()(torch.ones(3, 4, 4))
