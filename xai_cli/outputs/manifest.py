"""The manifest of a run: lines of ASCII JSON, only ever appended.

All rows of a picture, one per target and method, are appended at once and are its *record*; each says as
`"part": [i, n]` which of them it is. A record counts only when it is whole, and the last one of a picture outdates
those before it: that is how a killed run is told from a finished one, and a second attempt from the first.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xai_cli.digests import DigestMap

SCHEMA = 1

Row = dict[str, Any]

# File systems without locks answer with one of these.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class InUse(BlockingIOError):  # noqa: N818  # a state of the folder, not a fault
    """Another process writes this manifest."""


class ManifestWriter:
    """Appends records to a manifest; each is in the file, whole, when `append` returns.

    While it is open no other writer is: the file is locked until it is closed or the process dies. `locked` is False on
    a file system that knows no locks.

    Raises:
        InUse: another process has it open.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self.locked = False

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Readable too, to see whether the last line is torn; a symlink in the manifest's place is refused.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o666)
        try:
            self.locked = self._lock()
        except OSError:
            os.close(self._descriptor)
            self._descriptor = -1
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    @property
    def is_open(self) -> bool:
        """Whether rows can be appended."""
        return self._descriptor >= 0

    def append(self, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
        """Writes the record of a picture, and returns its rows as they are written.

        Raises:
            ValueError: if a number is NaN or infinite, which JSON cannot say.
            OSError: if the rows could not be written whole.
        """
        record = [{"schema": SCHEMA, **row, "part": [number, len(rows)]} for number, row in enumerate(rows, 1)]
        data = (self._end_of_torn_line() + "".join(row_line(row) for row in record)).encode("ascii")
        if os.write(self._descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, "the manifest's last row is torn; free some space and resume", str(self._path))
        return record

    def finish(self, pictures: int) -> None:
        """Notes at the end of a shard's manifest that all its pictures have their records."""
        note = {"schema": SCHEMA, "finished": {"pictures": pictures}}
        os.write(self._descriptor, (self._end_of_torn_line() + row_line(note)).encode("ascii"))

    def clear(self) -> None:
        """Takes everything out of the manifest."""
        os.ftruncate(self._descriptor, 0)

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(error.errno, "another run is writing it", str(self._path)) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        # Between opening and locking, another process may have put the file away: it has been joined with others.
        if not os.fstat(self._descriptor).st_nlink:
            raise InUse(errno.EWOULDBLOCK, "another process has just replaced it", str(self._path))
        return True

    def _end_of_torn_line(self) -> str:
        """What ends the line that a killed run or a full disk may have left torn."""
        size = os.fstat(self._descriptor).st_size
        return "\n" if size and os.pread(self._descriptor, 1, size - 1) != b"\n" else ""


def row_line(row: Mapping[str, Any]) -> str:
    """The line of a row, ASCII, because a name that is not UTF-8 (surrogate escapes) has no UTF-8 form."""
    return json.dumps(row, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n"


def manifest_name(shard: tuple[int, int] | None = None) -> str:
    """The file name of a run's manifest, or of one of its shards (i, n): `manifest-03-of-16.jsonl`."""
    if shard is None:
        return "manifest.jsonl"
    index, shards = shard
    return f"manifest-{index:0{len(str(shards))}}-of-{shards}.jsonl"


def manifests(out: Path) -> list[Path]:
    """The manifests of a run folder: first the one of the whole run, then those of its shards, in order."""
    whole = [path for path in (out / "manifest.jsonl",) if path.is_file()]
    return whole + sorted(path for path in out.glob("manifest-*-of-*.jsonl") if shard_of(path))


def shard_of(path: Path) -> tuple[int, int] | None:
    """Which shard (i, n) a manifest is of, by its name."""
    match = re.fullmatch(r"manifest-(\d+)-of-(\d+)\.jsonl", path.name)
    return (int(match[1]), int(match[2])) if match else None


def is_finished(path: Path) -> bool:
    """Whether the last line of a shard's manifest notes that it is finished."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 200))
            return is_note(file.read().splitlines()[-1])
    except IndexError:  # it is empty
        return False


def is_note(line: bytes) -> bool:
    """Whether a line of a manifest is no row but the note that a shard is finished."""
    return b'"finished":' in line and "finished" in _json_object(line)


def read_records(path: Path) -> Iterator[list[Row]]:
    """The whole records of a manifest, in the order in which they were written.

    A line that is not a JSON object is what a killed run left of a row: its record is not whole, and resuming makes it
    again.
    """
    record: list[Row] = []
    with path.open("rb") as lines:
        for line in lines:
            row = _parsed(line)
            number, parts = row.get("part", (0, 0))
            if number != len(record) + 1 or (record and row["key"] != record[0]["key"]):
                record = []
            if number == len(record) + 1:
                record.append(row)
                if number == parts:
                    yield record
                    record = []


def latest_records(paths: Sequence[Path]) -> Iterator[list[Row]]:
    """The records that count: of each picture the last one in these manifests.

    They are read twice, because a picture's last record is known only at the end and a million records are too many to
    keep.
    """
    last = DigestMap("Q")
    for number, record in zip(count(1), _all_records(paths), strict=False):
        last[_name(record)] = number
    for number, record in zip(count(1), _all_records(paths), strict=False):
        if last.get(_name(record)) == number:
            yield record


def _all_records(paths: Sequence[Path]) -> Iterator[list[Row]]:
    for path in paths:
        yield from read_records(path)


def _name(record: list[Row]) -> bytes:
    return str(record[0]["key"]).encode("utf-8", "surrogatepass")


def is_sound(record: list[Row]) -> bool:
    """Whether the rows of a record say what every reader relies on; a manifest may have been edited by hand."""
    try:
        return all(_is_sound(row) for row in record)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _is_sound(row: Row) -> bool:
    source = row["source"]
    if source is not None and not all(isinstance(source[each], int) for each in ("bytes", "mtime_ns")):
        return False
    if row["status"] == "error":
        return True
    scale = row.get("scale") or {}
    values = [*row["checks"].values(), scale.get("limit"), scale.get("own")]
    numbers = all(value is None or isinstance(value, int | float) for value in values)
    return row["status"] == "ok" and row["files"].keys() <= row["bytes"].keys() and numbers


def _parsed(line: bytes) -> Row:
    row = _json_object(line)
    return row if "key" in row and _is_part(row.get("part")) else {}


def _is_part(part: Any) -> bool:
    return isinstance(part, list) and len(part) == 2 and all(isinstance(number, int) for number in part)


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
