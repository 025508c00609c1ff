"""Images of any mode as RGB, without a loss that nobody would notice."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mixers.registry import InputError


def in_rgb(image: Image.Image) -> Image.Image:
    """Grey of 8 or 16 bits, palette, RGBA or CMYK as RGB; transparency is dropped, as timm does.

    The orientation that EXIF may name is not applied, by timm's readers neither.

    Raises:
        InputError: 32 bits per pixel, of which it cannot be told what is white.
    """
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        _check_range(image)
    return image.convert("RGB")


def _check_range(image: Image.Image) -> None:
    """Pillow would clip, so that all above 255 is white, and floating point up to 1 black."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255) or (image.mode == "F" and 0 < high <= 1):
        raise InputError(
            f"mode {image.mode} with values from {low:g} to {high:g} is not read: store it in 8 bits, or 16"
        )
