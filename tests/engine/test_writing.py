"""What cannot be written costs itself alone, and says whether the name, the disk or the map is to blame."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xai_cli.engine import writing
from xai_cli.engine.options import DrawingOptions
from xai_cli.engine.outcomes import Explained, Failed, Loaded, Map
from xai_cli.engine.writing import Writer, Written, committed
from xai_cli.images.decode import Picture
from xai_cli.images.geometry import Preprocessing
from xai_cli.images.sources import ImageRef


def outcome(key: str = "cat.jpg", methods: tuple[str, ...] = ("ig", "lrp")) -> Explained:
    preprocessing = Preprocessing((8, 8), 8, "center", "bilinear", (0.5,) * 3, (0.25,) * 3, 3)
    photo = np.zeros((8, 8, 3), np.uint8)
    pixels, geometry = preprocessing.apply(Picture(photo, "PNG", "RGB", 1, 1, ()))
    relevance = np.arange(64, dtype=np.float32).reshape(8, 8)
    target = {"index": 1}
    maps = [
        Map(method, target, 0, relevance, True, {}, None, None, (), {"pictures": 8, "samples": 8}, 0.1)
        for method in methods
    ]
    return Explained(Loaded(ImageRef(key, Path(key)), pixels, photo, geometry, (), 0.1), [[1, 0.5]], [*maps])


def write(out: Path, each: Explained | None = None) -> Written:
    return Writer(out, DrawingOptions(render="none")).write(each or outcome())


def told(written: Written) -> list[tuple[Any, ...]]:
    return [(row["status"], row.get("stage"), row.get("type"), row.get("transient")) for row in written.rows]


OK = ("ok", None, None, None)


def test_a_name_that_cannot_be_had_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    """A file that somebody put where a folder is needed, or the other way round."""
    for method in ("ig", "lrp"):
        (tmp_path / method).mkdir()
        (tmp_path / method / "x").touch()
        (tmp_path / method / "z.png.npy").mkdir()
    below = write(tmp_path, outcome("x/y.png"))
    assert told(below) == [("error", "write", "NameTaken", False)] * 2
    above = write(tmp_path, outcome("z.png"))
    assert told(above) == [("error", "write", "NameTaken", False)] * 2
    assert below.fault is above.fault is None


def test_a_folder_named_like_a_map_is_no_obstacle_for_it(tmp_path: Path) -> None:
    for key in ("x.png", "x.png.npy/y.png", "z.png.npy/y.png", "z.png"):
        assert told(write(tmp_path, outcome(key))) == [OK, OK]
    assert not list(tmp_path.rglob("*.tmp"))


def test_links_that_lead_in_a_circle_cost_the_maps_below_them(tmp_path: Path) -> None:
    (tmp_path / "ig").symlink_to("ig")
    written = write(tmp_path)
    assert told(written) == [("error", "write", "OutsideOutput", False), OK]
    assert written.fault is None


@pytest.mark.parametrize(("scale", "limit", "strongest"), [("image", 61.11, 254), ("fixed:126", 126.0, 190)])
def test_the_row_names_the_limit_at_which_the_picture_is_drawn(
    tmp_path: Path, scale: str, limit: float, strongest: int
) -> None:
    row, _ = Writer(tmp_path, DrawingOptions(render="heatmap", scale=scale)).write(outcome()).rows
    assert row["scale"]["limit"] == pytest.approx(limit)
    assert row["scale"]["clipped"] == (0.03125 if scale == "image" else 0)  # 62 and 63 of 0 to 63
    assert np.asarray(Image.open(tmp_path / row["files"]["png"])).max() == strongest


def test_pictures_that_wait_for_their_scale_are_not_written_and_those_of_earlier_maps_removed(tmp_path: Path) -> None:
    (tmp_path / "ig").mkdir()
    (tmp_path / "ig/cat.jpg.png").touch()
    written = Writer(tmp_path, DrawingOptions(scale="run")).write(outcome())
    assert [row["files"] for row in written.rows] == [{"npy": "ig/cat.jpg.npy"}, {"npy": "lrp/cat.jpg.npy"}]
    assert not list(tmp_path.rglob("*.png"))


def test_a_map_of_segments_is_drawn_with_their_borders_and_its_row_says_what_was_found_of_each(tmp_path: Path) -> None:
    plain = outcome()
    said = {"value": [0.123456789, float("nan")], "pixels": [3000000, 2], "centre": [[1.0, 2.5]], "label": ["#ff0000"]}
    maps = [replace(made, segments=said) for made in plain.maps if isinstance(made, Map)]
    pictures = []
    for name, each in (("plain", plain), ("parted", replace(plain, maps=[*maps]))):
        row, _ = Writer(tmp_path / name, DrawingOptions()).write(each).rows
        pictures.append((tmp_path / name / row["files"]["png"]).read_bytes())
        expected = {**said, "value": [0.123457, None]} if name == "parted" else None
        assert row["segments"] == expected
    assert pictures[0] != pictures[1]


def refuse_maps_of_ig(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    whole = writing.write_atomically

    def disk(path: Path, data: bytes) -> None:
        if "ig" in path.parts:
            raise error
        whole(path, data)

    monkeypatch.setattr(writing, "write_atomically", disk)


def test_a_full_disk_is_a_fault_that_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    refuse_maps_of_ig(monkeypatch, full)
    written = write(tmp_path)
    assert told(written) == [("error", "write", "OSError", True), OK]
    assert written.fault is full


@pytest.mark.parametrize(("error", "transient"), [(MemoryError(), True), (ZeroDivisionError(), False)])
def test_a_map_that_cannot_be_made_a_file_of_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, transient: bool
) -> None:
    refuse_maps_of_ig(monkeypatch, error)
    written = write(tmp_path)
    assert told(written) == [("error", "write", type(error).__name__, transient), OK]
    assert written.rows[0]["message"] == type(error).__name__
    assert written.fault is None


def test_the_second_fault_of_the_disk_in_a_row_ends_the_run() -> None:
    fault, row = OSError(errno.ENOSPC, "full"), [Failed(ImageRef("a", Path("a")), "write", "OSError", "").as_row()]
    good, bad = Written(row), Written(row, fault)
    assert len(list(committed([bad, good, bad, good], list))) == 4
    given = committed([good, bad, bad, good], list)
    assert [next(given) for _ in range(3)] == [row] * 3
    with pytest.raises(OSError, match="full"):
        next(given)
