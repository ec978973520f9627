"""The pictures of a run with one colour scale per method: drawn when all its maps are there, from what stands in its
folder, so that they are the same however the run came about.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
from numpy.typing import NDArray

from xai_cli.engine.concurrency import in_order
from xai_cli.engine.memory import Budget, share_one_heap
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.outcomes import about
from xai_cli.engine.request import asked_for
from xai_cli.engine.scaling import at_limit, shared_limits
from xai_cli.engine.stopping import Stop
from xai_cli.engine.writing import DISK_FAULTS, Written, committed
from xai_cli.images.decode import opened
from xai_cli.images.geometry import Geometry
from xai_cli.images.sources import ImageRef, stamped
from xai_cli.outputs.files import read_array, resolve_inside, write_atomically
from xai_cli.outputs.manifest import ManifestWriter, Row, is_sound, latest_records, manifest_name
from xai_cli.outputs.pictures import display_copy, draw, encode_png
from xai_cli.sentences import reason

_MEGABYTE = 2**20
_NOT_DRAWN = "not drawn: "
_AGAIN = "give the same command again, or xai merge-manifests"

_State = tuple[str, float | None, bool] | None


@dataclass(frozen=True)
class Drawer:
    """Draws the pictures of a run at the `limits` of its methods; safe to call from several threads.

    A picture is owed if there is none, or if it was drawn at another limit. It is `idle` if none was owed.
    """

    out: Path
    inputs: InputOptions
    drawing: DrawingOptions
    limits: Mapping[str, float]
    memory: Budget
    idle: bool

    @classmethod
    def of(
        cls,
        methods: Sequence[str],
        inputs: InputOptions,
        drawing: DrawingOptions,
        run: RunOptions,
        paths: Sequence[Path],
    ) -> Self:
        """The drawer of the run that has these manifests; the limits are as they are now."""
        # What is drawn how, noted on the way: else a finished run would be read once more to find nothing owed.
        states: set[_State] = set()
        limits = shared_limits(drawing, methods, _noted(filter(is_sound, latest_records(paths)), states))
        idle = not any(_owed(state, limits) for state in states)
        return cls(run.out, inputs, drawing, limits, Budget(run.memory * _MEGABYTE), idle)

    def owes(self, record: list[Row]) -> bool:
        """Whether a picture of the record is owed."""
        return any(map(self._owes, record))

    def undrawn(self, paths: Sequence[Path]) -> Iterator[list[Row]]:
        """Of each picture in these manifests the rows of the maps that are still owed, if there are any."""
        if self.idle:
            return
        for record in filter(is_sound, latest_records(paths)):
            if rows := [*filter(self._owes, record)]:
                yield rows

    def count_undrawn(self, paths: Sequence[Path]) -> tuple[int, int]:
        """How many maps are still owed, and of how many pictures."""
        maps = pictures = 0
        for rows in self.undrawn(paths):
            maps += len(rows)
            pictures += 1
        return maps, pictures

    def draw(self, record: list[Row]) -> Written:
        """Puts the pictures that are owed in place, and returns the rows that say so.

        Where the photo or the map has gone or changed, the row says that there is no picture, and why.
        """
        fault = None
        rows = []
        photo: NDArray[np.uint8] | Exception
        try:
            photo = self._photo(record[0])
        except Exception as error:  # noqa: BLE001  # whatever one file does, the others are still drawn
            photo = error
        for row in record:
            try:
                rows.append(self._drawn(row, photo) if self._owes(row) else row)
            except Exception as error:  # noqa: BLE001
                if isinstance(error, OSError) and error.errno in DISK_FAULTS:
                    rows.append(row)
                    fault = error
                else:
                    rows.append(self._not_drawn(row, reason(error)))
        return Written([] if rows == record else rows, fault)

    def _owes(self, row: Row) -> bool:
        return _owed(_state(row), self.limits)

    def _photo(self, row: Row) -> NDArray[np.uint8]:
        if not is_as_explained(row):
            raise ValueError("its photo has gone, or has changed since it was explained")
        with opened(Path(row["path"]), max_pixels=self.inputs.max_pixels) as file, self.memory.hold(file.memory):
            return display_copy(file.picture(turn=self.inputs.exif).pixels, self.drawing.picture_size)

    def _drawn(self, row: Row, photo: NDArray[np.uint8] | Exception) -> Row:
        if isinstance(photo, Exception):
            raise photo
        start = time.perf_counter()
        path = _picture_path(row)
        relevance = read_array(resolve_inside(self.out, PurePosixPath(row["files"]["npy"])))
        limit = self.limits.get(row["method"])
        picture = draw(
            photo, relevance, Geometry.from_row(row["geometry"]),
            signed=row["signed"], render=self.drawing.render, limit=limit, outlined=bool(row.get("segments")),
        )  # fmt: skip
        data = encode_png(picture)
        write_atomically(resolve_inside(self.out, path), data)
        return {
            **row,
            "files": {**row["files"], "png": str(path)},
            "bytes": {**row["bytes"], "png": len(data)},
            "crc32": {**row["crc32"], "png": f"{zlib.crc32(data):08x}"},
            "scale": {**row["scale"], **at_limit(relevance, limit)},
            "warnings": _other_warnings(row),
            "seconds": {**row["seconds"], "draw": round(time.perf_counter() - start, 4)},
        }

    def _not_drawn(self, row: Row, why: str) -> Row:
        with suppress(ValueError, OSError, LookupError):  # it was drawn of another map, or at another limit
            resolve_inside(self.out, _picture_path(row)).unlink()
        files = ("files", "bytes", "crc32")
        kept = {name: {kind: value for kind, value in row[name].items() if kind != "png"} for name in files}
        scale = {**row["scale"], "limit": None, "clipped": None}
        return {**row, **kept, "scale": scale, "warnings": [*_other_warnings(row), f"{_NOT_DRAWN}{why}"]}


def is_as_explained(row: Row) -> bool:
    """Whether the picture's file is still the one that was explained."""
    return bool(about(stamped(ImageRef(row["key"], Path(row["path"]))))["source"] == row["source"])


