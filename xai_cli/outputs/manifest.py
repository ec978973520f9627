"""The manifest of a run: one line of ASCII JSON per image, method and target, only ever appended."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SCHEMA = 1

Row = dict[str, Any]


class ManifestWriter:
    """Appends rows to a manifest; each is in the file, whole, when `append` returns.

    One writer per file: appending is not atomic between machines on a network file system.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Readable too, to see whether the last line is torn; a symlink in the manifest's place is refused.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o666)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, after ending the line that a killed run or a full disk may have left torn.

        Raises:
            ValueError: if a number is NaN or infinite, which JSON cannot say.
            OSError: if the row could not be written whole.
        """
        # ASCII escapes, because a name that is not UTF-8 (surrogate escapes) has no UTF-8 form but has a JSON one.
        line = json.dumps({"schema": SCHEMA, **row}, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        data = f"{self._end_of_torn_line()}{line}\n".encode("ascii")
        if os.write(self._descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, "the manifest's last row is torn; free some space and resume", str(self._path))

    def _end_of_torn_line(self) -> str:
        size = os.fstat(self._descriptor).st_size
        return "\n" if size and os.pread(self._descriptor, 1, size - 1) != b"\n" else ""


def read_manifest(path: Path) -> Iterator[Row]:
    """Yield the rows of a manifest in the order in which they were written.

    A line that is not a JSON object is what a killed run left of a row: it is skipped, and resuming does it again.
    """
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def latest_rows(path: Path) -> list[Row]:
    """Return the rows that count: the last one of each key, method and target index, in the order of writing.

    A failure before the method or the target was known has none of its own, and is outdated by any later row of the
    same key, or the same key and method.
    """
    latest: dict[tuple[Any, Any, Any], Row] = {}
    for row in read_manifest(path):
        key, method, target = row.get("key"), row.get("method"), (row.get("target") or {}).get("index")
        for outdated in ((key, None, None), (key, method, None), (key, method, target)):
            latest.pop(outdated, None)
        latest[key, method, target] = row
    return list(latest.values())
