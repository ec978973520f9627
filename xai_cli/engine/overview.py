"""The contact sheet of a run, made from what stands in its folder, so that a run that went on has the same one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xai_cli.engine.drawing import is_as_explained
from xai_cli.engine.options import DrawingOptions, InputOptions
from xai_cli.engine.request import asked_for
from xai_cli.engine.scaling import shared_limits
from xai_cli.images.decode import Broken, decode
from xai_cli.images.geometry import Geometry
from xai_cli.outputs.files import read_array, write_atomically
from xai_cli.outputs.manifest import Row, is_sound, latest_records, manifests
from xai_cli.outputs.overview import caption, contact_sheet
from xai_cli.outputs.pictures import display_copy, draw, encode_png

_CELL = 192


def write_overview(
    out: Path, records: Sequence[list[Row]], methods: Sequence[str], inputs: InputOptions, drawing: DrawingOptions
) -> None:
    """Writes `overview.png`: a row for each of the first records that hold a map, photo and first target's maps.

    Colours mean what they mean in the pictures of the maps; a limit that the maps of a method share is in its title.
    """
    limits = shared_limits(drawing, methods, filter(is_sound, latest_records(manifests(out))))
    rows: list[tuple[str, list[Image.Image | None]]] = []
    for record in records:
        cells = _cells(out, record, methods, inputs, drawing, limits) if len(rows) < drawing.overview else None
        if cells:
            rows.append(cells)
    if rows:
        signed = {row["method"] for record in records for row in record if row.get("signed")}
        shared = {method: f"{'±' * (method in signed)}{limit:.3g}" for method, limit in limits.items()}
        titles = ["photo", *(f"{method} {shared.get(method, '')}".rstrip() for method in methods)]
        write_atomically(out / "overview.png", encode_png(contact_sheet(rows, titles)))


def overview_again(out: Path) -> None:
    """Writes `overview.png` anew, as `run.json` asked for it, from the records that come first in the manifests."""
    described = json.loads((out / "run.json").read_text())
    inputs, drawing = asked_for(described, InputOptions), asked_for(described, DrawingOptions)
    # A few of them may have failed.
    first = islice(filter(is_sound, latest_records(manifests(out))), 4 * drawing.overview)
    write_overview(out, list(first), list(described["methods"]), inputs, drawing)


def _cells(
    out: Path,
    record: list[Row],
    methods: Sequence[str],
    inputs: InputOptions,
    drawing: DrawingOptions,
    limits: Mapping[str, float],
) -> tuple[str, list[Image.Image | None]] | None:
    maps: dict[str, Row] = {}
    for row in record:
        if row["status"] == "ok":
            maps.setdefault(row["method"], row)
    if not maps or not is_as_explained(record[0]):
        return None
    try:
        picture = decode(Path(record[0]["path"]), max_pixels=inputs.max_pixels, turn=inputs.exif)
        arrays = {method: read_array(out / row["files"]["npy"]) for method, row in maps.items()}
    except (Broken, OSError, ValueError):  # it has gone since, or was damaged
        return None
    # Drawn small rather than reduced: neighbouring red and blue would average to grey.
    photo = display_copy(picture.pixels, _CELL)
    cells: list[Image.Image | None] = [Image.fromarray(photo)]
    cells += [
        _cell(photo, arrays[method], maps[method], drawing, limits.get(method)) if method in maps else None
        for method in methods
    ]
    first = next(iter(maps.values()))
    return caption(record[0]["key"], first["target"]["name"], first["target"]["probability"]), cells


def _cell(
    photo: NDArray[np.uint8], relevance: NDArray[np.float32], row: Row, drawing: DrawingOptions, limit: float | None
) -> Image.Image:
    """The map drawn as its own picture is, over the small photo."""
    segmented = bool(row.get("segments"))
    return draw(
        photo, relevance, Geometry.from_row(row["geometry"]), signed=row["signed"], render="overlay",
        percentile=100 if segmented else drawing.percentile, limit=limit, outlined=segmented,
    )  # fmt: skip
