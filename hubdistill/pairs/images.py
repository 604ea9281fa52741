"""Images of dataset rows: a folder that keeps each as a small, plain file.

The only file that decodes images. Errors of `ImageStore.put` say what is wrong with the image and the fix; the caller
puts the row and `RawImage.called` in front.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hubdistill.errors import InputError
from hubdistill.files import write_atomically, write_problem

if TYPE_CHECKING:
    import PIL.Image

MAX_BYTES = 64 * 2**20  # of one encoded image
MAX_PIXELS = 100_000_000  # checked from the header, before anything is decoded (decompression bombs)
MAX_RATIO = 200  # longer side / shorter side; Qwen2-VL's processor refuses more, and CLIP's resize would need gigabytes
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # no others are tried: EPS, for one, would run ghostscript
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp"}  # what may be kept as it is; MPO: a phone's JPEG
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}

NAMELESS = "holds an image that"
REPLACE = "replace or remove it"
UNKNOWN = f"is not an image that can be read (PNG, JPEG, WEBP, BMP, TIFF or a still GIF); {REPLACE}"
TOO_MANY = f"pixels (at most {MAX_PIXELS:,}); save a smaller copy"


@dataclass(frozen=True)
class RawImage:
    """The bytes of an image as the row has them, not decoded. `digest` is 32 hex digits of their SHA-256; `called` are
    the words before what is wrong with it, which name its file where there is one."""

    data: bytes
    digest: str
    called: str = field(default=NAMELESS, compare=False)

    @classmethod
    def of(cls, data: bytes, called: str = NAMELESS) -> RawImage:
        """Raises InputError for no bytes, and for more than MAX_BYTES."""
        if not data:
            raise InputError(f"{called} is empty (0 bytes); {REPLACE}")
        if len(data) > MAX_BYTES:
            raise too_large(called)
        return cls(data, _digest(data), called)


def too_large(called: str) -> InputError:
    return InputError(f"{called} is larger than {MAX_BYTES / 2**20:,.0f} MiB; save a smaller copy")


@dataclass(frozen=True)
class ImageStore:
    """A folder of images, each named after its content. Larger ones are scaled down to `pixels` (width x height)."""

    folder: Path
    pixels: int

    def put(self, image: RawImage) -> str:
        """Keep an image and return its file's name; one that is there already is neither decoded nor written again.

        A PNG, JPEG or WEBP that is RGB or gray, upright and small enough is kept byte for byte; all else becomes RGB,
        and a JPEG (of a JPEG) or a PNG without metadata. Raises InputError for what is no still image, is damaged, too
        large or too narrow, and RunDirectoryError where it cannot be written.
        """
        with _decoding():
            found = _opened(image.data)
            path = self.folder / self._name(found, image.digest)
            if path.is_file():
                return path.name
            found.load()
            data = image.data if self._fits(found) and _is_plain(found) else self._encoded(found, path.suffix)
        write_atomically(path, data)
        return path.name

    def open(self, name: str) -> PIL.Image.Image:
        """The image of that name, RGB and decoded. Raises InputError for a file that is missing or damaged."""
        path = self.folder / name
        try:
            with _decoding():
                return _plain(_opened(path.read_bytes()))
        except InputError as problem:
            fix = f"delete the folder {self.folder.parent} and run the same command again"
            what = "cannot be read" if path.is_file() else "is not there"
            raise InputError(f"{path}: the stored image {what}; {fix}") from problem

    def keep_only(self, names: Iterable[str]) -> None:
        """Delete every other file of the folder, left-over temporary ones too. Raises RunDirectoryError."""
        kept = set(names)
        try:
            for path in list(self.folder.iterdir()) if self.folder.is_dir() else []:
                if path.name not in kept and not path.is_dir():
                    path.unlink(missing_ok=True)
        except OSError as problem:
            raise write_problem(problem, self.folder) from problem

    def _fits(self, image: PIL.Image.Image) -> bool:
        return image.width * image.height <= self.pixels

    def _name(self, image: PIL.Image.Image, digest: str) -> str:
        suffix = SUFFIXES.get(image.format or "", ".png")
        if suffix == ".webp" and not (self._fits(image) and _is_plain(image)):
            suffix = ".png"
        # A scaled image depends on the setting too: after a change of it the old file must not be taken for the new.
        return (digest if self._fits(image) else _digest(f"{digest}|{self.pixels}".encode())) + suffix

    def _encoded(self, image: PIL.Image.Image, suffix: str) -> bytes:
        from PIL import Image

        plain = _plain(image)
        if not self._fits(plain):
            plain = plain.resize(_scaled(plain.width, plain.height, self.pixels), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        plain.save(out, "JPEG", quality=95) if suffix == ".jpg" else plain.save(out, "PNG")
        return out.getvalue()


def of_pil(value: object) -> RawImage | None:
    """An image that is decoded already, as the bytes of a PNG; None for what is none. Raises InputError as `ImageStore.put` does."""
    from PIL import Image

    if not isinstance(value, Image.Image):
        return None
    out = io.BytesIO()
    with _decoding():
        _plain(_checked(value)).save(out, "PNG")
    return RawImage.of(out.getvalue())


@contextmanager
def _decoding() -> Iterator[None]:
    """Turns all that PIL raises on bad bytes into an InputError, and keeps its warnings quiet."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    # Hostile bytes make PIL raise OSError, SyntaxError, struct.error, zlib.error, OverflowError, MemoryError, and more.
    except Exception as problem:
        if isinstance(problem, Image.DecompressionBombError):
            raise InputError(f"has too many {TOO_MANY}") from problem
        damaged = f"is damaged or cut short; {REPLACE}"
        raise InputError(UNKNOWN if isinstance(problem, UnidentifiedImageError) else damaged) from problem


