import numpy as np
import pytest
from PIL import Image

from detlib.visualization import VisImage


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (29, 57, 3), dtype=np.uint8)


def test_image_without_drawings_comes_back_unchanged(image):
    np.testing.assert_array_equal(VisImage(image).get_image(), image)


@pytest.mark.parametrize("scale", [0.5, 1.2, 3.0])
def test_scale_gives_the_rounded_size(image, scale):
    assert VisImage(image, scale=scale).get_image().shape == (round(29 * scale), round(57 * scale), 3)


def test_attributes_describe_the_image_and_not_the_output(image):
    output = VisImage(image, scale=2.0)
    assert (output.height, output.width, output.scale) == (29, 57, 2.0)
    assert output.canvas.figure is output.fig and output.ax in output.fig.axes
    assert output.fig.dpi == output.dpi


def test_reset_image_keeps_what_is_drawn():
    output = VisImage(np.zeros((20, 20, 3), np.uint8))
    output.ax.axvspan(5, 10, color="red")
    output.reset_image(np.full((20, 20, 3), 255, np.uint8))
    drawn = output.get_image()
    assert drawn[10, 7].tolist() == [255, 0, 0]
    assert drawn[10, 15].tolist() == [255, 255, 255]


def test_reset_image_of_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"\(10, 20, 3\), expected \(20, 20, 3\)"):
        VisImage(np.zeros((20, 20, 3), np.uint8)).reset_image(np.zeros((10, 20, 3), np.uint8))


def test_values_beyond_255_are_clipped():
    image = np.full((4, 4, 3), 300.0)
    assert VisImage(image).get_image().max() == 255


def test_gray_image_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"shape \(8, 9\), expected \(height, width, 3\).*repeat the channel"):
        VisImage(np.zeros((8, 9), np.uint8))


def test_output_too_large_for_the_renderer_is_refused():
    with pytest.raises(ValueError, match="200x1 at scale 1000 becomes 200000x1000"):
        VisImage(np.zeros((1, 200, 3), np.uint8), scale=1000)


def test_saved_png_holds_what_get_image_gives(image, tmp_path):
    output = VisImage(image)
    output.save(str(tmp_path / "out.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), output.get_image())


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".pdf", ".svg"])
def test_save_writes_the_format_of_the_suffix(image, tmp_path, suffix):
    VisImage(image).save(str(tmp_path / f"out{suffix}"))
    starts = {".jpg": b"\xff\xd8", ".bmp": b"BM", ".pdf": b"%PDF", ".svg": b"<?xml"}
    assert (tmp_path / f"out{suffix}").read_bytes().startswith(starts[suffix])
