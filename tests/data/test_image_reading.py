import numpy as np
import pytest
import torch
from PIL import Image

from detlib.data.detection_utils import SizeMismatchError, check_image_size, convert_image_to_rgb, image_of, read_image
from detlib.utils.errors import DatasetError, MissingFileError

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    return str(path)


def test_rgb_and_bgr_differ_in_the_order_of_channels(png):
    np.testing.assert_array_equal(read_image(png, "RGB"), PIXELS)
    np.testing.assert_array_equal(read_image(png, "BGR"), PIXELS[:, :, ::-1])


def test_without_format_the_channels_are_as_stored(png):
    np.testing.assert_array_equal(read_image(png), PIXELS)


def test_gray_keeps_a_channel_axis(png):
    assert read_image(png, "L").shape == (2, 3, 1)


def test_gray_file_becomes_three_equal_channels(tmp_path):
    Image.fromarray(PIXELS[:, :, 0]).save(tmp_path / "gray.png")
    image = read_image(tmp_path / "gray.png", "BGR")
    np.testing.assert_array_equal(image, PIXELS[:, :, :1].repeat(3, axis=2))


def test_yuv_of_white_has_full_luma_and_no_color(tmp_path):
    Image.fromarray(np.full((1, 1, 3), 255, np.uint8)).save(tmp_path / "white.png")
    np.testing.assert_allclose(read_image(tmp_path / "white.png", "YUV-BT.601"), [[[1, 0, 0]]], atol=1e-4)


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "YUV-BT.601"])
def test_conversion_back_to_rgb_restores_the_image(png, image_format):
    image = read_image(png, image_format)
    np.testing.assert_array_equal(convert_image_to_rgb(image, image_format), PIXELS)
    np.testing.assert_array_equal(convert_image_to_rgb(torch.as_tensor(image.copy()), image_format), PIXELS)


def test_gray_becomes_rgb(png):
    gray = read_image(png, "L")
    np.testing.assert_array_equal(convert_image_to_rgb(gray, "L"), gray.repeat(3, axis=2))


def test_16_bit_values_are_scaled_and_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 256 * 7, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", "L").ravel().tolist() == [0, 7, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0, 70000]], dtype=np.int32), "from 0 to 70000"),
        (np.array([[0, 0.5]], dtype=np.float32), "from 0 to 0.5"),
        (np.array([[-1, 1]], dtype=np.float32), "from -1 to 1"),
    ],
)
def test_32_bit_values_of_unknown_range_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "deep.tif")
    with pytest.raises(DatasetError, match=rf"deep\.tif: the image has 32-bit values {message}, .*8 or 16 bits"):
        read_image(tmp_path / "deep.tif", "RGB")


def test_32_bit_values_of_8_bits_are_read(tmp_path):
    Image.fromarray(np.array([[0, 200]], dtype=np.float32)).save(tmp_path / "float.tif")
    assert read_image(tmp_path / "float.tif", "L").ravel().tolist() == [0, 200]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    # How a camera stores an upright image for each orientation; EXIF 2.3, sec. 4.6.4.
    stored = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, 1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", "RGB"), PIXELS)


def test_missing_image_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"absent\.jpg"):
        read_image(tmp_path / "absent.jpg", "BGR")


def test_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(DatasetError, match=r"text\.jpg is not an image"):
        read_image(tmp_path / "text.jpg", "BGR")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image_is_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.RandomState(0).randint(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=rf"cut\.{suffix} is damaged"):
        read_image(path, "BGR")


def test_size_that_differs_from_the_dataset_is_refused():
    sample = {"file_name": "a.jpg", "height": 20, "width": 40}
    with pytest.raises(SizeMismatchError, match=r"a\.jpg is 10 x 40 .* says 20 x 40"):
        check_image_size(sample, np.zeros((10, 40, 3)))
    with pytest.raises(ValueError, match="EXIF"):
        check_image_size(sample, np.zeros((40, 20, 3)))


def test_missing_size_is_filled_in():
    sample = {}
    check_image_size(sample, np.zeros((10, 40, 3)))
    assert sample == {"height": 10, "width": 40}


@pytest.mark.parametrize(
    ("image_format", "expected"), [("RGB", [1, 2, 3]), ("BGR", [3, 2, 1]), (None, [1, 2, 3]), ("L", [2])]
)
def test_image_in_memory_is_converted_like_that_of_a_file(image_format, expected):
    image = np.full((2, 2, 3), (1, 2, 3), dtype=np.uint8)
    assert image_of({"image": image}, image_format)[0, 0].tolist() == expected


def test_gray_image_in_memory_may_become_a_color_image():
    assert image_of({"image": np.full((2, 2), 7, dtype=np.uint8)}, "BGR")[1, 1].tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((2, 2, 3)), r"float64 of the shape \(2, 2, 3\)"),
        (np.zeros((3, 2, 2), np.uint8), r"uint8 of the shape \(3, 2, 2\)"),
        (torch.zeros(2, 2, 3, dtype=torch.uint8), r"torch.uint8 of the shape \(2, 2, 3\)"),
        ([[1]], "list"),
    ],
)
def test_image_in_memory_of_another_form_is_refused(image, got):
    with pytest.raises(DatasetError, match=rf"numpy array of uint8, \(H, W, 3\) in RGB or \(H, W\), it is {got}"):
        image_of({"image": image}, "RGB")


def test_sample_without_an_image_is_refused():
    with pytest.raises(DatasetError, match="needs a 'file_name' or an 'image', it has label, score"):
        image_of({"label": 1, "score": 2})
