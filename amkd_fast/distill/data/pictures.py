"""Picture files to resident pixels. What is no sound picture of bearable size is refused by name."""

from __future__ import annotations

import io
import os
import stat
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from amkd_fast.distill.errors import UserError
from amkd_fast.distill.settings import Resize

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")  # whatever the suffix says, no other decoder is tried
MOST_BYTES = 64 * 2**20
MOST_PIXELS = 64_000_000
TOO_LARGE = f"the file is larger than {MOST_BYTES // 2**20} MiB"
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # modes that PIL converts to levels
TASK = 16  # pictures that a thread reads before it takes the next ones
AHEAD = 512 * 2**20  # bytes that may wait for whoever takes them
PLACED = 64 * 2**20  # bytes put in their place at once: torch's own threads, once awake, take the readers' time


class Stored(ABC):
    """A picture within a larger file; its text is its name."""

    @abstractmethod
    def content(self) -> bytes:
        """What a file of it would hold."""

    @abstractmethod
    def origin(self) -> bytes:
        """Tells it from any other one, and from what it was before the larger file changed."""


Picture = str | os.PathLike[str] | Stored


def read(paths: Sequence[Picture], size: int, grayscale: bool, resize: Resize = "squash") -> Tensor:
    """Pixels of picture files, in their order.

    A picture is converted to RGB (or grey), then brought to ``size`` x ``size`` bilinearly: ``squash`` does so whatever
    its shape was; ``crop`` brings its shorter side to ``size`` and takes the centre out, rounding as torchvision's
    ``Resize`` and ``CenterCrop`` do. It is turned as its EXIF orientation says, as viewers show it. Of 16 bits the
    upper eight count, as PIL has it for colours. Transparency is dropped: a pixel has the colour that is stored for
    it. Of an animation the first frame counts.

    Args:
        paths: PNG, JPEG, BMP, WebP, PPM or TIFF files, or what stands for one within a larger file.
        size: Height and width.
        grayscale: Grey (one channel) instead of RGB (three).
        resize: ``squash`` or ``crop``.

    Returns:
        uint8 [N, C, size, size].

    Raises:
        UserError: Names the first file that is missing, unreadable, empty, broken, truncated, of another format,
            floating-point, or larger than 64 MiB or 64 megapixels. The latter is found in its header, before anything
            is decoded.
    """
    channels, done = 1 if grayscale else 3, 0
    pixels = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; a bomb is refused by our own, lower limit
        for part in blocks(paths, size, grayscale, resize):
            pixels[done : done + len(part)] = part
            done += len(part)
    return pixels


def blocks(paths: Sequence[Picture], size: int, grayscale: bool, resize: Resize = "squash") -> Iterator[Tensor]:
    """The same, some pictures at a time; PIL's warnings come through.

    Yields:
        uint8 [n, C, size, size], not contiguous.
    """
    from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401 - registers what preinit leaves out

    Image.preinit()
    mode, channels = ("L", 1) if grayscale else ("RGB", 3)

    def some(start: int) -> bytes:
        return b"".join(_picture(path, size, mode, resize) for path in paths[start : start + TASK])

    def placed(flat: bytearray) -> Tensor:
        return torch.frombuffer(flat, dtype=torch.uint8).view(-1, size, size, channels).permute(0, 3, 1, 2)

    ahead = max(1, AHEAD // (TASK * size * size * channels)) * TASK
    with ThreadPoolExecutor(_threads()) as pool:
        for first in range(0, len(paths), ahead):
            waiting = bytearray()
            for flat in pool.map(some, range(first, min(first + ahead, len(paths)), TASK)):
                waiting += flat
                if len(waiting) >= PLACED:
                    yield placed(waiting)
                    waiting = bytearray()
            if waiting:
                yield placed(waiting)


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 16)


def _picture(path: Picture, size: int, mode: str, resize: Resize) -> bytes:
    from PIL import Image, UnidentifiedImageError

    try:
        encoded = path.content() if isinstance(path, Stored) else content(path)
        if len(encoded) > MOST_BYTES:
            raise ValueError(TOO_LARGE)
        if not encoded:
            raise ValueError("the file is empty")
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} are more than {MOST_PIXELS // 1_000_000} megapixels")
            return _fitted(picture, size, mode, resize).tobytes()
    except UnidentifiedImageError:
        raise refusal(path, f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from None
    except Image.DecompressionBombError:
        raise refusal(path, f"more than {MOST_PIXELS // 1_000_000} megapixels") from None
    except OSError as error:
        raise refusal(path, error.strerror or error) from error
    except Exception as error:  # a decoder that stumbles over a broken file raises whatever it stumbled into
        raise refusal(path, error) from error


def refusal(path: Picture, reason: object) -> UserError:
    """What says that a picture cannot be read, and why."""
    return UserError(f"--data: cannot read the picture {path}: {' '.join(str(reason).split())}")


def content(path: str | os.PathLike[str]) -> bytes:
    """Of a picture file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file, or too large.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):  # a pipe would keep us waiting
        raise ValueError("no file")
    if about.st_size > MOST_BYTES:
        raise ValueError(TOO_LARGE)
    with open(path, "rb", buffering=0) as file:
        return file.read(about.st_size)


def _fitted(picture: Any, size: int, mode: str, resize: Resize) -> Any:
    from PIL import Image

    picture = _turned(_in_eight_bits(picture))
    if picture.mode != mode:
        picture = picture.convert(mode)
    short = min(picture.size)
    width, height = (int(size * side / short) if resize == "crop" else size for side in picture.size)
    if width * height > max(MOST_PIXELS, size * size):
        raise ValueError(f"cropped it would be {width} x {height}, more than {MOST_PIXELS // 1_000_000} megapixels")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) != (size, size):
        left, top = round((width - size) / 2), round((height - size) / 2)
        picture = picture.crop((left, top, left + size, top + size))
    return picture


def _in_eight_bits(picture: Any) -> Any:
    """16-bit grey in levels; PIL's own conversion cuts everything above 255 off."""
    import numpy as np
    from PIL import Image

    if picture.mode in EIGHT_BITS:
        return picture
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        raise ValueError(f"mode {picture.mode}: must be of 8 or 16 bits a channel")
    levels = np.asarray(picture)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"mode {picture.mode}, levels from {levels.min()} to {levels.max()}: must have 16 bits")
    turned = Image.fromarray((levels >> 8).astype(np.uint8))
    turned.info = picture.info
    return turned


def _turned(picture: Any) -> Any:
    from PIL import Image

    picture.load()  # of a TIFF that turns it, and says so
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # metadata that cannot be read say nothing
        return picture
    turn = Image.Transpose
    ways = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return picture.transpose(ways[orientation]) if orientation in ways else picture


def grey(pixels: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] to [N, 1, H, W], rounded as a picture file is: 0.299 R + 0.587 G + 0.114 B (ITU-R 601)."""
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(3, 1, 1)  # in 1/65536
    sums = ((part.int() * weights).sum(1, keepdim=True, dtype=torch.int32) for part in pixels.split(4096))
    return torch.cat([((part + 32768) >> 16).to(torch.uint8) for part in sums])
