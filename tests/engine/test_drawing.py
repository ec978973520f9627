"""Pictures with one scale for the whole run: drawn from the folder, the same however it came about."""

from __future__ import annotations

import errno
import signal
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xai_cli.engine import drawing as module
from xai_cli.engine.drawing import Drawer, draw_owed
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.outcomes import Explained, Loaded, Map
from xai_cli.engine.stopping import Interrupted, Stop
from xai_cli.engine.writing import Writer
from xai_cli.images.decode import decode
from xai_cli.images.geometry import Preprocessing
from xai_cli.images.sources import ImageRef, stamped
from xai_cli.outputs.files import array_bytes, write_atomically
from xai_cli.outputs.manifest import ManifestWriter, Row, latest_records, row_line
from xai_cli.outputs.pictures import draw

OUT, MANIFEST = Path("out"), Path("out/manifest.jsonl")
PREPROCESSING = Preprocessing((8, 8), 8, "center", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three photos."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(noise.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(f"{name}.png")


def ramp(limit: float) -> np.ndarray:
    """A map whose own limit is `limit`, as more than 3% of it have that value."""
    return np.linspace(-1.1 * limit, 1.1 * limit, 64, dtype=np.float32).clip(-limit, limit).reshape(8, 8)


def options(**given: Any) -> DrawingOptions:
    return DrawingOptions(**{"scale": "run", **given})


def explain(key: str, *limits: float, **given: Any) -> None:
    """What a run does to a photo whose maps by ig, and by lrp, have these own limits."""
    image = stamped(ImageRef(key, Path(key)))
    photo = decode(image.path).pixels
    pixels, geometry = PREPROCESSING.apply(decode(image.path))
    maps: list[Any] = [
        Map(method, {"index": 1}, 0, ramp(limit), True, {}, None, None, ("a note",), {"pictures": 8}, 0.1)
        for method, limit in zip(("ig", "lrp"), limits, strict=False)
    ]
    written = Writer(OUT, options(**given)).write(Explained(Loaded(image, pixels, photo, geometry, (), 0.1), [], maps))
    assert not written.fault
    with ManifestWriter(MANIFEST) as manifest:
        manifest.append(written.rows)


def drawn(stop: Stop | None = None, commit: Callable[..., Any] | None = None, **given: Any) -> list[str]:
    """Draws what is owed; the keys of the records that were appended."""
    drawing = options(**given)
    drawer = Drawer.of(["ig", "lrp"], InputOptions(), drawing, RunOptions(out=OUT), [MANIFEST])
    with ManifestWriter(MANIFEST) as manifest:
        made = draw_owed(drawer, [MANIFEST], commit or manifest.append, 2, stop or Stop())
        return [record[0]["key"] for record in made]


def rows() -> dict[tuple[str, str], Row]:
    return {(row["key"], row["method"]): row for record in latest_records([MANIFEST]) for row in record}


def pixels(key: str, method: str = "ig") -> Any:
    return np.asarray(Image.open(OUT / method / f"{key}.png"))


def expected(key: str, own: float, limit: float, **given: Any) -> Any:
    photo = decode(Path(key))
    geometry = PREPROCESSING.apply(photo)[1]
    return np.asarray(draw(photo.pixels, ramp(own), geometry, signed=True, render="overlay", limit=limit, **given))


def test_maps_of_a_method_share_a_limit_and_their_colours_can_be_compared() -> None:
    explain("a.png", 1.0, 10.0)
    explain("b.png", 2.0, 5.0)
    assert not list(OUT.rglob("*.png"))
    assert drawn() == ["a.png", "b.png"]
    for key, own in (("a.png", 1.0), ("b.png", 2.0)):
        np.testing.assert_array_equal(pixels(key), expected(key, own, 2.0))
        assert rows()[key, "ig"]["scale"] == {"by": "run", "percentile": 97.0, "own": own, "limit": 2.0, "clipped": 0}
    np.testing.assert_array_equal(pixels("b.png", "lrp"), expected("b.png", 5.0, 10.0))
    assert (pixels("a.png") != expected("a.png", 1.0, 1.0)).any()


def test_as_a_heatmap_the_same_number_is_the_same_index() -> None:
    explain("a.png", 1.0, render="heatmap")
    explain("b.png", 2.0, render="heatmap")
    drawn(render="heatmap")
    # 127 is zero; half of the limit is half of the way to the strongest colour.
    assert (pixels("a.png").min(), pixels("a.png").max()) == (64, 190)
    assert (pixels("b.png").min(), pixels("b.png").max()) == (0, 254)


def test_maps_of_segments_are_drawn_with_their_borders_and_rows_of_older_runs_without() -> None:
    explain("a.png", 1.0, 1.0)
    record = [*rows().values()]
    new, old = ({**row, "segments": {"value": [1.0]}} for row in record)
    del old["segments"]
    with ManifestWriter(MANIFEST) as manifest:
        manifest.append([new, old])
    drawn()
    np.testing.assert_array_equal(pixels("a.png"), expected("a.png", 1.0, 1.0, outlined=True))
    np.testing.assert_array_equal(pixels("a.png", "lrp"), expected("a.png", 1.0, 1.0))
    assert (pixels("a.png") != pixels("a.png", "lrp")).any()


def test_what_is_drawn_is_left_alone_until_the_limit_changes() -> None:
    explain("a.png", 1.0, 10.0)
    explain("b.png", 2.0, 5.0)
    drawn()
    before = MANIFEST.read_bytes()
    assert drawn() == []
    assert MANIFEST.read_bytes() == before
    first, untouched = pixels("a.png"), (OUT / "lrp/a.png.png").stat()
    explain("c.png", 4.0, 1.0)
    assert drawn() == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(pixels("a.png"), expected("a.png", 1.0, 4.0))
    assert (pixels("a.png") != first).any()
    assert (OUT / "lrp/a.png.png").stat() == untouched  # of which the limit is the same


def test_the_rows_stay_as_they_were_and_say_what_the_picture_is() -> None:
    explain("a.png", 1.0)
    before = rows()["a.png", "ig"]
    drawn()
    after = rows()["a.png", "ig"]
    data = (OUT / "ig/a.png.png").read_bytes()
    assert after["files"] == {"npy": "ig/a.png.npy", "png": "ig/a.png.png"}
    assert (after["bytes"]["png"], set(after["crc32"])) == (len(data), {"npy", "png"})
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"files", "bytes", "crc32", "scale", "seconds"}
    assert after["warnings"] == ["a note"]


