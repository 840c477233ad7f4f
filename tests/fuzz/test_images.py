"""Whatever bytes are in an image file, reading gives an image or an error of detlib's that names the file."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detlib.data.image_reading import read_image
from detlib.data.label_maps import read_label_map, read_segment_ids
from detlib.utils.errors import ConfigError, DatasetError, DetlibError
from tests.fuzz.hostile import damaged

MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "GIF": ("P",),
    "TIFF": ("RGB", "CMYK", "I;16", "F", "LAB", "YCbCr"),
    "BMP": ("RGB", "P"),
    "PPM": ("RGB", "L"),
    "WEBP": ("RGBA",),
    "TGA": ("RGB",),
    "ICO": ("RGBA",),
    "JPEG2000": ("RGB",),
}
FORMATS = st.sampled_from([None, "RGB", "BGR", "L", "YUV-BT.601"])


def encoded(file_format, mode, frames=1):
    noise = np.random.RandomState(0).randint(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    image = Image.fromarray(noise[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    file = io.BytesIO()
    more = {"save_all": True, "append_images": [image] * (frames - 1)} if frames > 1 else {}
    image.save(file, file_format, **more)
    return file.getvalue()


SEEDS = [encoded(file_format, mode) for file_format, modes in MODES.items() for mode in modes]
SEEDS += [encoded("GIF", "P", frames=3), encoded("PNG", "RGB", frames=3)]


def read_or_refuse(path, read, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = read(path, *arguments)
        except DetlibError as error:
            assert str(path) in str(error)
        else:
            assert image.ndim in (2, 3)
            assert image.shape[0] > 0


@given(data=st.binary(max_size=200), image_format=FORMATS)
def test_random_bytes_are_refused_by_name(folder, data, image_format):
    (folder / "a.png").write_bytes(data)
    read_or_refuse(folder / "a.png", read_image, image_format)


@given(data=st.sampled_from(SEEDS).flatmap(damaged), image_format=FORMATS)
def test_damaged_images_are_read_or_refused_by_name(folder, data, image_format):
    (folder / "a.jpg").write_bytes(data)
    read_or_refuse(folder / "a.jpg", read_image, image_format)


@given(data=st.sampled_from(SEEDS).flatmap(lambda seed: st.one_of(st.just(seed), damaged(seed))))
def test_label_maps_are_read_or_refused_by_name(folder, data):
    (folder / "a.png").write_bytes(data)
    read_or_refuse(folder / "a.png", read_label_map)
    read_or_refuse(folder / "a.png", read_segment_ids)


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_every_mode_becomes_bgr(tmp_path, number):
    (tmp_path / "a.png").write_bytes(SEEDS[number])
    assert read_image(tmp_path / "a.png", "BGR").shape == (16, 16, 3)


def png_of_size(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("size", "message"),
    [((100_000, 100_000), "too large .*MAX_IMAGE_PIXELS"), ((2**31 - 1, 2**31 - 1), "too large"), ((0, 5), "")],
)
def test_size_in_the_header_does_not_decide_how_much_memory_is_taken(tmp_path, size, message):
    (tmp_path / "bomb.png").write_bytes(png_of_size(*size))
    with pytest.raises(DatasetError, match=rf"bomb\.png.*{message}"):
        read_image(tmp_path / "bomb.png", "RGB")


def test_postscript_is_refused_before_a_program_draws_it(tmp_path):
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.jpg is EPS"):
        read_image(tmp_path / "a.jpg", "RGB")


def test_format_that_no_image_has_is_an_error_of_the_config(tmp_path):
    (tmp_path / "a.png").write_bytes(SEEDS[3])
    with pytest.raises(ConfigError, match=r"INPUT\.FORMAT is 'rgb'"):
        read_image(tmp_path / "a.png", "rgb")
