"""Which value gets the strongest colour, and how many maps share it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xai_cli.engine.options import DrawingOptions
from xai_cli.engine.scaling import scale_of, shared_limits
from xai_cli.outputs.manifest import ManifestWriter, Row, latest_records

# 0.01 to 1.00: the 97th percentile is 0.9703, and three values lie beyond.
RAMP = (np.arange(1, 101, dtype=np.float32) / 100).reshape(10, 10)
ZEROS = np.zeros((10, 10), np.float32)


@pytest.mark.parametrize(
    ("scale", "relevance", "expected"),
    [
        ("image", RAMP, {"by": "image", "percentile": 97.0, "limit": 0.9703, "clipped": 0.03}),
        ("image", -RAMP, {"by": "image", "percentile": 97.0, "limit": 0.9703, "clipped": 0.03}),
        ("image", ZEROS, {"by": "image", "percentile": 97.0, "limit": None, "clipped": 0.0}),
        ("fixed:0.25", RAMP, {"by": "fixed", "percentile": None, "limit": 0.25, "clipped": 0.75}),
        ("fixed:2", ZEROS, {"by": "fixed", "percentile": None, "limit": 2.0, "clipped": 0.0}),
        ("run", RAMP, {"by": "run", "percentile": 97.0, "own": 0.9703, "limit": None, "clipped": None}),
        ("run", ZEROS, {"by": "run", "percentile": 97.0, "own": None, "limit": None, "clipped": None}),
    ],
)
def test_a_row_says_how_its_map_is_drawn(scale: str, relevance: Any, expected: Row) -> None:
    assert scale_of(relevance, DrawingOptions(scale=scale)) == expected


@pytest.mark.parametrize("scale", ["image", "run"])
def test_the_strongest_of_segments_gets_the_strongest_colour_however_small_it_is(scale: str) -> None:
    found = scale_of(RAMP, DrawingOptions(scale=scale), segmented=True) or {}
    assert found["percentile"] == 100.0
    assert found["limit" if scale == "image" else "own"] == 1.0
    assert (scale_of(RAMP, DrawingOptions(scale="fixed:0.25"), segmented=True) or {})["limit"] == 0.25


def test_without_a_picture_there_is_nothing_to_say_but_for_the_contact_sheet_of_the_run() -> None:
    assert scale_of(RAMP, DrawingOptions(render="none")) is None
    assert scale_of(RAMP, DrawingOptions(render="none", scale="fixed:1")) is None
    assert (scale_of(RAMP, DrawingOptions(render="none", scale="run")) or {})["own"] == 0.9703


@pytest.mark.parametrize("scale", ["", "Run", "image:1", "fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:nan",
                                   "fixed:inf", "fixed:1e39", "fixed:1e-39", "fixed:x", "run:1"])  # fmt: skip
def test_what_is_no_scale_is_refused(scale: str) -> None:
    with pytest.raises(ValueError, match=r"--scale expects image, run or fixed:V with V from 1e-38 to 1e38, found '"):
        DrawingOptions(scale=scale)


def limits(tmp_path: Path, *owns: float | None, percentile: float = 97.0) -> dict[str, float]:
    """The shared limits of a run of one picture after the other, whose maps of ig have these limits."""
    path = tmp_path / "manifest.jsonl"
    path.unlink(missing_ok=True)
    with ManifestWriter(path) as manifest:
        for number, own in enumerate(owns):
            manifest.append([row(f"{number}.png", "ig", own), row(f"{number}.png", "lrp", 5.0)])
    return shared_limits(DrawingOptions(scale="run", percentile=percentile), ["ig", "lrp"], latest_records([path]))


def row(key: str, method: str, own: float | None) -> Row:
    return {"key": key, "source": None, "status": "ok", "method": method, "files": {}, "bytes": {}, "checks": {},
            "scale": {"own": own}}  # fmt: skip


def test_the_largest_limit_of_a_small_run_is_that_of_all(tmp_path: Path) -> None:
    assert limits(tmp_path, 1.0, 2.0) == {"ig": 2.0, "lrp": 5.0}
    assert limits(tmp_path, *range(1, 34)) == {"ig": 33.0, "lrp": 5.0}


def test_few_extreme_maps_of_a_large_run_leave_the_others_their_colour(tmp_path: Path) -> None:
    """Of a hundred maps the strongest three are beyond the limit, by 100 none is."""
    owns = [*(number / 100 for number in range(1, 98)), 1e3, 1e4, 1e5]
    for seed in range(3):
        random.Random(seed).shuffle(owns)
        assert limits(tmp_path, *owns)["ig"] == 0.97
        assert limits(tmp_path, *owns, percentile=100)["ig"] == 1e5


def test_maps_of_zeros_and_outdated_records_have_no_say(tmp_path: Path) -> None:
    assert limits(tmp_path, 0.001, None)["ig"] == 0.001
    assert limits(tmp_path, None, None) == {"lrp": 5.0}
    assert limits(tmp_path, 1.0, 2.0)["ig"] == 2.0
    with ManifestWriter(tmp_path / "manifest.jsonl") as manifest:
        manifest.append([row("1.png", "ig", 0.5)])
        manifest.append([{"key": "0.png", "source": None, "status": "error"}])
    records = latest_records([tmp_path / "manifest.jsonl"])
    assert shared_limits(DrawingOptions(scale="run"), ["ig"], records) == {"ig": 0.5}


def test_a_given_limit_is_that_of_every_method_and_by_image_none_is_shared() -> None:
    assert shared_limits(DrawingOptions(scale="fixed:3"), ["ig", "lrp"], []) == {"ig": 3.0, "lrp": 3.0}
    assert shared_limits(DrawingOptions(), ["ig", "lrp"], []) == {}
