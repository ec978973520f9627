"""The names that a user gives become the pictures of a run: found lazily, each once, each under a key of its own."""

from __future__ import annotations

import glob
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import IO

# HEIC is listed although it cannot be decoded: a photo that gets an error is better than one that is silently left out.
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".avifs", ".ico", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".heic", ".heif"),
    )
)

_SKIPPED = frozenset({"Thumbs.db", "@eaDir"})


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One picture: `key`, its relative path with `/` and its whole name, names the outputs; `path` is where it lies."""

    key: str
    path: Path


def find_images(
    inputs: Sequence[str], *, files_from: str | None = None, null: bool = False, skip: Path | None = None
) -> Iterator[ImageRef]:
    """The pictures that `inputs` and then the list `files_from` name, in order, one at a time, each file once.

    An input is a file (whatever its extension, and also if it is missing: decoding reports it), a folder (searched
    recursively in the order of its keys for `EXTENSIONS`), a glob pattern where no such path exists, or `-`: names on
    standard input. A list holds one file or folder per line, or NUL-separated with `null`; `-` is standard input.
    Not searched are hidden entries, linked folders (but `**` follows links, as Python's glob does), `skip` (the run's
    own output) and any folder that holds a `run.json` and a `manifest.jsonl`.

    Keys: in a folder the path below it, else the path as typed without root and leading `..`. A key that equals an
    earlier one (case and Unicode form aside) but is another file gets `~` and eight hexadecimal digits of its absolute
    path's BLAKE2b digest before its last extension: `cat.jpg`, `cat~1f0c55aa.jpg`.
    """
    is_output = _output_test(skip)
    paths: set[bytes] = set()
    keys: set[bytes] = set()
    for key, path in _candidates(inputs, files_from, null, is_output):
        location = os.fsencode(path)
        if not _is_new(location, paths):
            continue
        if not _is_new(_folded(key), keys):
            stem, extension = os.path.splitext(key)
            key = f"{stem}~{blake2b(location, digest_size=4).hexdigest()}{extension}"
            keys.add(_digest(_folded(key)))
        yield ImageRef(key, Path(path))


def _candidates(
    inputs: Sequence[str], files_from: str | None, null: bool, is_output: Callable[[str], bool]
) -> Iterator[tuple[str, str]]:
    """(key, absolute path) of everything found, duplicates included."""
    for name in inputs:
        if name == "-":
            names = _listed("-", null)
        elif not os.path.lexists(name) and any(sign in name for sign in "*?["):
            names = _matches(name, is_output)
        else:
            names = iter((name,))
        for each in names:
            yield from _named(each, is_output)
    if files_from is not None:
        for each in _listed(files_from, null):
            yield from _named(each, is_output)


def _named(name: str, is_output: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    path = _absolute(name)
    if not os.path.isdir(name):
        yield _typed_key(name), path
        return
    for key in _walk(path, is_output):
        # A folder that cannot be listed comes back as itself, so that it becomes an error of the run and not silence.
        yield (key, os.path.join(path, key)) if key else (_typed_key(name), path)


def _matches(pattern: str, is_output: Callable[[str], bool]) -> Iterator[str]:
    """Sorted matches, or the pattern itself where nothing matches: it is then reported as a missing file."""
    hits = sorted(glob.glob(pattern, recursive=True))
    for hit in hits or [pattern]:
        inside_output = any(is_output(str(folder)) for folder in Path(hit).parents)
        # `**` matches folders and also what is in them
        if not inside_output and not ("**" in pattern and os.path.isdir(hit)):
            yield hit


def _walk(root: str, is_output: Callable[[str], bool]) -> Iterator[str]:
    """Sorted paths, relative and with `/`, of the pictures below `root` and of folders that cannot be listed."""
    pending = [""]
    while pending:
        name = pending.pop()
        folder = os.path.join(root, name)
        if name and not name.endswith("/"):
            yield name
        elif not is_output(folder):
            try:
                pending += [name + entry for entry in reversed(_entries(folder))]
            except OSError:
                yield name.removesuffix("/")


def _entries(folder: str) -> list[str]:
    """Sorted names of pictures and sub-folders; these end in `/`, so that all keys come in the order of strings."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False):
                names.append(entry.name + "/")
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and not entry.is_dir():
                names.append(entry.name)
    return sorted(names)


def _output_test(skip: Path | None) -> Callable[[str], bool]:
    """Whether a folder is `skip` or the output of some run."""
    own = None if skip is None else os.path.realpath(skip)

    @lru_cache(1024)  # a glob asks again for every file
    def is_output(folder: str) -> bool:
        if own is not None and os.path.realpath(folder) == own:
            return True
        return all(os.path.isfile(os.path.join(folder, name)) for name in ("run.json", "manifest.jsonl"))

    return is_output


def _listed(source: str, null: bool) -> Iterator[str]:
    """The names in a list, read as they are needed, so that an endless list can be followed."""
    with _opened(source) as stream:
        for raw in _split_at_nul(stream) if null else _split_lines(stream):
            yield os.fsdecode(raw)


def _opened(source: str) -> nullcontext[IO[bytes]] | IO[bytes]:
    if source != "-":
        return open(source, "rb")
    if sys.stdin is None:
        raise ValueError("names should come from standard input, which is closed; pipe a list into it or name a file")
    return nullcontext(sys.stdin.buffer)


def _split_lines(stream: IO[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(stream):
        if b"\0" in line:
            raise ValueError("the list should have one name per line, but its names end in NUL; read it with --null")
        name = line.removesuffix(b"\n").removesuffix(b"\r")
        name = name.removeprefix(b"\xef\xbb\xbf") if number == 0 else name
        if name.strip():
            yield name


def _split_at_nul(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while chunk := stream.read1(65536):  # type: ignore[attr-defined]  # `read` would wait for a whole chunk
        *names, rest = (rest + chunk).split(b"\0")
        yield from filter(None, names)
    if rest:
        yield rest


def _absolute(name: str) -> str:
    # `..` after a linked folder is not the folder before it, so only then ask the file system
    parts = name.replace(os.sep, "/").split("/")
    return os.path.realpath(name) if ".." in parts else os.path.abspath(name)


def _typed_key(name: str) -> str:
    rest = os.path.splitdrive(os.path.normpath(name))[1].replace(os.sep, "/")
    return "/".join(part for part in rest.split("/") if part not in ("", ".", "..")) or "_"


def _folded(key: str) -> bytes:
    return unicodedata.normalize("NFC", key).casefold().encode("utf-8", "surrogatepass")


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()  # a million names cost two sets of 8-byte strings


def _is_new(data: bytes, seen: set[bytes]) -> bool:
    digest = _digest(data)
    known = digest in seen
    seen.add(digest)
    return not known
