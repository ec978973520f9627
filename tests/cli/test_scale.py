"""One colour scale for a run, from the command line: what is printed when, and the same bytes however the run went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Answer, run_xai
from PIL import Image

from xai_cli.outputs.manifest import latest_records, read_records

FILES = ("photos/a.png", "photos/b.png", "photos/c.png")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: str) -> None:
    """Three photos, from weak to strong contrast: for ig, whose baseline is grey, from small to large values."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    noise = np.random.default_rng(0)
    for name, contrast in zip("abc", (9, 40, 120), strict=True):
        pixels = noise.integers(128 - contrast, 128 + contrast, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{name}.png")


def explain(*arguments: object, out: str = "out", scale: str = "run") -> Answer:
    more = ("-m", "ig", "-m", "saliency", "--model", "small_net.py:make", "--batch-size", 2, "--scale", scale)
    return run_xai("explain", *(arguments or ["photos"]), *more, "-o", out)


def rows(out: str = "out") -> list[dict[str, Any]]:
    return [row for record in latest_records([Path(out) / "manifest.jsonl"]) for row in record]


def files(out: str) -> dict[str, bytes]:
    """All but what tells the time, and what was asked for."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(Path(out).rglob("*"))
        if path.is_file() and path.name not in ("manifest.jsonl", "run.json")
    }


def traces() -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in Path("out").rglob("*")}


def assert_sound(out: str = "out") -> None:
    answer = run_xai("verify", out)
    assert answer.code == 0, answer.paths


def test_arrays_are_printed_as_they_come_and_pictures_when_all_are_there() -> None:
    answer = explain()
    maps = [f"out/{method}/{name}.png" for name in "abc" for method in ("ig", "saliency")]
    assert (answer.code, answer.paths) == (0, [f"{name}.npy" for name in maps] + [f"{name}.png" for name in maps])
    limits = {row["method"]: row["scale"]["limit"] for row in rows()}
    assert f"the strongest colour is, for all pictures: ig {limits['ig']:.3g}, saliency" in answer.said
    for method in ("ig", "saliency"):
        scales = [row["scale"] for row in rows() if row["method"] == method]
        assert {scale["limit"] for scale in scales} == {max(scale["own"] for scale in scales)}
    assert_sound()
    before = traces()
    again = explain()
    assert (again.code, again.paths) == (0, [])
    assert traces() == before


def test_as_json_a_row_is_printed_again_when_it_is_drawn() -> None:
    answer = explain("photos", "--json")
    printed = [json.loads(line) for line in answer.paths]
    assert printed == [row for record in read_records(Path("out/manifest.jsonl")) for row in record]
    assert ["png" in row["files"] for row in printed] == [False] * 6 + [True] * 6


def test_a_plan_names_the_files_that_will_be_there() -> None:
    (plan,) = explain("photos/a.png", "--dry-run").paths
    planned = plan.split("\t")[1:]
    assert planned == [f"out/{method}/photos/a.png.{kind}" for method in ("ig", "saliency") for kind in ("npy", "png")]
    assert sorted(explain("photos/a.png").paths) == sorted(planned)


def test_the_result_does_not_depend_on_order_or_interruption() -> None:
    explain(*FILES, out="whole")
    explain(FILES[1], out="parts")
    explain(FILES[1], FILES[0], out="parts")
    explain(*FILES, out="parts")
    assert files("parts") == files("whole")
    explain(*reversed(FILES), out="back")
    assert {**files("back"), "overview.png": b""} == {**files("whole"), "overview.png": b""}
    for out in ("whole", "parts", "back"):
        assert_sound(out)


def test_a_new_picture_beyond_the_limit_has_all_drawn_again() -> None:
    explain(*FILES[:2])
    before, limit = files("out"), rows()[0]["scale"]["limit"]
    answer = explain(*FILES)
    assert rows()[0]["scale"]["limit"] > 2 * limit
    assert [path for path in answer.paths if "/ig/" in path and path.endswith("png")] == [
        f"out/ig/{name}.png" for name in FILES
    ]
    changed = {name for name, content in files("out").items() if content != before.get(name)}
    assert {"overview.png", *(f"ig/{name}.png" for name in FILES)} <= changed
    assert not [name for name in before if name.endswith("npy") and name in changed]


def test_a_photo_that_has_gone_keeps_its_arrays_and_is_told_every_time() -> None:
    explain(*FILES[:2])
    Path("photos/a.png").unlink()
    for _ in range(2):
        answer = explain(*FILES[1:])
        assert answer.code == 3
        # That of saliency still has the right limit.
        assert "1 map could not be drawn; the warnings in the manifest say why" in answer.said
    assert answer.paths == []
    assert explain(*FILES[1:], "--fail-on", "none").code == 0
    assert {path.name for path in Path("out/ig/photos").iterdir()} == {"a.png.npy"} | {
        f"{name}.png.{kind}" for name in "bc" for kind in ("npy", "png")
    }
    answer = run_xai("verify", "out")
    why = "not drawn: its photo has gone, or has changed since it was explained"
    assert (answer.code, answer.paths) == (3, [f"out/ig/photos/a.png.png\t{why}"])


def test_what_waits_to_be_drawn_is_told_by_a_plan_and_by_verify() -> None:
    explain()
    lines = Path("out/manifest.jsonl").read_text().splitlines(keepends=True)
    Path("out/manifest.jsonl").write_text("".join(lines[:6]))  # as before they were drawn
    for path in Path("out").rglob("*.png.png"):
        path.unlink()
    plan = explain("photos", "--dry-run")
    assert (plan.code, plan.paths, "6 maps yet to be drawn" in plan.said) == (0, [], True)
    answer = run_xai("verify", "out")
    assert (answer.code, len(answer.paths)) == (3, 6)
    assert answer.paths[0] == ("out/ig/a.png.png\tnot drawn yet; give the same command again, or xai merge-manifests")
    assert explain().code == 0
    assert "yet to be drawn" not in explain("photos", "--dry-run").said
    assert_sound()


def test_a_contact_sheet_shares_the_limit_also_where_no_map_is_drawn() -> None:
    explain(out="drawn")
    explain("photos", "--render", "none", out="undrawn")
    assert Path("undrawn/overview.png").read_bytes() == Path("drawn/overview.png").read_bytes()
    explain(out="image", scale="image")
    assert Path("image/overview.png").read_bytes() != Path("drawn/overview.png").read_bytes()


def test_a_given_limit_is_that_of_every_picture_at_once() -> None:
    answer = explain(scale="fixed:0.25")
    assert answer.paths == [f"out/{method}/{name}.png.png" for name in "abc" for method in ("ig", "saliency")]
    assert {row["scale"]["limit"] for row in rows()} == {0.25}
    assert {row["scale"]["by"] for row in rows()} == {"fixed"}


def test_another_scale_is_another_run() -> None:
    explain()
    answer = explain(scale="fixed:0.25")
    assert (answer.code, "--scale was run and is fixed:0.25" in answer.said) == (2, True)


def test_shards_are_drawn_when_they_are_joined() -> None:
    explain(out="whole")
    for shard in (1, 2):
        answer = explain("photos", "--shard", f"{shard}/2")
        assert answer.code == 0
        assert "maps are drawn when the shards are joined: xai merge-manifests out" in answer.said
    assert not list(Path("out").rglob("*.png"))
    answer = run_xai("merge-manifests", "out")
    assert (answer.code, answer.paths) == (0, ["out/manifest.jsonl"])
    assert {**files("out"), "overview.png": b""} == {**files("whole"), "overview.png": b""}
    assert_sound()
    before = traces()
    assert run_xai("merge-manifests", "out").code == 0
    assert traces() == before
    Path("out/overview.png").unlink()  # as after a death before it
    assert run_xai("merge-manifests", "out").code == 0
    assert Path("out/overview.png").exists()


def test_maps_whose_photos_are_gone_when_shards_are_joined_are_told() -> None:
    explain("photos", "--shard", "1/1")
    Path("photos/a.png").unlink()
    for _ in range(2):
        answer = run_xai("merge-manifests", "out")
        assert (answer.code, answer.paths) == (3, ["out/manifest.jsonl"])
        assert "2 maps could not be drawn; the warnings in the manifest say why" in answer.said
