from types import SimpleNamespace

import pytest
import torch

from detlib.modeling.self_supervised.masking import (
    check_size,
    count_visible,
    gather_tokens,
    masks_of,
    patchify,
    random_masking,
    split_by_mask,
    unpatchify,
)
from detlib.utils.errors import DatasetError


def test_patch_is_read_row_by_row_with_channels_innermost():
    images = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)  # two channels, which differ by 16
    patches = patchify(images, 2)
    assert patches.shape == (1, 4, 8)
    assert patches[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]  # the patch at the top right


def test_unpatchify_undoes_patchify():
    images = torch.rand(2, 3, 8, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4, (8, 12)), images)


def test_patches_with_the_least_noise_are_kept():
    ids_keep, mask, ids_restore = random_masking(torch.tensor([[0.3, 0.1, 0.9, 0.2]]), 0.5)
    assert ids_keep.tolist() == [[1, 3]]
    assert mask.tolist() == [[True, False, True, False]]
    assert ids_restore.tolist() == [[2, 0, 3, 1]]


def test_masks_of_two_images_with_different_noise_differ_but_hide_as_much():
    _, mask, _ = random_masking(torch.rand(2, 196, generator=torch.Generator().manual_seed(0)), 0.75)
    assert mask.sum(dim=1).tolist() == [147, 147]
    assert not torch.equal(mask[0], mask[1])


def test_gathering_by_the_restoring_places_undoes_the_shuffle():
    noise, tokens = torch.rand(2, 9), torch.rand(2, 9, 4)
    _, _, ids_restore = random_masking(noise, 0.5)
    assert torch.equal(gather_tokens(gather_tokens(tokens, noise.argsort(dim=1)), ids_restore), tokens)


def test_tokens_common_to_all_images_are_gathered_for_each():
    positions = torch.tensor([[[0.0], [10.0], [20.0]]])
    assert gather_tokens(positions, torch.tensor([[2], [1]])).tolist() == [[[20.0]], [[10.0]]]


@pytest.mark.parametrize(("num_patches", "num_visible"), [(196, 49), (256, 64)])
def test_a_quarter_stays_visible(num_patches, num_visible):
    assert count_visible(num_patches, 0.75) == num_visible


def test_number_of_visible_patches_is_rounded_down():
    assert count_visible(10, 0.72) == 2  # of 2.8


def test_split_lists_visible_and_hidden_patches_row_by_row():
    mask = torch.tensor([[True, False, False, True], [False, True, True, False]])
    visible, hidden = split_by_mask(mask)
    assert visible.tolist() == [[1, 2], [0, 3]]
    assert hidden.tolist() == [[0, 3], [1, 2]]


def test_masks_are_stacked_and_may_be_lists_or_numbers():
    masks = masks_of([{"mask": [[0, 1], [1, 0]]}, {"mask": torch.ones(2, 2)}], (2, 2))
    assert masks.tolist() == [[[False, True], [True, False]], [[True, True], [True, True]]]


def test_sample_without_mask_is_an_error_that_names_it():
    with pytest.raises(DatasetError, match=r"'a\.jpg' has no 'mask', but file_name; .* a mask of 2 x 2 patches"):
        masks_of([{"file_name": "a.jpg"}], (2, 2))


def test_mask_of_another_grid_is_an_error():
    with pytest.raises(DatasetError, match=r"has the shape \(6, 6\), but the image has 48 x 48 patches"):
        masks_of([{"mask": torch.zeros(6, 6)}], (48, 48))


@pytest.mark.parametrize("counts", [(1, 2), (0, 0), (4, 4)])
def test_masks_of_different_counts_or_of_nothing_or_all_are_an_error_where_counts_must_agree(counts):
    samples = [{"mask": (torch.arange(4) < count).view(2, 2)} for count in counts]
    assert len(masks_of(samples, (2, 2))) == 2
    with pytest.raises(DatasetError, match="of 4 patches; all must hide the same number, neither none nor all"):
        masks_of(samples, (2, 2), same_count=True)


def test_image_of_another_size_than_that_of_pre_training_is_an_error():
    backbone = SimpleNamespace(grid_size=4, patch_size=8)
    check_size(torch.zeros(1, 3, 32, 32), backbone)
    with pytest.raises(DatasetError, match="32 x 40 pixels came, but pre-training is set up for 32 x 32"):
        check_size(torch.zeros(1, 3, 32, 40), backbone)
