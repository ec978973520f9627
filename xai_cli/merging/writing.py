"""A safetensors file written tensor by tensor, whole or absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xai_cli.outputs.files import whole_file

Kind = tuple[torch.dtype, tuple[int, ...]]

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
}  # fmt: skip


def write_tensors(
    path: Path,
    layout: Mapping[str, Kind],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Callable[[], Mapping[str, str]],
    room: int,
) -> None:
    """Writes a safetensors file so that its name only ever holds a whole one; parents are made.

    The same arguments give the same bytes. A file of that name is replaced at the end; a symlink is not followed.

    Args:
        path: the file.
        layout: type and shape of every tensor.
        tensors: all of them by name, in any order; one at a time is held.
        metadata: asked for when all tensors are written.
        room: the most bytes that the metadata may take, as JSON.

    Raises:
        ValueError: a tensor is missing, comes twice, is not as the layout says or of a type that the format lacks, or
            the metadata needs more room.
        OSError: the file cannot be written; it names it.
    """
    places, size = _places(layout)
    start = _aligned(len(_header(places, {})) + room)
    with whole_file(path) as file:
        missing = dict(layout)
        for name, tensor in tensors:
            _check(name, tensor, missing.pop(name, None))
            file.seek(8 + start + places[name]["data_offsets"][0])
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        if missing:
            raise ValueError(f"{path} would lack {', '.join(list(missing)[:3])} of {len(layout)} tensors")
        header = _header(places, metadata())
        if len(header) > start:
            raise ValueError(f"the metadata of {path} needs {len(header) - start} bytes more than the {room} reserved")
        file.truncate(8 + start + size)
        file.seek(0)
        file.write(start.to_bytes(8, "little") + header.ljust(start))


def _places(layout: Mapping[str, Kind]) -> tuple[dict[str, dict[str, Any]], int]:
    """What the header says of each tensor, and the bytes of all."""
    places, end = dict[str, dict[str, Any]](), 0
    # As the library does it: the widest numbers first, so that each lies where its width divides the offset.
    for name, (dtype, shape) in sorted(layout.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        if dtype not in _NAMES:
            raise ValueError(f"{name} is of type {dtype}, which safetensors cannot hold; convert it first")
        begin, end = end, end + prod(shape) * dtype.itemsize
        places[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    return places, end


def _header(places: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    # Bytes of a path that are no text have no place in JSON.
    text = {key: value.encode("utf-8", "replace").decode() for key, value in {"format": "pt", **metadata}.items()}
    return json.dumps({"__metadata__": text, **places}, separators=(",", ":")).encode()


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def _check(name: str, tensor: Tensor, expected: Kind | None) -> None:
    if expected is None:
        raise ValueError(f"the tensor {name} comes twice, or is not in the layout")
    found = (tensor.dtype, tuple(tensor.shape))
    if found != expected:
        raise ValueError(f"the tensor {name} was announced as {expected}, found {found}")