def test_a_map_of_zeros_is_drawn_with_the_others() -> None:
    explain("a.png", 0.0)
    assert drawn() == ["a.png"]
    assert rows()["a.png", "ig"]["scale"] == {"by": "run", "percentile": 97.0, "own": None, "limit": None, "clipped": 0}
    assert drawn() == []
    explain("b.png", 0.5)
    drawn()
    assert rows()["a.png", "ig"]["scale"]["limit"] == 0.5


HARMS: dict[str, tuple[Callable[[], Any], str]] = {
    "photo gone": (lambda: Path("a.png").unlink(), "its photo has gone, or has changed since it was explained"),
    "photo changed": (lambda: Path("a.png").write_bytes(Path("b.png").read_bytes() + b" "), "its photo has gone, or"),
    "map gone": (lambda: (OUT / "ig/a.png.npy").unlink(), "[Errno 2] No such file"),
    "map cut": (lambda: (OUT / "ig/a.png.npy").write_bytes(b"cut"), "out/ig/a.png.npy is not a whole NPY file"),
    "another map": (lambda: (OUT / "ig/a.png.npy").write_bytes(array_bytes(np.ones((3, 3)))), "expected a map of"),
    "a folder": (lambda: (OUT / "ig/a.png.png").mkdir(), "[Errno 21] Is a directory"),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("earlier", [False, True])
def test_what_cannot_be_drawn_keeps_its_row_without_a_picture(harm: str, earlier: bool) -> None:
    explain("a.png", 1.0)
    explain("b.png", 1.0)
    if earlier:  # it was drawn, at another limit
        drawn()
        explain("c.png", 3.0)
        if harm == "a folder":
            (OUT / "ig/a.png.png").unlink()
    HARMS[harm][0]()
    assert "a.png" in drawn()
    row = rows()["a.png", "ig"]
    assert row["files"] == {"npy": "ig/a.png.npy"}
    assert set(row["bytes"]) == set(row["crc32"]) == {"npy"}
    assert row["scale"] == {"by": "run", "percentile": 97.0, "own": 1.0, "limit": None, "clipped": None}
    assert row["warnings"][0] == "a note"
    assert row["warnings"][1].startswith(f"not drawn: {HARMS[harm][1]}")
    assert not (OUT / "ig/a.png.png").is_file()
    assert (OUT / "ig/b.png.png").is_file()
    before = MANIFEST.read_bytes()
    assert drawn() == []  # though it is tried again
    assert MANIFEST.read_bytes() == before


def test_a_photo_that_is_back_is_drawn() -> None:
    explain("a.png", 1.0)
    Path("a.png").rename("elsewhere.png")
    drawn()
    Path("elsewhere.png").rename("a.png")
    assert drawn() == ["a.png"]
    assert rows()["a.png", "ig"]["warnings"] == ["a note"]
    np.testing.assert_array_equal(pixels("a.png"), expected("a.png", 1.0, 1.0))


class Death(BaseException):
    """Of the process."""


def assert_all_is_as_the_rows_say() -> None:
    """Every picture that is there is named by a row, which knows it."""
    named = {OUT / row["files"]["png"]: row["crc32"]["png"] for row in rows().values() if "png" in row["files"]}
    assert {path: f"{zlib.crc32(path.read_bytes()):08x}" for path in OUT.rglob("*.png")} == named


@pytest.mark.parametrize("after", range(3))
def test_after_a_death_the_rest_is_drawn(after: int) -> None:
    owns = {"a.png": 1.0, "b.png": 3.0, "c.png": 2.0}
    for key, own in owns.items():
        explain(key, own, 2 * own)
    left = [after]

    def commit(rows: list[Row]) -> list[Row]:
        if not left[0]:
            raise Death
        left[0] -= 1
        with MANIFEST.open("ab") as file:
            file.writelines(row_line(row).encode() for row in rows)
        return rows

    with pytest.raises(Death):
        drawn(commit=commit)
    assert drawn() == [*owns][after:]
    assert_all_is_as_the_rows_say()
    for key, own in owns.items():
        np.testing.assert_array_equal(pixels(key), expected(key, own, 3.0))
        np.testing.assert_array_equal(pixels(key, "lrp"), expected(key, 2 * own, 6.0))


def test_a_signal_lets_what_was_begun_be_finished() -> None:
    for key in ("a.png", "b.png", "c.png"):
        explain(key, 1.0)
    with Stop() as stop, stop.gently():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            drawn(stop)
    assert_all_is_as_the_rows_say()
    drawn()
    assert len([*OUT.rglob("*.png")]) == 3
    assert_all_is_as_the_rows_say()


def test_a_full_disk_ends_it_and_with_room_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("a.png", "b.png", "c.png"):
        explain(key, 1.0, 1.0)
    before = MANIFEST.read_bytes()

    def full(path: Path, data: bytes) -> None:
        if "lrp" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomically", full)
        with pytest.raises(OSError, match="No space left on device"):
            drawn()
    assert MANIFEST.read_bytes().startswith(before)
    assert [row["warnings"] for row in rows().values()] == [["a note"]] * 6  # the disk is to blame, and no map
    assert sorted(drawn()) == ["a.png", "b.png", "c.png"]
    assert_all_is_as_the_rows_say()


def test_a_contact_sheet_in_other_colours_does_not_outlive_the_first_new_picture() -> None:
    explain("a.png", 1.0)
    sheet = OUT / "overview.png"
    sheet.touch()
    drawn()
    assert not sheet.exists()
    sheet.touch()
    assert drawn() == []
    assert sheet.exists()


def test_pictures_of_further_targets_are_named_like_their_arrays() -> None:
    row = {"files": {"npy": "ig/a.npy.png.281.npy"}}
    assert module._picture_path(row) == PurePosixPath("ig/a.npy.png.281.png")


def test_what_is_still_owed_is_counted() -> None:
    explain("a.png", 1.0, 10.0)
    explain("b.png", 2.0, 5.0)
    Path("a.png").unlink()
    drawn()
    drawer = Drawer.of(["ig", "lrp"], InputOptions(), options(), RunOptions(out=OUT), [MANIFEST])
    assert drawer.count_undrawn([MANIFEST]) == (2, 1)
    assert [row["key"] for rows in drawer.undrawn([MANIFEST]) for row in rows] == ["a.png", "a.png"]
