"""Opening pictures, and the random views of them that training encodes."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cones.common.errors import DataError
from cones.common.escaping import one_line, printable
from cones.common.reading import open_file
from cones.data.decoding import MOST_SCANS, scans_of, tile_of

Given = str | Path | Image.Image


def opened_picture(image: Given) -> Image.Image:
    return rgb(image, "the picture given") if isinstance(image, Image.Image) else open_picture(Path(image))


SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
READERS = (JpegImageFile, PngImageFile, TiffImageFile, BmpImageFile, WebPImageFile, GifImageFile)
FORMATS = tuple(reader.format for reader in READERS)
"""What a file may hold, whatever it is called. Pillow would open dozens more, and start Ghostscript for one of them."""
NAMED = "no JPEG, PNG, TIFF, BMP, WebP or GIF"
GRIDS = (".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd", ".nhdr", ".seg.nrrd")
"""Suffixes of medical volumes that are one file each."""
VOLUMES = (*GRIDS, ".dcm")
MAX_PIXELS = 178_956_970
"""Beyond as many Pillow takes a file for one that is to fill the memory."""
MAX_BYTES = 2**30
"""No picture of `MAX_PIXELS` needs more."""
MAX_RATIO = 100
"""A narrower strip cannot be brought to a size that a base model takes without growing out of the memory."""
MOST_FRAMES = 10
"""Counting ends there."""
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B")
BITS_PER_SAMPLE = 258
"""TIFF's tag of the bits of each channel."""


def open_picture(source: Path | bytes, name: str | None = None) -> Image.Image:
    """A picture as 8-bit RGB, turned as its EXIF orientation says; `DataError` that says why if it cannot be had.

    It is what the file holds that counts: one of `FORMATS` and nothing else is opened, whatever the name says.
    """
    return rgb(stored(source, name or str(source), _refuse)[0], name or str(source))


def open_masked(path: Path) -> tuple[Image.Image, Image.Image | None]:
    """A picture likewise, on white where it is transparent, and its opacity in 8 bits; None if it has none."""
    picture, _ = stored(path, str(path), _refuse)
    if not picture.has_transparency_data:
        return rgb(picture, str(path)), None
    with _decoding(path, str(path)):
        layered = picture.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB"), layered.getchannel("A")


def rgb(image: Image.Image, name: str) -> Image.Image:
    """An opened picture as 8-bit RGB; `DataError` for one that is too large, too narrow or of no colours."""
    refuse_size(image, name)
    with _decoding(b"x", name):
        return image.convert("RGB")


def stored(
    source: Path | bytes, name: str, refuse: Callable[[Image.Image, str], None]
) -> tuple[Image.Image, str | None]:
    """A picture as it is stored, but upright, and its format; the one place where files of pictures are opened.

    `refuse` sees it before it is decoded, and raises `DataError` for what is not to be. Raises `DataError` for what is
    no ordinary file, is in none of `FORMATS`, is damaged, has more than `MAX_PIXELS`, or is made to be slow to decode.
    """
    stream = BytesIO(source) if isinstance(source, bytes) else open_file(source, name, largest=MAX_BYTES)
    with stream, _decoding(source, name), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # of EXIF that is garbage, and of what then fails
        with Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            refuse(image, printable(name))
            _refuse_costly(image, stream, printable(name))
            image.load()
            return ImageOps.exif_transpose(image), image.format


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does."""
    with open_file(path) as file:
        return file.read(132)[128:] == b"DICM"


@contextmanager
def _decoding(source: Path | bytes, name: str) -> Iterator[None]:
    """Make whatever fails within a `DataError` that names the picture.

    A decoder of damaged bytes fails in any way: with struct.error, EOFError, an index out of range.
    """
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(
            f"{printable(name)} has too many pixels: at most {MAX_PIXELS // 10**6} million are read; make it "
            "smaller, or cut it"
        ) from None
    except MemoryError:
        raise DataError(f"{printable(name)} does not fit into the memory of this machine; make it smaller") from None
    except UnidentifiedImageError:
        empty = source.stat().st_size == 0 if isinstance(source, Path) else source == b""
        why = "it is empty" if empty else f"it is {NAMED}; save it as one of these"
        if isinstance(source, Path) and (is_dicom(source) or source.name.lower().endswith(VOLUMES)):
            why = "it is DICOM or NIfTI, which data of `kind: volumes` reads"
        raise DataError(f"{printable(name)} cannot be read as a picture: {why}") from None
    except Exception as error:
        why = one_line(str(error).split(": ")[-1] or type(error).__name__, 200)
        raise DataError(f"{printable(name)} cannot be read as a picture: {why}") from None


def refuse_size(image: Image.Image, name: str) -> None:
    """Raise `DataError` for a picture without pixels, or for a strip that no base model can take."""
    short, long = sorted(image.size)
    if short < 1 or long > MAX_RATIO * short:
        raise DataError(
            f"{printable(name)} has {image.width} x {image.height} pixels; one side may be {MAX_RATIO} times as long "
            "as the other at most: cut it"
        )


def _refuse_costly(image: Image.Image, stream: BinaryIO, name: str) -> None:
    """Raise `DataError` for a small file that would take long to decode, or much memory for few pixels."""
    at = stream.tell()
    if isinstance(image, JpegImageFile):
        stream.seek(0)
        if scans_of(stream) > MOST_SCANS:
            raise DataError(f"{name} is a JPEG of more than {MOST_SCANS} scans, which takes long to read; save it anew")
    if isinstance(image, TiffImageFile):
        width, height = tile_of(image, stream)
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{name} is a TIFF in tiles of {width} x {height} pixels, and {MAX_PIXELS // 10**6} million are the "
                "most; save it anew with smaller ones"
            )
    stream.seek(at)


def _refuse(image: Image.Image, name: str) -> None:
    """Raise `DataError` for what Pillow opens and would read in part: too deep, more than one picture.

    A camera's JPEG of several pictures (MPO) is read: behind its first one are a depth map, a gain map or the like.
    """
    refuse_size(image, name)
    if image.mode in DEEP_MODES:
        raise DataError(f"{name} has more than 8 bits a pixel (mode {image.mode}); window it to 8 bits first")
    bits = channel_bits(image)
    if bits > 8:
        raise DataError(f"{name} has {bits} bits a channel (mode {image.mode}); save it with 8 bits a channel first")
    frames = 1 if image.format == "MPO" else frames_of(image)
    if frames > 1:
        several = f"{frames} or more" if frames == MOST_FRAMES else frames
        raise DataError(
            f"{name} holds {several} pictures ({image.format}), and one a file is read; save those that are meant as "
            "files of their own"
        )


def frames_of(image: Image.Image) -> int:
    """How many pictures a file holds, `MOST_FRAMES` for more: a TIFF or GIF is walked through for it."""
    if not isinstance(image, TiffImageFile | GifImageFile):
        return getattr(image, "n_frames", 1)
    for frame in range(1, MOST_FRAMES):
        try:
            image.seek(frame)
        except EOFError:
            image.seek(0)
            return frame
    return MOST_FRAMES


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
