"""Opening pictures, and the random views of them that training encodes."""

import math
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from cones.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
MAX_PIXELS = 200_000_000
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B")
BITS_PER_SAMPLE = 258
"""TIFF's tag of the bits of each channel."""


def open_picture(source: Path | bytes, name: str | None = None) -> Image.Image:
    """A picture as 8-bit RGB, turned as its EXIF orientation says; `DataError` that says why if it cannot be had."""
    return _opened(source, name).convert("RGB")


def open_masked(path: Path) -> tuple[Image.Image, Image.Image | None]:
    """A picture likewise, on white where it is transparent, and its opacity in 8 bits; None if it has none."""
    picture = _opened(path)
    if not picture.has_transparency_data:
        return picture.convert("RGB"), None
    layered = picture.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB"), layered.getchannel("A")


def _opened(source: Path | bytes, name: str | None = None) -> Image.Image:
    """A picture as it is stored, but upright."""
    name = name or str(source)
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            _refuse(image, name)
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise DataError(f"{name} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        empty = source.stat().st_size == 0 if isinstance(source, Path) and source.exists() else source == b""
        why = "it is empty" if empty else str(error).split(": ")[-1] or type(error).__name__
        raise DataError(f"{name} cannot be read as a picture: {why}") from None


def _refuse(image: Image.Image, name: str) -> None:
    """Raise `DataError` for what Pillow opens and would read in part: too large, too deep, more than one picture.

    A camera's JPEG of several pictures (MPO) is read: behind its first one are a depth map, a gain map or the like.
    """
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS // 10**6} million are read"
        )
    if image.mode in DEEP_MODES:
        raise DataError(f"{name} has more than 8 bits a pixel (mode {image.mode}); window it to 8 bits first")
    bits = channel_bits(image)
    if bits > 8:
        raise DataError(f"{name} has {bits} bits a channel (mode {image.mode}); save it with 8 bits a channel first")
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(
            f"{name} holds {frames} pictures ({image.format}), and one a file is read; save those that are meant as "
            "files of their own"
        )


def channel_bits(image: Image.Image) -> int:
    """Bits a channel of a picture as it is stored, not loaded yet; Pillow opens colour of 16 bits in modes of 8."""
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (8,)))
    deep = isinstance(image, PngImageFile) and any(str(tile[3]).endswith(";16B") for tile in image.tile)
    return 16 if deep else 8


def random_view(picture: Image.Image, min_area: float, rng: np.random.Generator, flip: bool = True) -> Image.Image:
    """A random crop of at least `min_area` of the picture, sides at most 4:3, flipped every other time if at all."""
    width, height = picture.size
    area = rng.uniform(min_area, 1.0) * width * height
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    w, h = max(w, 1), max(h, 1)
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    crop = picture.crop((int(left), int(top), int(left) + w, int(top) + h))
    return ImageOps.mirror(crop) if rng.random() < 0.5 and flip else crop
