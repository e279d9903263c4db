"""A PNG or JPEG file that somebody sent, as pixels for the network."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from rrmsdk.runtime.refused import Refused

MOST_PIXELS = 16_000_000  # 48 MB once decoded
MOST_SCANS = 100  # of a JPEG; progressive ones have about 10. Each goes over all pixels, and may take 30 bytes


def pixels(encoded: bytes, shape: tuple[int, int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 [1, H, W, C], and the file's own width and height.

    An image of another size than the network's is cut to its proportions around the middle, and resized.

    Raises:
        Refused: 400, 413.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise Refused(400, f"this model takes {channels} channels, which no image file has: use the infer address")
    # Inside a scan each 0xFF is followed by a 0: what is counted begins scans, or stands in comments.
    if encoded.startswith(b"\xff\xd8") and encoded.count(b"\xff\xda") > MOST_SCANS:
        raise Refused(413, f"the image has more than {MOST_SCANS} scans: save it anew")
    try:
        image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many() from None
    except (OSError, SyntaxError, ValueError):
        raise Refused(400, "that is no PNG and no JPEG image") from None
    if image.width * image.height > MOST_PIXELS:  # known from the header; nothing is decoded yet
        raise _too_many()
    if image.mode[0] in "IF":
        raise Refused(400, "the image has more than 8 bits a channel: convert it to 8 bits first")
    try:
        image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    except Exception:  # of damaged EXIF Pillow raises struct.error, TypeError, AttributeError and others
        raise Refused(400, "the image is cut off or damaged") from None
    size = image.size
    if size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(1, height, width, channels), size


def _too_many() -> Refused:
    return Refused(413, f"the image has more than {MOST_PIXELS} pixels: make it smaller first")