def _opened(data: bytes) -> PIL.Image.Image:
    """The image with its header read and checked, not decoded."""
    from PIL import Image

    return _checked(Image.open(io.BytesIO(data), formats=FORMATS))


def _checked(image: PIL.Image.Image) -> PIL.Image.Image:
    size = f"{image.width} x {image.height}"
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"has {size} {TOO_MANY}")
    if max(image.size) > MAX_RATIO * min(image.size):
        raise InputError(f"has {size} pixels, more than {MAX_RATIO} times as long as wide; crop it, or remove it")
    # The other frames of an MPO are a phone's thumbnails and depth maps.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise InputError("has several frames or pages, and only still images are read; save the frame you mean")
    return image


def _orientation(image: PIL.Image.Image) -> int:
    """The EXIF orientation that calls for a turn, 2 to 8; else 1. EXIF that cannot be read is no reason to refuse."""
    try:
        found = image.getexif().get(0x0112)
    except (OSError, SyntaxError, TypeError, ValueError, LookupError, struct.error):
        return 1
    return found if isinstance(found, int) and found in TURNS else 1


def _is_plain(image: PIL.Image.Image) -> bool:
    return image.format in SUFFIXES and image.mode in ("RGB", "L") and not image.has_transparency_data and _orientation(image) == 1


def _plain(image: PIL.Image.Image) -> PIL.Image.Image:
    """A decoded copy: upright, RGB, what was transparent on white, no metadata."""
    from PIL import Image

    image.load()
    # After `load`, which turns a TIFF itself and reads what a PNG has behind its pixels.
    turn = TURNS.get(_orientation(image))
    if image.mode[0] in "IF":
        image = _eight_bit(image)
    if image.has_transparency_data:
        top = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", top.size, "white"), top)
    image = image.convert("RGB")
    if turn:
        image = image.transpose(Image.Transpose[turn])
    image.info = {}  # else `save` writes a colour profile and comments from it
    return image


def _eight_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Gray of 16 or 32 bits as 0 to 255. PIL's own conversion cuts at 255, which leaves a 16-bit image all white."""
    values = image.convert("F")
    values.info = {}
    low, high = (float(end) for end in values.getextrema())  # type: ignore[arg-type]
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"has pixels that are no numbers (NaN or infinite); {REPLACE}")
    # The first of these ranges that holds all values is taken to be the file's; where none does, the values' own.
    ranges = {"F": ((1, 255), (255, 1), (65535, 1 / 256)), "I": ((255, 1), (65535, 1 / 256))}
    factors = [factor for top, factor in ranges.get(image.mode, ((65535, 1 / 256),)) if low >= 0 and high <= top]
    scale, shift = (factors[0], 0.0) if factors else (255 / ((high - low) or 1), -low)
    return values.point(lambda value: value * scale + shift * scale).convert("L")


def _scaled(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The largest size of the same shape within `pixels`; rounding never makes it narrower than MAX_RATIO allows."""
    factor = math.sqrt(pixels / (width * height))
    short = max(1, int(min(width, height) * factor))
    long = max(short, min(int(max(width, height) * factor), short * MAX_RATIO, pixels // short))
    return (long, short) if width >= height else (short, long)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def blank(side: int) -> PIL.Image.Image:
    """A grey image."""
    from PIL import Image

    return Image.new("RGB", (side, side), (128, 128, 128))
