"""Which pictures are being worked on, noted on disk: when a process has died, this tells on which of them it may have
been.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xai_cli.engine.outcomes import about
from xai_cli.images.sources import ImageRef
from xai_cli.outputs.files import write_atomically

_LONGEST = 1000


class Journal:
    """Notes pictures when they are begun; the file exists while pictures are in flight, and after a death."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._flying: dict[str, bytes] = {}
        self._lines = 0
        self._descriptor = -1

    def left(self) -> list[ImageRef]:
        """The pictures that a dead process had begun, some of which it may have finished."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = {}
        for line in lines:
            try:
                image = _image(json.loads(line))
                found[image.key] = image
            except (ValueError, KeyError, TypeError):
                continue  # torn by the death
        return list(found.values())

    def begin(self, *images: ImageRef) -> None:
        """Notes pictures that are about to be read."""
        lines = {image.key: json.dumps(about(image)).encode("ascii") + b"\n" for image in images}
        self._flying |= lines
        # Twice what is in flight: else, of large batches, each picture would have it written anew.
        if self._descriptor < 0 or self._lines > _LONGEST + 2 * len(self._flying):
            self._rewrite()
        else:
            os.write(self._descriptor, b"".join(lines.values()))
            self._lines += len(lines)

    def end(self, key: str) -> None:
        """Forgets a picture that has its record."""
        self._flying.pop(key, None)

    def close(self) -> None:
        """Takes the journal away: whatever was begun was ended, one way or the other."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._path.unlink(missing_ok=True)

    def _rewrite(self) -> None:
        """The file anew with what is in flight, so that it stays small in a long run."""
        write_atomically(self._path, b"".join(self._flying.values()))
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._lines = len(self._flying)


def _image(noted: Mapping[str, Any]) -> ImageRef:
    source = noted["source"]
    stamp = None if source is None else (int(source["bytes"]), int(source["mtime_ns"]))
    return ImageRef(noted["key"], Path(noted["path"]), stamp)
