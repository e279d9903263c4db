"""PNG and JPEG files to bytes of pixels, and the files that are none or too large."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rrmsdk.runtime import images
from rrmsdk.runtime.refused import Refused


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def refused(file: bytes, shape: tuple[int, int, int] = (3, 8, 8)) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        images.pixels(file, shape)
    return caught.value.status, caught.value.says


def test_a_file_of_the_networks_size_comes_as_it_is() -> None:
    image = noise(8, 8, 3)
    pixels, size = images.pixels(encoded(image), (3, 8, 8))
    np.testing.assert_array_equal(pixels[0], image)
    assert size == (8, 8)


def test_grey_and_colour_are_turned_into_what_the_network_takes() -> None:
    grey = noise(8, 8)
    as_colour, _ = images.pixels(encoded(grey), (3, 8, 8))
    np.testing.assert_array_equal(as_colour[..., 0], as_colour[..., 2])
    assert images.pixels(encoded(noise(8, 8, 3)), (1, 8, 8))[0].shape == (1, 8, 8, 1)


def test_a_larger_file_is_cut_around_its_middle_and_resized() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    pixels, size = images.pixels(encoded(wide), (3, 10, 10))
    assert size == (60, 20)
    assert pixels.min() > 230


def test_a_jpeg_that_was_taken_sideways_is_set_upright() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8] = 255  # the left half
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees clockwise: left becomes top
    pixels, _ = images.pixels(encoded(image, "JPEG", exif=turned, quality=95), (3, 16, 16))
    assert pixels[0, :7].min() > 230
    assert pixels[0, 9:].max() < 25


def huge(width: int, height: int) -> bytes:
    """A PNG whose header promises that many pixels, and which holds none."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(4001, 4000), (10_000, 10_000), (30_000, 30_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    assert refused(huge(*size)) == (413, "the image has more than 16000000 pixels: make it smaller first")


def test_a_jpeg_of_very_many_scans_is_refused_before_they_are_decoded() -> None:
    file = encoded(noise(64, 64), "JPEG", progressive=True)
    assert images.pixels(file, (1, 8, 8))[1] == (64, 64)
    begun = file.rindex(b"\xff\xda")
    again = file[:begun] + 100 * file[begun:-2] + file[-2:]
    assert refused(again, (1, 8, 8)) == (413, "the image has more than 100 scans: save it anew")


@pytest.mark.parametrize("file", [b"", b"hello", b"GIF89a" + b"\0" * 50, b"<svg/>"])
def test_what_is_no_image_is_refused(file: bytes) -> None:
    assert refused(file) == (400, "that is no PNG and no JPEG image")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_half_an_image_is_refused(kind: str) -> None:
    file = encoded(noise(64, 64, 3), kind)
    assert refused(file[: len(file) // 2]) == (400, "the image is cut off or damaged")


@pytest.mark.parametrize("kind", [0, 26])
def test_a_tag_of_another_kind_than_it_has_to_be_is_refused(kind: int) -> None:
    turned = Image.Exif()
    turned[0x0112], turned[0x010E] = 6, "a text"
    file = bytearray(encoded(noise(16, 16, 3), "JPEG", exif=turned))
    file[file.index(b"Exif") + 17] = kind  # the first entry's tag: another takes its place
    assert refused(bytes(file)) == (400, "the image is cut off or damaged")


def test_sixteen_bits_a_channel_are_refused() -> None:
    file = encoded(noise(8, 8).astype(np.uint16) * 257)
    assert refused(file) == (400, "the image has more than 8 bits a channel: convert it to 8 bits first")


def test_a_network_of_other_channels_takes_no_files() -> None:
    assert "takes 4 channels" in refused(encoded(noise(8, 8, 3)), (4, 8, 8))[1]
