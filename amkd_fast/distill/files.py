"""Files that are either whole or not there, and JSON without anything that strict JSON lacks."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from amkd_fast.distill.errors import UserError


def write_atomic(path: Path | str, content: bytes | memoryview | str) -> None:
    """Write a file so that a reader, a crash or a full disk sees the old content or the new, never half of one."""
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")  # a file's name need not be Unicode
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A file to be written, which takes the place of ``path`` when the block ends without an error."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # name the file, not its temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def check_free(file: str, option: str, overwrite: bool) -> None:
    """Find out before the work whether its result can be kept.

    Args:
        file: Where it is to go.
        option: What named it; it begins the message.
        overwrite: A file that is there may be replaced.

    Raises:
        UserError: It cannot be written there.
    """
    path = Path(file)
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder, not a file")
    if path.exists() and not overwrite:
        raise UserError(f"{option} {path}: exists; choose another file or give --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} {path}: the folder {path.parent} cannot be written to")


def read_json(path: Path, option: str) -> Any:
    """The content of a JSON file of ours."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        raise UserError(f"{option}: {path} is missing or damaged ({reason})") from error


def to_json(result: dict[str, Any]) -> str:
    """Strict JSON: what is not a finite number becomes null."""
    return json.dumps(finite(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same value with None for every number in it that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
