import pytest
import torch

from detlib.modeling.preprocessing import ImagePreprocessor, instances_of
from detlib.utils.errors import DatasetError


def test_padding_is_zero_after_normalisation():
    preprocessor = ImagePreprocessor([10.0, 20.0, 30.0], [2.0, 2.0, 2.0], size_divisibility=4)
    image = torch.tensor([12, 24, 36], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 3)
    images = preprocessor([{"image": image}])
    assert images.tensor.shape == (1, 3, 4, 4)
    assert images.tensor[0, :, 0, 0].tolist() == [1.0, 2.0, 3.0]
    assert images.tensor[0, :, 2:, :].abs().max() == 0
    assert images.image_sizes == [(2, 3)]


def test_images_of_different_sizes_share_a_batch():
    preprocessor = ImagePreprocessor([0.0] * 3, [1.0] * 3)
    images = preprocessor([{"image": torch.ones(3, 4, 9)}, {"image": torch.ones(3, 7, 5)}])
    assert images.tensor.shape == (2, 3, 7, 9)
    assert images.image_sizes == [(4, 9), (7, 5)]


def test_integer_mean_and_std_are_taken_as_floats():
    images = ImagePreprocessor([1, 1, 1], [2, 2, 2])([{"image": torch.full((3, 1, 1), 2, dtype=torch.uint8)}])
    assert images.tensor.flatten().tolist() == [0.5, 0.5, 0.5]


def test_wrong_number_of_channels_names_the_file_and_the_keys():
    with pytest.raises(DatasetError, match=r"'a.png' has the shape \(1, 5, 5\).*INPUT.FORMAT and MODEL.PIXEL_MEAN"):
        ImagePreprocessor([0.0] * 3, [1.0] * 3)([{"image": torch.zeros(1, 5, 5), "file_name": "a.png"}])


def test_views_for_a_model_of_one_image_say_what_to_set():
    sample = {"views": [torch.zeros(3, 5, 5)], "file_name": "a.png", "sample_idx": 0}
    message = r"takes one 'image' of each sample, but 'a.png' has only file_name, sample_idx, views: remove INPUT.VIEWS"
    with pytest.raises(DatasetError, match=message):
        ImagePreprocessor([0.0] * 3, [1.0] * 3)([sample])
    with pytest.raises(DatasetError, match=r"but 'a.png' has only file_name$"):
        ImagePreprocessor([0.0] * 3, [1.0] * 3)([{"file_name": "a.png"}])


def test_training_without_instances_says_what_to_do():
    with pytest.raises(DatasetError, match=r"training needs 'instances'.*is_train=True"):
        instances_of([{"image": torch.zeros(3, 5, 5)}], torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_take_the_type_of_the_model(dtype):
    preprocessor = ImagePreprocessor([1.0], [2.0]).to(torch.bfloat16)
    images = preprocessor([{"image": torch.full((1, 2, 2), 5, dtype=dtype)}])
    assert images.tensor.dtype == torch.bfloat16
    assert images.tensor.unique().tolist() == [2]
