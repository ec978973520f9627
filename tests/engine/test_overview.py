"""The contact sheet is made from what stands in the folder, so that it is the same however the run came about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import explained
from nets import classifier_of, conv_net
from PIL import Image

from xai_cli.engine import overview
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.overview import write_overview
from xai_cli.images.sources import find_images
from xai_cli.methods.contract import Attribution, Evidence
from xai_cli.methods.gradcam import GradCam
from xai_cli.methods.saliency import Saliency
from xai_cli.outputs.manifest import latest_records

METHODS = [Saliency(), GradCam(layer="4")]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five pictures, of which the second is broken."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    noise = np.random.default_rng(0)
    for name in "acde":
        Image.fromarray(noise.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(f"photos/{name}.png")
    Path("photos/b.png").write_text("no picture")


def run(out: str, count: int = 5, methods: Any = METHODS, **drawing: Any) -> bytes:
    images = list(find_images(["photos"], skip=Path(out)))[:count]
    options = RunOptions(out=Path(out), batch_size=2)
    explained(images, classifier_of(conv_net(), dtype=torch.float32), methods, options, DrawingOptions(**drawing))
    return Path(out, "overview.png").read_bytes()


Sheet = list[tuple[str, list[bool]]]


def sheet(monkeypatch: pytest.MonkeyPatch, out: str = "out", **drawing: Any) -> Sheet:
    """The captions on a run's contact sheet, and which of the cells beside them are filled."""
    given: list[Any] = []
    titles: list[str] = []

    def contact_sheet(rows: list[Any], columns: list[str]) -> Image.Image:
        titles[:] = columns
        given.extend(rows)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(overview, "contact_sheet", contact_sheet)
    records = list(latest_records([Path(out, "manifest.jsonl")]))
    write_overview(Path(out), records, ["saliency", "gradcam"], InputOptions(), DrawingOptions(**drawing))
    assert [title.split()[0] for title in titles] == (["photo", "saliency", "gradcam"] if given else [])
    return [(caption.split("\n")[0], [cell is not None for cell in cells]) for caption, cells in given]


def test_a_run_that_went_on_has_the_same_sheet() -> None:
    whole = run("whole")
    assert run("parts", 1) != whole
    assert run("parts", 3) != whole
    assert run("parts") == whole
    Path("parts/saliency/c.png.npy").unlink()
    assert run("parts") == whole


def test_the_first_pictures_that_have_a_map_are_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run("out")
    full = [True, True, True]
    assert sheet(monkeypatch) == [(f"{name}.png", full) for name in "acde"]
    assert sheet(monkeypatch, overview=2) == [("a.png", full), ("c.png", full)]


class Moody(Saliency):
    """Fails on every picture but the first of a batch."""

    def attribute(self, evidence: Evidence) -> Attribution:
        relevance = super().attribute(evidence).relevance
        relevance[1:] = torch.nan
        return Attribution(relevance, signed=False)


def test_a_map_that_failed_leaves_its_cell_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    run("out", methods=[Moody(), GradCam(layer="4")])
    cells = [[True, True, True], [True, False, True]] * 2
    assert sheet(monkeypatch) == list(zip(("a.png", "c.png", "d.png", "e.png"), cells, strict=True))


@pytest.mark.parametrize("harm", ["photo gone", "photo broken", "photo replaced", "map gone", "map broken"])
def test_a_picture_that_is_no_longer_as_it_was_is_left_out(monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    run("out")
    path = Path("photos/c.png" if "photo" in harm else "out/saliency/c.png.npy")
    if "gone" in harm:
        path.unlink()
    elif "replaced" in harm:
        path.write_bytes(Path("photos/d.png").read_bytes())
    else:
        path.write_bytes(b"\0" * path.stat().st_size)
    assert [caption for caption, _ in sheet(monkeypatch)] == ["a.png", "d.png", "e.png"]


def test_without_a_map_there_is_no_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    run("out")
    Path("out/overview.png").unlink()
    write_overview(Path("out"), [], ["saliency"], InputOptions(), DrawingOptions())
    assert sheet(monkeypatch, overview=0) == []
    assert not Path("out/overview.png").exists()


def test_the_maps_are_those_of_the_first_target(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    whole = overview.draw

    def draw(photo: Any, relevance: Any, *others: Any, **options: Any) -> Any:
        drawn.append(relevance)
        return whole(photo, relevance, *others, **options)

    images = find_images(["photos/a.png"])
    options = RunOptions(out=Path("out"), batch_size=2, target="top:2")
    explained(images, classifier_of(conv_net(), dtype=torch.float32), METHODS, options, DrawingOptions(overview=0))
    monkeypatch.setattr(overview, "draw", draw)
    assert sheet(monkeypatch) == [("photos/a.png", [True, True, True])]
    for method, relevance in zip(METHODS, drawn, strict=True):
        np.testing.assert_array_equal(relevance, np.load(f"out/{method.name}/photos/a.png.npy"))


def test_a_limit_that_all_maps_share_is_in_the_title_and_in_the_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def contact_sheet(rows: list[Any], columns: list[str]) -> Image.Image:
        given.append((columns, [np.asarray(cell) for _, cells in rows for cell in cells[1:]]))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(overview, "contact_sheet", contact_sheet)
    methods = [Saliency(), GradCam(layer="4", relu=False)]
    for scale in ("image", "run", "fixed:1e6"):
        run(scale, methods=methods, scale=scale)
    (image, own), (shared, alike), (fixed, faint) = given
    assert image == ["photo", "saliency", "gradcam"]
    assert [title.split()[0] for title in shared] == image
    assert [title.split()[1][0] == "±" for title in shared[1:]] == [False, True]
    assert fixed == ["photo", "saliency 1e+06", "gradcam ±1e+06"]
    # By run, the one map of each method that has the largest limit keeps its colours.
    assert sum((one != other).any() for one, other in zip(own, alike, strict=True)) == len(own) - 2
    assert all((one != other).any() for one, other in zip(own, faint, strict=True))
