"""The values of a slice: DICOM's of a file at a time, and how a window makes them grey."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from cones.common.errors import DataError
from cones.common.escaping import one_line
from cones.readers.volumes.headers import Header, Shown, Stored
from cones.readers.volumes.settings import Window

HUGE = 1e20
"""Whole numbers that are scaled by less are finite."""
DEEP = 8
"""Bits a channel of colour that are shown as they are."""
CLIPPED = 0.99
"""Share of a volume's values beyond the window from which on nothing is to be seen in it."""
PERCENTILES = (0.5, 99.5)
THINNED = 4
"""Every how many rows and columns a volume's values are looked at for its percentiles."""
EXTRA = "1.2.840.10008.1.2.4.8"
"""How the transfer syntaxes of JPEG-LS begin, for which pydicom needs a decoder of its own."""


class DicomPixels:
    """Reads the values of DICOM files, those that are more than one grey picture by MONAI's reader as an object; its
    arrays have the axes i (column), j (row)."""

    def __init__(self, shown: Shown) -> None:
        from monai.data.image_reader import PydicomReader

        self.reader, self.shown = PydicomReader(), shown
        self.opened: tuple[Path, Any] | None = None

    def plane(self, header: Header, frame: int | None = None) -> Shaped[np.ndarray, "i j *colour"]:
        """The values of a file in its own units (HU for CT), float32; colour as 8 bits (i, j, 3).

        Pixels that pad the picture have its least value. `DataError` for what cannot be decoded.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tags beside the standard; what counts is checked
                if header.frame is not None:
                    return self._slice(header, header.frame)
                if header.stored:
                    return self._scaled(_decoded(header.path, header.syntax, header.stored), header.tags, header)
                return self._values(self.reader.read(header.path), header, frame)
        except DataError:
            raise
        except Exception as error:  # a decoder fails in any way
            raise DataError(self._why(header, error)) from None

    def _values(self, tags: Any, header: Header, frame: int | None) -> np.ndarray:
        frames, kind = header.frames, str(tags.PhotometricInterpretation)
        if frames > 1:
            tags = self._frame(tags, header, frame)
        if kind == "PALETTE COLOR" or int(tags.get("SamplesPerPixel", 1)) > 1:
            return self._colour(tags, header, kind).swapaxes(0, 1)
        return self._scaled(tags.pixel_array, tags, header)

    def _slice(self, header: Header, frame: int) -> np.ndarray:
        """A frame that is a slice of a series; its file is kept until another one is read."""
        from pydicom.pixels import pixel_array

        if self.opened is None or self.opened[0] != header.path:
            self.opened = header.path, self.reader.read(header.path)
        tags = self.opened[1]
        raw = pixel_array(tags, index=frame)
        if raw.ndim == 3:
            raise DataError(f"{self.shown(header.path)} has frames of colour; export each as a file of its own")
        return self._scaled(raw, header.tags, header)

    def _scaled(self, raw: np.ndarray, tags: Any, header: Header) -> np.ndarray:
        slope, intercept = (float(tags.get(k, d)) for k, d in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)))
        values = np.multiply(raw.T, slope, dtype=np.float32)  # as MONAI's reader does, without its metadata
        values += intercept
        if raw.dtype.kind == "f" or not abs(slope) + abs(intercept) < HUGE:
            refuse_not_finite(values, self.shown(header.path))
        if (padding := tags.get("PixelPaddingValue")) is not None:
            padded = padding == raw.T
            if padded.any() and not padded.all():
                values[padded] = values[~padded].min()
        return values

    def _frame(self, tags: Any, header: Header, frame: int | None) -> Any:
        """The file as if it had the one frame alone."""
        if frame is None or frame >= header.frames:
            raise DataError(
                f"{self.shown(header.path)} has {header.frames} frames; say with `frame` which is meant, 0 to "
                f"{header.frames - 1}"
            )
        from pydicom.pixels import pixel_array
        from pydicom.uid import ExplicitVRLittleEndian

        one = pixel_array(tags, index=frame)
        if str(tags.PhotometricInterpretation).startswith("YBR"):
            tags.PhotometricInterpretation = "RGB"  # which pydicom makes of it
        tags.NumberOfFrames, tags.file_meta.TransferSyntaxUID = 1, ExplicitVRLittleEndian
        tags.PlanarConfiguration = 0
        tags.PixelData = one.tobytes()
        return tags

    def _colour(self, tags: Any, header: Header, kind: str) -> UInt8[np.ndarray, "h w 3"]:
        from pydicom.pixels import apply_color_lut

        pixels = tags.pixel_array
        if kind == "PALETTE COLOR":
            wide = apply_color_lut(pixels, tags)
            return (wide >> (8 * (wide.dtype.itemsize - 1))).astype(np.uint8)[..., :3]
        if int(tags.BitsAllocated) > DEEP:
            raise DataError(f"{self.shown(header.path)} has colour of {tags.BitsAllocated} bits; export it with 8")
        return pixels

    def _why(self, header: Header, error: Exception) -> str:
        name = self.shown(header.path)
        if header.syntax.startswith(EXTRA) and "missing" in str(error):
            return f'{name} is packed as JPEG-LS, for which a decoder is wanting: pip install "cones[medical]"'
        why = one_line(str(error).replace(str(header.path), name), 200)
        return f"the pixels of {name} cannot be read: {why}; export it anew"


def _decoded(path: Path, syntax: str, stored: Stored) -> Shaped[np.ndarray, "rows columns"]:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    with path.open("rb") as file:
        there = os.fstat(file.fileno()).st_size - stored.offset
        if stored.length and there < stored.length:
            raise ValueError(f"they break off after {there} of {stored.length} bytes")
        file.seek(stored.offset)
        return get_decoder(UID(syntax)).as_array(file, **stored.options)[0]


def refuse_not_finite(values: Shaped[np.ndarray, "..."], name: str) -> None:
    if not np.isfinite(values).all():
        raise DataError(f"{name} has voxels that are no finite number; set them to a value, or take it out")


def grey(values: Float[np.ndarray, "h w"], window: Window, inverted: bool = False) -> UInt8[np.ndarray, "h w"]:
    """Values as 8-bit grey: what is below the window black, above it white, or inverted (DICOM's MONOCHROME1)."""
    low = window.level - window.width / 2
    scaled = np.clip(values, low, low + window.width)
    scaled -= low
    scaled *= 255 / window.width
    shade = np.rint(scaled, out=scaled).astype(np.uint8)
    return 255 - shade if inverted else shade


def beyond(values: Float[np.ndarray, "..."], window: Window) -> float:
    """The share of values that the window makes black or white."""
    half = window.width / 2
    return float((abs(values - window.level) > half).mean())


def percentile_window(values: Float[np.ndarray, " n"], name: str) -> Window:
    """What shows 0.5 to 99.5 % of the values above 0; `DataError` where there are none."""
    above = values[values > 0]
    low, high = np.percentile(above, PERCENTILES).tolist() if above.size else (0.0, 0.0)
    if not high > low:
        raise DataError(f"{name} has no range of values above 0 for `window: percentile`; give a level and a width")
    return Window(level=(low + high) / 2, width=high - low)


def own_window(header: Header) -> Window | None:
    """The first window in a DICOM file, where it has one."""
    both = [header.get(keyword) for keyword in ("WindowCenter", "WindowWidth")]
    if None in both:
        return None
    level, width = (float(v if isinstance(v, str | float | int) else v[0]) for v in both)
    return Window(level=level, width=width) if width > 0 else None