def draw_owed(
    drawer: Drawer, paths: Sequence[Path], append: Callable[[list[Row]], list[Row]], workers: int, stop: Stop
) -> Generator[list[Row], None, None]:
    """The records of all pictures that are owed by these manifests, each given when the pictures and rows are in place.

    Raises:
        Interrupted: the end was asked for; what was begun is finished.
        OSError: the output cannot be written.
    """

    def commit(rows: list[Row]) -> list[Row]:
        # A contact sheet in other colours would outlive a death before the new one.
        (drawer.out / "overview.png").unlink(missing_ok=True)
        return append(rows)

    if drawer.idle:
        return
    share_one_heap()
    owed = filter(drawer.owes, filter(is_sound, stop.until(latest_records(paths))))
    with (
        ThreadPoolExecutor(workers) as pool,
        closing(in_order(pool, drawer.draw, owed, ahead=4 * workers, prompt=True)) as results,
    ):
        yield from committed(results, commit)


def draw_again(out: Path, stop: Stop) -> tuple[int, int]:
    """Draws what is owed in a folder in which no run is at work, as `run.json` asked for it.

    Returns how many pictures have new rows, and how many maps could not be drawn.
    Raises as `draw_owed` does, and InUse: a run is at work.
    """
    described = json.loads((out / "run.json").read_text())
    drawing = asked_for(described, DrawingOptions)
    if not drawing.drawn_last:
        return 0, 0
    run = replace(asked_for(described, RunOptions), out=out)  # which may have been moved
    with ManifestWriter(out / manifest_name()) as manifest:
        paths = [out / manifest_name()]
        drawer = Drawer.of([*described["methods"]], asked_for(described, InputOptions), drawing, run, paths)
        drawn = sum(1 for _ in draw_owed(drawer, paths, manifest.append, run.workers, stop))
        return drawn, drawer.count_undrawn(paths)[0]


def undrawn(out: Path, paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Where each map is to be drawn that is owed in a folder, as `run.json` asked for it, and why it is not."""
    described = json.loads((out / "run.json").read_text())
    drawing = asked_for(described, DrawingOptions)
    drawer = Drawer.of([*described["methods"]], InputOptions(), drawing, RunOptions(out=out), paths)
    for row in chain.from_iterable(drawer.undrawn(paths)):
        state = "drawn at an earlier limit" if "png" in row["files"] else "not drawn yet"
        failure = next((each for each in row["warnings"] if each.startswith(_NOT_DRAWN)), None)
        yield str(out / _picture_path(row)), failure or f"{state}; {_AGAIN}"


def _noted(records: Iterable[list[Row]], states: set[_State]) -> Iterator[list[Row]]:
    """The same records; the states of their rows are added to `states`."""
    for record in records:
        states.update(map(_state, record))
        yield record


def _state(row: Row) -> _State:
    """The method of a map, and at which limit it is drawn, if it is; None for what is none."""
    if row["status"] != "ok" or not row.get("scale"):
        return None
    return row["method"], row["scale"].get("limit"), "png" in row["files"]


def _owed(state: _State, limits: Mapping[str, float]) -> bool:
    if state is None:
        return False
    method, limit, is_drawn = state
    return not is_drawn or limit != limits.get(method)


def _picture_path(row: Row) -> PurePosixPath:
    """Where a map is drawn: its picture is named like the array."""
    return PurePosixPath(row["files"]["npy"].removesuffix("npy") + "png")


def _other_warnings(row: Row) -> list[str]:
    return [warning for warning in row["warnings"] if not warning.startswith(_NOT_DRAWN)]
