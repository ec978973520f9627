"""The names that a user gives become the pictures of a run: found lazily, each once, each under a key of its own."""

from __future__ import annotations

import glob
import heapq
import json
import os
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import IO, Protocol

from xai_cli.digests import DigestMap

# HEIC is listed although it cannot be decoded: a photo that gets an error is better than one that is silently left out.
EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
        *(".avif", ".avifs", ".ico", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".heic", ".heif"),
    )
)

_SKIPPED = frozenset({"Thumbs.db", "@eaDir"})

_RUN, _BLOCK = 32768, 256  # names that are sorted at a time, and names of such a run that are unpacked at a time


class _OutputTest(Protocol):
    def __call__(self, folder: str, named: bool = False) -> bool: ...


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One picture: `key`, its relative path with `/` and its whole name, names the outputs; `path` is where it lies.

    `stamp` is the file's size in bytes and its time of change in nanoseconds: None before `stamped`, and where the file
    cannot be asked.
    """

    key: str
    path: Path
    stamp: tuple[int, int] | None = None


def seed_of(key: str, seed: int = 0) -> int:
    """The seed of a picture, 0 to 2^63 - 1, from its key and the seed of the run alone."""
    salt = seed.to_bytes(8, "little")
    return int.from_bytes(blake2b(os.fsencode(key), digest_size=8, salt=salt).digest(), "little") >> 1


def stamped(image: ImageRef) -> ImageRef:
    """`image` with the stamp that its file, or the one that it links to, has now."""
    try:
        now = os.stat(image.path)
    except (OSError, ValueError):  # ValueError: a name with NUL
        return replace(image, stamp=None)
    return replace(image, stamp=(now.st_size, now.st_mtime_ns))


def find_images(
    inputs: Sequence[str], *, files_from: str | None = None, null: bool = False, skip: Path | None = None
) -> Iterator[ImageRef]:
    """The pictures that `inputs` and then the list `files_from` name, in order, one at a time, each file once.

    An input is a file (whatever its extension, and also if it is missing: decoding reports it), a folder (searched
    recursively in the order of its keys for `EXTENSIONS`), a glob pattern where no such path exists, or `-`: names on
    standard input. A list holds one file or folder per line, or NUL-separated with `null`; `-` is standard input.
    Not searched are hidden entries, linked folders (but `**` follows links, as Python's glob does), what the run itself
    writes into the folder `skip`, and any folder that holds a `run.json` and a `manifest*.jsonl`.

    Keys: in a folder the path below it, else the path as typed without root and leading `..`. A key that equals an
    earlier one (case and Unicode form aside) but is another file, or that ends like the map of a class (`cat.jpg.281`),
    gets `~` and eight hexadecimal digits of its absolute path's BLAKE2b digest before its last extension: `cat.jpg`,
    `cat~1f0c55aa.jpg`.
    """
    is_output = _output_test(skip)
    paths, keys = DigestMap(), DigestMap()
    # One folder alone, the commonest case, holds no path twice and need not remember a million of them.
    alone = files_from is None and len(inputs) == 1 and inputs[0] != "-" and os.path.isdir(inputs[0])
    for key, path in _candidates(inputs, files_from, null, is_output):
        location = os.fsencode(path)
        if not alone and paths.put(location, 1):
            continue
        # `cat.jpg.281`: there the map of `cat.jpg` for class 281 is written.
        taken = key[-1:].isdigit() and os.path.splitext(key)[1][1:].isdigit()
        if taken or keys.put(_folded(key), 1):
            key = _key_apart(key, location, keys)
        yield ImageRef(key, Path(path))


def _key_apart(key: str, location: bytes, keys: DigestMap) -> str:
    """The key marked by a digest of where its file is, and entered into `keys`."""
    stem, extension = os.path.splitext(key)
    # A file may even have the name that is made up here: then the digest is longer.
    for size in range(4, 65, 4):
        key = f"{stem}~{blake2b(location, digest_size=size).hexdigest()}{extension}"
        if not keys.put(_folded(key), 1):
            break
    return key


def _candidates(
    inputs: Sequence[str], files_from: str | None, null: bool, is_output: _OutputTest
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


def _named(name: str, is_output: _OutputTest) -> Iterator[tuple[str, str]]:
    path = _absolute(name)
    if not os.path.isdir(name):
        yield _typed_key(name), path
        return
    below = os.path.join(path, "")
    for key in _walk(below, is_output):
        # A folder that cannot be listed comes back as itself, so that it becomes an error of the run and not silence.
        yield (key, below + key) if key else (_typed_key(name), path)


def _matches(pattern: str, is_output: _OutputTest) -> Iterator[str]:
    """Sorted matches, or the pattern itself where nothing matches: it is then reported as a missing file."""

    @lru_cache(1)  # neighbours mostly share their folder
    def inside_output(folder: str) -> bool:
        return any(is_output(str(each)) for each in (Path(folder), *Path(folder).parents))

    hits = _in_order(glob.iglob(pattern, recursive=True))
    for hit in chain((next(hits, pattern),), hits):
        # `**` matches folders and also what is in them
        if not inside_output(os.path.dirname(hit)) and not ("**" in pattern and os.path.isdir(hit)):
            yield hit


def _walk(root: str, is_output: _OutputTest) -> Iterator[str]:
    """Sorted paths, relative and with `/`, of the pictures below `root` and of folders that cannot be listed."""
    levels = [("", iter(("",)))]  # of each folder on the way down: its path and the names in it that are still to come
    while levels:
        above, names = levels[-1]
        for name in names:
            path = above + name
            if name and name[-1] != "/":
                if above or name != "overview.png" or not is_output(root):
                    yield path
            elif not is_output(root + path, named=not path):
                try:
                    levels.append((path, _in_order(_entries(root + path))))
                except OSError:
                    yield path.removesuffix("/")
                else:
                    break
        else:
            levels.pop()


def _entries(folder: str) -> Iterator[str]:
    """Names of pictures and sub-folders; these end in `/`, so that all keys come in the order of strings."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == "." or name in _SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False):
                yield name + "/"
            elif name[name.rfind(".") :].lower() in EXTENSIONS and not (entry.is_symlink() and os.path.isdir(entry)):
                yield name


def _in_order(names: Iterable[str]) -> Iterator[str]:
    """`sorted(names)`, but packed, and merged as they are asked for: a million take a few MB instead of a hundred."""
    names = iter(names)
    runs = []
    while run := sorted(islice(names, _RUN)):
        runs.append(_unpacked(_packed(run)))
    return heapq.merge(*runs)


def _packed(names: list[str]) -> list[bytes]:
    """`names` in blocks, the last one first. No name holds NUL; lone surrogates stand for bytes outside UTF-8."""
    blocks = ("\0".join(names[at : at + _BLOCK]) for at in range(0, len(names), _BLOCK))
    return [zlib.compress(block.encode("utf-8", "surrogatepass"), 1) for block in blocks][::-1]


def _unpacked(blocks: list[bytes]) -> Iterator[str]:
    while blocks:
        yield from zlib.decompress(blocks.pop()).decode("utf-8", "surrogatepass").split("\0")


def _output_test(skip: Path | None) -> _OutputTest:
    """Whether a folder is `skip` or the output of some run.

    Where `skip` is itself the folder that was `named`, pictures lie beside the output, which is the folders of methods.
    """
    own = None if skip is None else os.path.realpath(skip)

    @lru_cache(1024)  # a pattern asks again, all the way up, for every folder
    def is_output(folder: str, named: bool = False) -> bool:
        if own is not None and os.path.realpath(folder) == own:
            return not named
        if own is not None and os.path.dirname(os.path.realpath(folder)) == own:
            return os.path.basename(os.path.realpath(folder)) in _methods_of(own)
        if not os.path.isfile(os.path.join(folder, "run.json")):
            return False
        return any(glob.iglob("manifest*.jsonl", root_dir=folder))

    return is_output


def _methods_of(run: str) -> Sequence[str]:
    """The folders of results in that of a run."""
    try:
        with open(os.path.join(run, "run.json"), "rb") as file:
            return list(json.load(file)["methods"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


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
    if key.isascii():
        return key.lower().encode("ascii")
    return unicodedata.normalize("NFC", key).casefold().encode("utf-8", "surrogatepass")
