"""Maps become files, and files become manifest rows: array and picture, each whole or absent."""

from __future__ import annotations

import errno
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xai_cli.engine.checks import is_degenerate, warnings
from xai_cli.engine.options import DrawingOptions
from xai_cli.engine.outcomes import Explained, Failed, Loaded, Map, Outcome, about
from xai_cli.engine.scaling import scale_of
from xai_cli.outputs.files import array_bytes, output_path, resolve_inside, write_atomically
from xai_cli.outputs.manifest import Row
from xai_cli.outputs.pictures import draw, encode_png
from xai_cli.sentences import reason

# These say that a name cannot be had, for good.
_NAME_FAULTS = {
    errno.ENAMETOOLONG: "NameTooLong",
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "NameTaken"),
    **dict.fromkeys((errno.ELOOP, errno.EILSEQ, errno.EINVAL), "NameRefused"),
}
# And these that the next picture will fare no better: the disk is full, broken or read-only, or too much is open.
DISK_FAULTS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.EMFILE, errno.ENFILE)
}


@dataclass(frozen=True)
class Written:
    """The rows of a picture, none if there is nothing new to say of it, and the fault of the disk that kept some of its
    files from being written.
    """

    rows: list[Row]
    fault: OSError | None = None


def committed(results: Iterable[Written], commit: Callable[[list[Row]], list[Row]]) -> Iterator[list[Row]]:
    """The records of what was written, each as `commit` gives it. Raises OSError when the disk takes nothing more."""
    faults = 0
    for written in results:
        if written.rows:
            yield commit(written.rows)
        faults = faults + 1 if written.fault else 0
        # One file may be at odds with the disk; two in a row are the disk.
        if faults == 2 and written.fault:
            raise written.fault


@dataclass(frozen=True)
class Writer:
    """Writes the results of one run into `out`; safe to call from several threads."""

    out: Path
    drawing: DrawingOptions

    def write(self, outcome: Outcome) -> Written:
        """Puts all files of a picture in place and returns its rows."""
        if isinstance(outcome, Failed):
            return Written([outcome.as_row()])
        rows: list[Row] = []
        fault = None
        for made in outcome.maps:
            if isinstance(made, Failed):
                rows.append(made.as_row())
                continue
            try:
                rows.append(self._write_map(outcome, made))
            except OSError as error:
                kind = _NAME_FAULTS.get(error.errno or 0, type(error).__name__)
                message = f"its result cannot be written: {error.strerror or error}"
                rows.append(_failed(outcome, made, kind, message, transient=error.errno not in _NAME_FAULTS))
                fault = error if error.errno in DISK_FAULTS else fault
            except Exception as error:  # noqa: BLE001  # whatever one map does, the others are still written
                short = isinstance(error, MemoryError)
                rows.append(_failed(outcome, made, type(error).__name__, reason(error), transient=short))
        return Written(rows, fault)

    def _write_map(self, outcome: Explained, made: Map) -> Row:
        start = time.perf_counter()
        picture = outcome.picture
        # The first target's files carry the picture's plain name, so that a script can compute it.
        suffix = str(made.target["index"]) if made.rank else ""
        paths = {kind: output_path(made.method, picture.image.key, suffix, kind) for kind in self.drawing.kinds}
        try:
            places = {kind: resolve_inside(self.out, path) for kind, path in paths.items()}
        except ValueError as error:
            return _failed(outcome, made, "OutsideOutput", str(error))
        scale = scale_of(made.relevance, self.drawing, segmented=made.segments is not None)
        files = {"npy": array_bytes(made.relevance)}
        if scale and "png" in paths and not self.drawing.drawn_last:
            files["png"] = self._png(picture, made, scale["limit"])
        for kind, place in places.items():
            if kind in files:
                write_atomically(place, files[kind])
            else:
                place.unlink(missing_ok=True)  # what was drawn of an earlier map; this one is drawn at the end
        checks = {**made.checks, "degenerate": is_degenerate(made.relevance)}
        seconds = {"decode": picture.seconds, "attribute": made.seconds, "write": time.perf_counter() - start}
        return {
            **about(picture.image),
            "method": made.method,
            "target": dict(made.target),
            "status": "ok",
            "top": outcome.top,
            "files": {kind: str(paths[kind]) for kind in files},
            "bytes": {kind: len(data) for kind, data in files.items()},
            "crc32": {kind: f"{zlib.crc32(data):08x}" for kind, data in files.items()},
            "signed": made.signed,
            "scale": scale,
            "geometry": picture.geometry.as_row(),
            "layer": made.layer,
            "rule": made.rule,
            "checks": {name: _json_value(value) for name, value in checks.items()},
            "segments": {name: _json_value(values) for name, values in (made.segments or {}).items()} or None,
            "warnings": [*picture.warnings, *made.notes, *warnings(made.method, checks)],
            "batch": dict(made.batch),
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }

    def _png(self, picture: Loaded, made: Map, limit: float | None) -> bytes:
        """The map drawn on its photo."""
        image = draw(
            picture.photo, made.relevance, picture.geometry,
            signed=made.signed, render=self.drawing.render, limit=limit, outlined=bool(made.segments),
        )  # fmt: skip
        return encode_png(image)


def _failed(outcome: Explained, made: Map, type: str, message: str, *, transient: bool = False) -> Row:
    image = outcome.picture.image
    return Failed(image, "write", type, message, transient, method=made.method, target=made.target).as_row()


def _json_value(value: Any) -> Any:
    """The value, or list of them, rounded. JSON knows no NaN and no infinity: what should be a number and is none is
    null.
    """
    if isinstance(value, list):
        return [_json_value(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
