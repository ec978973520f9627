"""Where a result is written, and how: paths that cannot collide or escape, arrays as NPY, files whole or absent."""

from __future__ import annotations

import os
import secrets
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

    The bytes go to a hidden `.*.tmp` file in the same folder, which then takes the name. A symlink of that name is
    replaced, not followed. This is safe against a killed process, not against a power cut (no fsync).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    except ValueError as error:
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
    path = PurePosixPath(method) / key
    ending = f".{target_suffix}.{extension}" if target_suffix else f".{extension}"
    if len(os.fsencode(path.name + ending)) > LONGEST_NAME:
        ending = f"~{blake2b(os.fsencode(key), digest_size=4).hexdigest()}{ending}"
    name = path.name
    while len(os.fsencode(name + ending)) > LONGEST_NAME:
        name = name[:-1]
    return path.with_name(name + ending)


def resolve_inside(out: Path, relative: PurePosixPath) -> Path:
    """Return the path of a result in the run folder.

    Raises:
        ValueError: if it would land anywhere else: by an absolute path, by `..`, or by a folder that is a symlink.
    """
    path = out / relative
    if relative.is_absolute() or ".." in relative.parts or not path.parent.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{str(relative)!r} leads outside the output folder {str(out)!r}; rename or move the input")
    return path
