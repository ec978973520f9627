"""The contact sheet of a run, made from what stands in its folder, so that a run that went on has the same one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from xai_cli.engine.options import DrawingOptions, InputOptions
from xai_cli.images.decode import Broken, decode
from xai_cli.images.geometry import Geometry
from xai_cli.options import declarations
from xai_cli.outputs.files import read_array, write_atomically
from xai_cli.outputs.manifest import Row, is_sound, latest_records, manifests
from xai_cli.outputs.overview import caption, contact_sheet
from xai_cli.outputs.pictures import display_copy, draw, encode_png

_CELL = 192


def write_overview(
    out: Path, records: Sequence[list[Row]], methods: Sequence[str], inputs: InputOptions, drawing: DrawingOptions
) -> None:
    """Writes `overview.png`: a row for each of the first records that hold a map, photo and first target's maps."""
    rows: list[tuple[str, list[Image.Image | None]]] = []
    for record in records:
        cells = _cells(out, record, methods, inputs, drawing) if len(rows) < drawing.overview else None
        if cells:
            rows.append(cells)
    if rows:
        write_atomically(out / "overview.png", encode_png(contact_sheet(rows, ["photo", *methods])))


def overview_again(out: Path) -> None:
    """Writes `overview.png` anew, as `run.json` asked for it, from the records that come first in the manifests."""
    described = json.loads((out / "run.json").read_text())
    options = described["options"]
    inputs = InputOptions(**{name: options[name] for name in ("exif", "max_pixels")})
    drawing = DrawingOptions(**{name: options[name] for name in declarations(DrawingOptions)})
    # A few of them may have failed.
    first = islice(filter(is_sound, latest_records(manifests(out))), 4 * drawing.overview)
    write_overview(out, list(first), list(described["methods"]), inputs, drawing)


def _cells(
    out: Path, record: list[Row], methods: Sequence[str], inputs: InputOptions, drawing: DrawingOptions
) -> tuple[str, list[Image.Image | None]] | None:
    maps: dict[str, Row] = {}
    for row in record:
        if row["status"] == "ok":
            maps.setdefault(row["method"], row)
    if not maps:
        return None
    try:
        picture = decode(Path(record[0]["path"]), max_pixels=inputs.max_pixels, turn=inputs.exif)
        arrays = {method: read_array(out / row["files"]["npy"]) for method, row in maps.items()}
    except (Broken, OSError, ValueError):  # it has gone since, or was damaged
        return None
    # Drawn small rather than reduced: neighbouring red and blue would average to grey.
    photo = display_copy(picture.pixels, _CELL)
    cells: list[Image.Image | None] = [Image.fromarray(photo)]
    cells += [None if method not in maps else draw(
        photo, arrays[method], Geometry.from_row(maps[method]["geometry"]),
        signed=maps[method]["signed"], render="overlay", percentile=drawing.percentile,
    ) for method in methods]  # fmt: skip
    first = next(iter(maps.values()))
    return caption(record[0]["key"], first["target"]["name"], first["target"]["probability"]), cells
