"""Images of training data, opened as what they are: strangers' files.

PNG, JPEG, WebP, GIF, BMP and TIFF only, told by their content. What comes out is RGB, 8 bits, upright:

    palette, greyscale, CMYK, YCbCr    converted
    16 bits a channel                  scaled (Pillow's own conversion would clip all of it to white)
    transparent                        laid on white, as a page shows it
    EXIF orientation                   applied

Refused with the reason: other formats, files that break off, more than MAX_BYTES or MAX_PIXELS, several frames or pages
(which of them is meant is not ours to guess), pixels without a defined white (32-bit integers, floats).
"""

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

from curator.errors import IntegrityError
from curator.types import Image

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "ImageError", "open_image", "read_image"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000  # 192 MB of RGB; a small file can claim any size
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "RGBX")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


class ImageError(ValueError):
    """An image that cannot be used; the message is the reason in the quarantine."""


def read_image(image: Image) -> bytes:
    """The bytes of an image, checked against their hash. Raises IntegrityError when they are no longer there."""
    if image.data is not None:
        return image.data
    try:
        data = Path(image.path).read_bytes()
    except OSError as error:
        raise IntegrityError(f"image {image.path} cannot be read ({error.strerror}); run: curator verify") from error
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise IntegrityError(f"image {image.path} is not what was stored; run: curator verify")
    return data


def open_image(data: bytes) -> Any:
    """The image as a PIL image in RGB, upright and completely read. Raises ImageError."""
    from PIL import Image as Pillow  # deferred: text needs none of it

    if not data:
        raise ImageError("broken image: the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"image too large: {len(data):,} bytes, the limit is {MAX_BYTES:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs, whose limit is ours, and of odd metadata
            with Pillow.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image)
                return _rgb(image)
    except ImageError:
        raise
    except Pillow.DecompressionBombError as error:  # Pillow's own limit, at nearly three times ours
        raise ImageError(f"image too large: {error}") from error
    except Pillow.UnidentifiedImageError as error:
        raise ImageError(f"not an image that is read: expected one of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise whatever damage leads them to: struct.error, SyntaxError, KeyError ...
        raise ImageError(f"broken image: {' '.join(str(error).split())[:200] or type(error).__name__}") from error


def _check_size(image: Any) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"image too large: {width:,} x {height:,} pixels, the limit is {MAX_PIXELS:,} in all")
    if not width or not height:
        raise ImageError("broken image: it has no pixels")
    # A phone's JPEG may carry a preview or a depth map behind its one picture (MPO): the picture comes first.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError(f"several images in one file: {image.format} with frames or pages; save the one that is meant")


def _rgb(image: Any) -> Any:
    from PIL import Image as Pillow
    from PIL import ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BITS:
        return _from_sixteen_bits(image)
    if image.mode in _ALPHA_MODES or (image.mode in _PLAIN_MODES and "transparency" in image.info):
        image = image.convert("RGBA")
        white = Pillow.new("RGBA", image.size, (255, 255, 255, 255))
        return Pillow.alpha_composite(white, image).convert("RGB")
    if image.mode not in _PLAIN_MODES:
        raise ImageError(f"pixels of mode {image.mode} have no defined white: save the image with 8 or 16 bits")
    return image.convert("RGB")


def _from_sixteen_bits(image: Any) -> Any:
    import numpy as np
    from PIL import Image as Pillow

    values = np.asarray(image).astype(np.float32)  # 65,535 / 257 = 255
    return Pillow.fromarray(np.rint(values / 257.0).astype(np.uint8), "L").convert("RGB")
