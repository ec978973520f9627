"""Where a result is written, and how: paths that cannot collide or escape, arrays as NPY, files whole or absent."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

LONGEST_NAME = 255
"""The most bytes that the usual file systems allow in one component of a path."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that its name only ever holds a whole one, as `whole_file` does it."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` when all went well, and is gone when not; parents are made.

    The bytes go to the hidden file `temporary_path` in the same folder. A symlink of that name is replaced, not
    followed. This is safe against a killed process, not against a power cut (no fsync).

    Raises OSError, with the name of `path`, if it cannot be written.
    """
    with _taking_its_name(path) as temporary, temporary.open("xb") as file:
        yield file


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the name `path` as `whole_file` does; nothing but an empty folder is
    replaced.
    """
    with _taking_its_name(path) as temporary:
        temporary.mkdir()
        yield temporary


@contextmanager
def _taking_its_name(path: Path) -> Iterator[Path]:
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A process killed in here leaves this behind; the next attempt at the same result takes it away.
        _remove(temporary)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            _remove(temporary)
        if isinstance(error, OSError) and error.errno and str(error.filename or temporary).startswith(str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


@contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Inside, no other process is inside for the same file or folder, if its file system knows locks; parents are made.

    Held is a hidden file beside it, which is gone afterwards; so it is also known that something can be written there.

    Raises:
        ValueError: another process is inside.
        OSError: nothing can be written beside `path`, which it names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = temporary_path(path).with_suffix(".lock")
    try:
        descriptor = _locked(lock)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    if descriptor is None:
        raise ValueError(f"another process is writing {path}; wait for it, or give another output")
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def _locked(lock: Path) -> int | None:
    """A descriptor of the file, made if need be, that alone is locked; None if another one is."""
    while True:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            return descriptor  # the file system knows no locks
        # Who held it before may have taken the name away between our opening and our locking.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(lock), os.fstat(descriptor)):
                return descriptor
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
