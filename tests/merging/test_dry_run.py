"""What a merge would do: the lines beside those of its tensors, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from merges import fisher_file, fisher_of, net_in, saved, shades, weights

from xai_cli.classifiers.options import ModelOptions
from xai_cli.merging.dry_run import dry_run_lines
from xai_cli.merging.inputs import open_inputs
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.pictures import NoPictures
from xai_cli.merging.plan import lines


def told(folder: Path, **given: Any) -> list[str]:
    """The lines of a merge of two checkpoints with Fishers, without those of its tensors."""
    paths = [saved(folder / f"{name}.safetensors", weights(torch.eye(3), n)) for n, name in enumerate("ab")]
    for path in paths:
        fisher_of(path, 0)
    out, merge = given.pop("out", folder / "m.safetensors"), MergeOptions(dry_run=True, **given)
    inputs = open_inputs(paths, ModelOptions(model=net_in(folder)), merge)
    before = {*folder.rglob("*")}
    found, tensors = dry_run_lines(inputs, merge, FisherOptions(count=4), out), [*lines(inputs.plan)]
    assert {*folder.rglob("*")} == before
    assert found[: len(tensors)] == tensors
    return [line.replace(f"{folder}/", "") for line in found[len(tensors) :]]


def test_given_fishers(tmp_path: Path) -> None:
    fishers = [tmp_path / f"{name}.F.safetensors" for name in "ab"]
    assert told(tmp_path, fisher=fishers, coefficients="1,3", head="keep-all") == [
        "coefficients\t1,3",
        "statistics\ta.F.safetensors\tfisher of 7 pictures",
        "statistics\tb.F.safetensors\tfisher of 7 pictures",
        "file\tm.safetensors",
        "file\tm.head-1.safetensors",
        "file\tm.head-2.safetensors",
    ]


def test_fishers_to_make_and_a_search(tmp_path: Path) -> None:
    folders = [shades(tmp_path / "x", count=1), shades(tmp_path / "y")]
    assert told(tmp_path, data=folders, grid=4, eval=folders[:1], recalibrate_bn=folders[1]) == [
        "coefficients\tthe best of 5 on a grid",
        "statistics\tx\tfisher to make of 3 pictures",
        "statistics\ty\tfisher to make of 4 pictures",
        "pictures\tx\t--eval on 3 pictures",
        "pictures\ty\t--recalibrate-bn on 6 pictures",
        "file\tm.fisher-1.safetensors",
        "file\tm.fisher-2.safetensors",
        "file\tm.csv",
        "file\tm.safetensors",
    ]
    regmean = told(tmp_path, method="regmean", data=folders[0], random=3, eval=folders[1:])
    assert regmean[0] == "coefficients\tthe best of 3 random ones and equal ones, seed 0"
    assert regmean[1] == "statistics\tx\tgram to make of 3 pictures"
    assert "file\tm.gram-2.safetensors" in regmean


def test_a_plan_alone(tmp_path: Path) -> None:
    assert told(tmp_path, out=None) == ["coefficients\t0.5,0.5"]
    statistics = "statistics\tx\tfisher to make of 3 pictures"
    assert told(tmp_path, out=None, data=shades(tmp_path / "x", count=1))[1:] == [statistics] * 2


def test_what_is_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given in ({"data": tmp_path / "no"}, {"eval": tmp_path / "no"}, {"recalibrate_bn": tmp_path / "no"}):
        with pytest.raises(ValueError, match="expected a folder of pictures, found none at"):
            told(tmp_path, **given)
    with pytest.raises(NoPictures, match="found no picture in"):
        told(tmp_path, data=tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="expected a file of statistics, found nothing at"):
        told(tmp_path, fisher=[tmp_path / "a.F.safetensors", tmp_path / "no.safetensors"])
    with pytest.raises(ValueError, match="give the statistics in the order of the checkpoints"):
        told(tmp_path, fisher=[fisher_file(tmp_path / f"{name}.safetensors") for name in "ba"])
