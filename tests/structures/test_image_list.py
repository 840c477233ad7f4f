import pytest
import torch

from detlib.structures import ImageList


def two_images():
    return [torch.ones(3, 5, 7), torch.ones(3, 6, 4)]


def test_images_are_padded_at_the_right_and_at_the_bottom():
    images = ImageList.from_tensors(two_images(), pad_value=9.0)
    assert images.tensor.shape == (2, 3, 6, 7)
    assert images.image_sizes == [(5, 7), (6, 4)]
    assert images.tensor[0, 0, 5].tolist() == [9.0] * 7
    assert images.tensor[1, 0, :, 4:].unique().tolist() == [9.0]
    assert images.tensor[0, :, :5].unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("divisibility", "constraints", "expected"),
    [
        (0, None, (6, 7)),
        (1, None, (6, 7)),
        (4, None, (8, 8)),
        (4, {"size_divisibility": 5}, (10, 10)),
        (0, {"square_size": 9}, (9, 9)),
        (0, {"square_size": 9, "size_divisibility": 2}, (10, 10)),
        (3, {"square_size": 0}, (6, 9)),
    ],
)
def test_size_of_the_batch(divisibility, constraints, expected):
    images = ImageList.from_tensors(two_images(), divisibility, padding_constraints=constraints)
    assert images.tensor.shape[-2:] == expected


def test_indexing_removes_the_padding():
    images = ImageList.from_tensors(two_images(), size_divisibility=32)
    for found, image in zip((images[0], images[1]), two_images(), strict=True):
        assert torch.equal(found, image)
    assert len(images) == 2


def test_one_image_that_needs_no_padding_is_not_copied():
    image = torch.ones(3, 4, 4)
    assert ImageList.from_tensors([image]).tensor.data_ptr() == image.data_ptr()


def test_label_maps_keep_their_type():
    images = ImageList.from_tensors([torch.zeros(2, 3).long(), torch.zeros(3, 2).long()], pad_value=255)
    assert images.tensor.dtype == torch.int64
    assert images.tensor[0].tolist() == [[0, 0, 0], [0, 0, 0], [255, 255, 255]]


def test_equal_sizes_are_stacked():
    assert ImageList.from_tensors([torch.zeros(3, 4, 4)] * 2).tensor.shape == (2, 3, 4, 4)


def test_to_moves_the_tensor_and_keeps_sizes():
    images = ImageList.from_tensors(two_images()).to("meta")
    assert images.device.type == "meta"
    assert images.image_sizes == [(5, 7), (6, 4)]


def test_bad_batches_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        ImageList.from_tensors([])
    with pytest.raises(ValueError, match=r"\(1, 5, 7\)"):
        ImageList.from_tensors([torch.ones(3, 5, 7), torch.ones(1, 5, 7)])
    with pytest.raises(ValueError, match="square of 6 pixels"):
        ImageList.from_tensors(two_images(), padding_constraints={"square_size": 6})
