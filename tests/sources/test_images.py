"""Images opened as strangers' files: each kind gets its right pixels, or a reason."""

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from curator.errors import IntegrityError
from curator.sources.images import MAX_PIXELS, ImageError, open_image, read_image
from curator.types import Image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(image: Pillow.Image, format_name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def solid(mode: str, color: Any, size: tuple[int, int] = (6, 4)) -> Pillow.Image:
    return Pillow.new(mode, size, color)


def seen(data: bytes) -> list[tuple[int, ...]]:
    """The colours of the corners: top left, bottom right."""
    image = open_image(data)
    assert image.mode == "RGB"
    return [image.getpixel((0, 0)), image.getpixel((image.width - 1, image.height - 1))]


@pytest.mark.parametrize("name", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
def test_every_format_is_known_by_its_content(name: str) -> None:
    options = {"lossless": True} if name == "WEBP" else {}
    for color in seen(saved(solid("RGB", RED), name, **options)):
        assert np.abs(np.subtract(color, RED)).max() <= 3


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        (solid("L", 128), "PNG", (128, 128, 128)),
        (solid("1", 1), "PNG", WHITE),
        (solid("P", 0), "PNG", (0, 0, 0)),
        (solid("CMYK", (0, 255, 255, 0)), "TIFF", RED),
        (solid("RGBA", (255, 0, 0, 255)), "PNG", RED),
        (solid("RGBA", (0, 0, 0, 0)), "PNG", WHITE),
        (solid("LA", (0, 0)), "PNG", WHITE),
        (solid("RGBA", (255, 0, 0, 51)), "PNG", (255, 204, 204)),
        (solid("I;16", 65535), "PNG", WHITE),
        (solid("I;16", 257 * 100), "PNG", (100, 100, 100)),
        (solid("I;16", 257 * 100), "TIFF", (100, 100, 100)),
    ],
)
def test_every_mode_becomes_rgb_by_its_meaning(image: Pillow.Image, name: str, expected: tuple[int, ...]) -> None:
    assert seen(saved(image, name)) == [expected, expected]


def test_a_transparent_palette_lies_on_white() -> None:
    image = solid("P", 3)
    image.putpalette([0, 0, 0] * 3 + [9, 9, 9])
    assert seen(saved(image, "PNG", transparency=3)) == [WHITE, WHITE]
    assert seen(saved(image, "GIF", transparency=3)) == [WHITE, WHITE]


@pytest.mark.parametrize(("orientation", "size"), [(1, (6, 4)), (3, (6, 4)), (6, (4, 6)), (8, (4, 6))])
def test_orientation_is_applied(orientation: int, size: tuple[int, int]) -> None:
    image = solid("RGB", WHITE)
    image.putpixel((0, 0), RED)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    opened = open_image(saved(image, "PNG", exif=exif))
    assert opened.size == size
    corner = {1: (0, 0), 3: (5, 3), 6: (3, 0), 8: (0, 5)}[orientation]
    assert opened.getpixel(corner) == RED


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (3, 3)])
def test_the_smallest_and_the_longest_are_images(size: tuple[int, int]) -> None:
    assert open_image(saved(solid("RGB", RED, size), "PNG")).size == size


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that claims to be large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(ImageError, match=r"image too large: .*3600000000 pixels"):
        open_image(bomb(60_000, 60_000))
    with pytest.raises(ImageError, match="image too large: 64,000,001 x 1 pixels"):
        open_image(bomb(MAX_PIXELS + 1, 1))
    with pytest.raises(ImageError, match="broken image"):
        open_image(bomb(64, 64))


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_or_pages_are_a_reason(name: str) -> None:
    data = saved(solid("RGB", RED), name, save_all=True, append_images=[solid("RGB", WHITE)])
    with pytest.raises(ImageError, match="several images in one file"):
        open_image(data)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_a_file_that_breaks_off_is_a_reason(name: str) -> None:
    noise = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = saved(noise, name)
    for length in (0, 5, len(data) // 3, len(data) // 2, len(data) * 4 // 5):
        with pytest.raises(ImageError, match=r"broken image|not an image"):
            open_image(data[:length])


@pytest.mark.parametrize("data", [b"<svg/>", b"%!PS-Adobe", b"\0" * 100, b"P6 1 1 255 \0\0\0", b"hello"])
def test_other_formats_are_not_opened(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"not an image that is read: expected one of PNG, JPEG"):
        open_image(data)


def test_pixels_without_a_white_are_a_reason() -> None:
    for image in (solid("F", 0.5), solid("I", 70000)):
        with pytest.raises(ImageError, match="have no defined white"):
            open_image(saved(image, "TIFF"))


def test_damage_anywhere_is_a_reason_or_an_image_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    noise = Pillow.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    for name in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        data = bytearray(saved(noise, name))
        for _ in range(40):
            at, value = int(random.integers(len(data))), int(random.integers(256))
            kept, data[at] = data[at], value
            with contextlib.suppress(ImageError):
                assert open_image(bytes(data)).mode == "RGB"
            data[at] = kept


def test_stored_bytes_are_checked_against_their_hash(tmp_path: Any) -> None:
    data = saved(solid("RGB", RED), "PNG")
    image = Image.of(data)
    path = tmp_path / "image"
    path.write_bytes(data)
    stored = Image(image.sha256, path=str(path))
    assert read_image(stored) == read_image(image) == data
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(IntegrityError, match="is not what was stored"):
        read_image(stored)
    path.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_image(stored)
