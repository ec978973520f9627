"""Maps become files, and files become manifest rows: array, picture, and a place on the overview."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_cli.engine.checks import is_degenerate, warnings
from xai_cli.engine.options import DrawingOptions
from xai_cli.engine.outcomes import Explained, Failed, Map, Outcome
from xai_cli.images.geometry import Geometry
from xai_cli.outputs.files import array_bytes, output_path, resolve_inside, write_atomically
from xai_cli.outputs.manifest import Row
from xai_cli.outputs.overview import caption
from xai_cli.outputs.pictures import display_copy, draw, encode_png

_CELL = 192


@dataclass(frozen=True)
class Written:
    """What a picture left behind: its manifest rows, and for the first ones of a run a row of the overview."""

    rows: list[Row]
    cells: tuple[str, list[Image.Image | None]] | None = None


@dataclass(frozen=True)
class Writer:
    """Writes the results of one run into `out`; safe to call from several threads."""

    out: Path
    drawing: DrawingOptions

    def write(self, outcome: Outcome) -> Written:
        """Puts all files of a picture in place and returns its rows. Raises OSError if the disk does not take them."""
        if isinstance(outcome, Failed):
            return Written([outcome.as_row()])
        rows = [self._write_map(outcome, each) for each in outcome.maps]
        return Written(rows, self._cells(outcome) if outcome.number < self.drawing.overview else None)

    def _write_map(self, outcome: Explained, made: Map) -> Row:
        start = time.perf_counter()
        picture = outcome.picture
        if not np.isfinite(made.relevance).all():
            return _failed(
                picture.key, made, "attribute", "NonFinite", f"the map of {made.method} holds NaN or infinity"
            )
        files = {"npy": array_bytes(made.relevance)}
        if self.drawing.render != "none":
            files["png"] = encode_png(self._draw(picture.photo, picture.geometry, made, self.drawing.render))
        # The first target's files carry the picture's plain name, so that a script can compute it.
        suffix = str(made.target["index"]) if made.rank else ""
        paths = {kind: output_path(made.method, picture.key, suffix, kind) for kind in files}
        try:
            places = {kind: resolve_inside(self.out, path) for kind, path in paths.items()}
        except ValueError as error:
            return _failed(picture.key, made, "write", "OutsideOutput", str(error))
        for kind, data in files.items():
            write_atomically(places[kind], data)
        checks = {**made.checks, "degenerate": is_degenerate(made.relevance)}
        seconds = {"decode": picture.seconds, "attribute": made.seconds, "write": time.perf_counter() - start}
        return {
            "key": picture.key,
            **_about(made),
            "status": "ok",
            "top": outcome.top,
            "files": {kind: str(path) for kind, path in paths.items()},
            "bytes": {kind: len(data) for kind, data in files.items()},
            "geometry": picture.geometry.as_row(),
            "layer": made.layer,
            "checks": {name: _json_number(value) for name, value in checks.items()},
            "warnings": [*picture.warnings, *warnings(checks)],
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        }

    def _cells(self, outcome: Explained) -> tuple[str, list[Image.Image | None]]:
        first = outcome.maps[0].target
        # Drawn small rather than reduced: neighbouring red and blue would average to grey.
        photo = display_copy(outcome.picture.photo, _CELL)
        cells: list[Image.Image | None] = [Image.fromarray(photo)]
        geometry = outcome.picture.geometry
        cells += [self._draw(photo, geometry, made, "overlay") if np.isfinite(made.relevance).all() else None
                  for made in outcome.maps if made.rank == 0]  # fmt: skip
        return caption(outcome.picture.key, first["name"], first["probability"]), cells

    def _draw(self, photo: NDArray[np.uint8], geometry: Geometry, made: Map, render: str) -> Image.Image:
        percentile = self.drawing.percentile
        return draw(photo, made.relevance, geometry, signed=made.signed, render=render, percentile=percentile)


def _about(made: Map) -> dict[str, Any]:
    return {"method": made.method, "target": dict(made.target)}


def _failed(key: str, made: Map, stage: str, type: str, message: str) -> Row:
    return {**Failed(key, stage, type, message).as_row(), **_about(made)}


def _json_number(value: float | bool) -> float | bool | None:
    """JSON knows no NaN and no infinity: a check without a number is null."""
    return value if isinstance(value, bool) else float(f"{value:.6g}") if math.isfinite(value) else None
