"""Whether a run folder is as its manifest says: every file of every picture, and nothing besides."""

from __future__ import annotations

import json
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xai_cli.digests import DigestMap
from xai_cli.outputs.manifest import Row, is_note, is_sound, latest_records, manifests

_CHUNK = 1 << 20
# Also of a line that was torn behind it.
_KEY = re.compile(rb'"key": ?("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: the path of what it is about, and what is wrong with it."""

    path: str
    problem: str


@dataclass(frozen=True)
class Plan:
    """What a run was asked for: these methods for each picture, for so many targets; `drawn_last` if maps are drawn
    when all of them are there.
    """

    methods: tuple[str, ...]
    targets: int
    drawn_last: bool


def read_plan(out: Path) -> Plan:
    """What `run.json` asked for. Raises LookupError if the folder is none of a run."""
    try:
        run = json.loads((out / "run.json").read_bytes())
        options = run["options"]
        how, _, count = str(options["target"]).partition(":")
        methods = tuple(map(str, run["methods"]))
        if any("/" in method or method.startswith(".") for method in methods):
            raise ValueError("a method is a folder of the run, not one elsewhere")
        drawn_last = options.get("scale") == "run" and options.get("render") != "none"
        return Plan(methods, int(count) if how == "top" else 1, drawn_last)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LookupError(
            f"expected a run folder, found none at {out}; give the folder that holds the run.json of a run"
        ) from error


def verify(out: Path, counts: Counter[str]) -> Iterator[Finding]:
    """All that is wrong in a run folder, as it is found; memory stays at some 20 bytes per file and picture.

    Files are read whole; links are not followed. While a run is going on, what it is writing is found as well.

    Args:
        out: the folder.
        counts: gets the number of `pictures` that have results, of their `files`, and of the files that are `wrong`.

    Raises:
        LookupError: the folder is none of a run.
        OSError: a manifest or a folder cannot be read.
    """
    plan, paths = read_plan(out), manifests(out)
    pictures, files = DigestMap(), DigestMap()
    for record in latest_records(paths):
        pictures[_name(record[0]["key"])] = 1
        if not is_sound(record):
            yield Finding(_picture(record[0]), "its rows in the manifest do not say what rows must say")
        explained = [row for row in record if row.get("status") == "ok"]
        counts["pictures"] += bool(explained)
        yield from _miscounted(record, plan)
        for row in explained:
            yield from _wrong_files(out, row, files, counts)
    if plan.drawn_last:
        from xai_cli.engine.drawing import undrawn  # NumPy would be in the way of the help

        yield from (Finding(path, problem) for path, problem in undrawn(out, paths))
    yield from _torn_lines(paths, pictures)
    yield from _strays(out, plan, files)


def _miscounted(record: list[Row], plan: Plan) -> Iterator[Finding]:
    expected = len(plan.methods) * plan.targets if "method" in record[0] else 1
    if len(record) != expected:
        yield Finding(_picture(record[0]), f"rows in the manifest: expected {expected}, found {len(record)}")


@dataclass(frozen=True)
class _Promise:
    """What a row says of one of its files; `shape` is that of the map, (h, w)."""

    kind: str
    path: str
    size: int
    crc32: str
    shape: tuple[int, int]


def _promises(row: Row) -> list[_Promise]:
    width, height = row["geometry"]["map"]
    return [
        _Promise(kind, str(row["files"][kind]), row["bytes"][kind], row["crc32"][kind], (height, width))
        for kind in sorted({"npy", *row["files"]})
    ]


def _wrong_files(out: Path, row: Row, files: DigestMap, counts: Counter[str]) -> Iterator[Finding]:
    """What is wrong with the files of a row, which are entered into `files`."""
    try:
        promises = _promises(row)
    except (KeyError, TypeError, ValueError):
        yield Finding(_picture(row), "its row in the manifest does not say what its files are")
        return
    for promise in promises:
        files[_name(promise.path)] = 1
        counts["files"] += 1
        if problem := _problem(out, promise):
            counts["wrong"] += 1
            yield Finding(os.path.join(out, promise.path), problem)


def _problem(out: Path, promise: _Promise) -> str | None:
    from xai_cli.outputs.files import resolve_inside  # NumPy would be in the way of the help

    try:
        path = resolve_inside(out, PurePosixPath(promise.path))
        status = path.lstat()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except (ValueError, RuntimeError):  # a name that no file can have; a circle of links
        return "is no path inside the run folder"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_size != promise.size:
        return f"expected {promise.size} bytes, found {status.st_size}"
    try:
        if (found := _crc32(path)) != promise.crc32:
            return f"its content has changed: expected the CRC-32 {promise.crc32}, found {found}"
        return _map_problem(path, promise.shape) if promise.kind == "npy" else _picture_problem(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _map_problem(path: Path, shape: tuple[int, int]) -> str | None:
    import numpy as np

    from xai_cli.outputs.files import read_array

    try:
        relevance = read_array(path)
    except ValueError:
        return "is not a whole NPY file of numbers"
    if relevance.dtype != np.float32 or relevance.shape != shape:
        return f"expected float32 of shape {shape}, found {relevance.dtype} of shape {relevance.shape}"
    return None if np.isfinite(relevance).all() else "holds numbers that are NaN or infinite"


def _picture_problem(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as picture:
            picture.verify()
    # Pillow calls it a syntax error when a chunk does not match its own checksum.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "is not a whole PNG"
    return None


def _torn_lines(paths: Iterable[Path], pictures: DigestMap) -> Iterator[Finding]:
    """Lines of pictures that have no whole record: what a killed run began and no later one made again."""
    for path in paths:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if is_note(line):
                    continue
                key = _key(line)
                if key is None or _name(key) not in pictures:
                    yield Finding(str(path), f"line {number} is of no whole record")


def _key(line: bytes) -> str | None:
    match = _KEY.search(line)
    try:
        return json.loads(match[1]) if match else None
    except ValueError:
        return None


def _strays(out: Path, plan: Plan, files: DigestMap) -> Iterator[Finding]:
    """Files among the results that no record names, and those that a killed run left half-written."""
    root = os.path.join(out, "")
    folders = [f"{root}{method}" for method in plan.methods]
    while folders:
        folder = folders.pop()
        if not stat.S_ISDIR(_mode(folder)):
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.name.startswith(".") and entry.name.endswith(".tmp"):
                    yield Finding(entry.path, "was left half-written")
                elif entry.name.endswith((".npy", ".png")) and _name(entry.path.removeprefix(root)) not in files:
                    yield Finding(entry.path, "is named by no record that counts")


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except (OSError, ValueError):
        return 0


def _picture(row: Row) -> str:
    return str(row.get("path", row["key"]))


def _name(text: str) -> bytes:
    return str(text).encode("utf-8", "surrogatepass")
