"""Where a result is written, and how: paths that cannot collide or escape, arrays as NPY, files whole or absent."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

LONGEST_NAME = 255
"""The most bytes that the usual file systems allow in one component of a path."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that its name only ever holds a whole one; parents are made.

    The bytes go to the hidden file `temporary_path` in the same folder, which then takes the name. A symlink of that
    name is replaced, not followed. This is safe against a killed process, not against a power cut (no fsync).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        # A process killed in here leaves the file behind; the next attempt at the same result takes it away.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process is inside for the same folder, if its file system knows locks; it is made."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Where a file is written before it takes its name: a hidden `.*.tmp`, the same at every attempt."""
    return path.with_name(f".{blake2b(os.fsencode(path.name), digest_size=8).hexdigest()}.tmp")


def array_bytes(relevance: NDArray[np.floating[Any]]) -> bytes:
    """Return the NPY file of a map: little-endian float32, C order, never pickled."""
    buffer = BytesIO()
    npy.write_array(buffer, np.ascontiguousarray(relevance, dtype="<f4"), allow_pickle=False)
    return buffer.getvalue()


def read_array(path: Path) -> NDArray[Any]:
    """Return the array of an NPY file, which is never unpickled.

    Raises:
        ValueError: if the file is no NPY, holds Python objects, or is shorter than its header says.
    """
    try:
        # Mapped first: a header that claims more than the file holds fails here, before memory is asked for.
        return np.array(npy.open_memmap(path, mode="r"))
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header as Python, and damaged ones fail in any way that Python knows
        raise ValueError(f"{path} is not a whole NPY file of numbers ({error}); write it again") from error


def output_path(method: str, key: str, target_suffix: str, extension: str) -> PurePosixPath:
    """Return the path of one result inside the run folder: `<method>/<key>.npy`, `<method>/<key>.281.npy`.

    A pure function of the picture's whole relative path, so a shell loop can compute it. Only where the last component
    would pass 255 bytes is it cut, and gets `~` and 8 hex digits of the key's BLAKE2b instead of its end.

    Args:
        method: the folder.
        key: the picture's path relative to the input folder, with its extension.
        target_suffix: the target's index where a picture has several, else empty.
        extension: `npy`, `png`.
    """
    path = PurePosixPath(method) / _folders_apart(PurePosixPath(key))
    ending = f".{target_suffix}.{extension}" if target_suffix else f".{extension}"
    if len(os.fsencode(path.name + ending)) > LONGEST_NAME:
        ending = f"~{blake2b(os.fsencode(key), digest_size=4).hexdigest()}{ending}"
    name = path.name
    while len(os.fsencode(name + ending)) > LONGEST_NAME:
        name = name[:-1]
    return path.with_name(name + ending)


def _folders_apart(key: PurePosixPath) -> PurePosixPath:
    """The key, with a mark at folders that have the name of a result: beside `a.jpg` may lie `a.jpg.npy/b.jpg`."""
    marked = (
        f"{part}~{blake2b(os.fsencode(part), digest_size=4).hexdigest()}"
        if part.lower().endswith((".npy", ".png"))
        else part
        for part in key.parts[:-1]
    )
    return PurePosixPath(*marked, key.name)


def resolve_inside(out: Path, relative: PurePosixPath) -> Path:
    """Return the path of a result in the run folder.

    Raises:
        ValueError: if it would land anywhere else: by an absolute path, by `..`, or by a folder that is a symlink,
            be it one of a circle.
    """
    path = out / relative
    inside = Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(out))
    if relative.is_absolute() or ".." in relative.parts or not inside or _is_circle(path.parent):
        raise ValueError(f"{str(relative)!r} leads outside the output folder {str(out)!r}; rename or move the input")
    return path


def _is_circle(folder: Path) -> bool:
    """Whether symlinks lead to themselves; of `Path.resolve` it depends on the version of Python how it tells."""
    try:
        folder.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
