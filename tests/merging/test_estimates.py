"""Statistics that are made on the way: of which pictures, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from merges import net_in, saved, shades, weights

from xai_cli.classifiers.options import ModelOptions
from xai_cli.merging.estimates import Estimate, estimates
from xai_cli.merging.inputs import open_inputs
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.products import partial_of
from xai_cli.merging.statistics import read_statistics
from xai_cli.outputs.files import alone_at


def asked(folder: Path, kind: Any = "fisher", **given: Any) -> Estimate:
    paths = [saved(folder / f"{n}.safetensors", weights(torch.eye(3), n)) for n in (1, 2)]
    inputs = open_inputs(paths, ModelOptions(model=net_in(folder)), MergeOptions(data=[folder / "data"]))
    options = FisherOptions(batch_size=2, **given)
    return estimates(
        inputs, kind, [folder / "data"], options, [folder / "1.F.safetensors", folder / "2.F.safetensors"]
    )[0]


def through(batches: Iterator[Any], total: int, done: int) -> Iterable[Any]:
    return batches


def broken_off(batches: Iterator[Any], total: int, done: int) -> Iterator[Any]:
    yield next(batches)
    raise KeyboardInterrupt


@pytest.mark.parametrize(("kind", "other"), [("fisher", {"estimator": "sampled"}), ("gram", {"count": 3})])
def test_what_answers_the_request_is_kept(tmp_path: Path, kind: str, other: dict[str, Any]) -> None:
    shades(tmp_path / "data")
    first, told = asked(tmp_path, kind), list[str]()
    about = first.make(overwrite=False, progress=through, tell=told.append)
    assert {name: getattr(about, name) for name in first.settings} == first.settings
    stamp = first.out.stat().st_mtime_ns
    for overwrite in (False, True):
        assert first.make(overwrite=overwrite, progress=through, tell=told.append) == about
    assert first.out.stat().st_mtime_ns == stamp
    assert "and kept; remove it to have it made again" in told[-1]
    second = asked(tmp_path, kind, **other)
    assert second.settings != first.settings
    with pytest.raises(ValueError, match="answers another request"):
        second.make(overwrite=False, progress=through, tell=print)
    assert second.make(overwrite=True, progress=through, tell=print) == read_statistics(first.out).about != about


def test_what_is_done_of_an_overwriting_one_is_kept(tmp_path: Path) -> None:
    shades(tmp_path / "data")
    asked(tmp_path).make(overwrite=False, progress=through, tell=print)
    second, told = asked(tmp_path, estimator="sampled"), list[str]()
    with pytest.raises(KeyboardInterrupt):
        second.make(overwrite=True, progress=broken_off, tell=print)
    about = second.make(overwrite=True, progress=through, tell=told.append)
    assert told[1] == f"going on after 2 pictures of {partial_of(second.out)}"
    assert (about.n, about.estimator) == (6, "sampled")
    with pytest.raises(KeyboardInterrupt):
        asked(tmp_path).make(overwrite=True, progress=broken_off, tell=print)
    second.out.unlink()
    told.clear()
    second.make(overwrite=True, progress=through, tell=told.append)
    assert not any("going on" in each for each in told)


def test_nobody_else_may_be_at_the_file(tmp_path: Path) -> None:
    shades(tmp_path / "data")
    first = asked(tmp_path)
    with alone_at(first.out), pytest.raises(ValueError, match=r"another process is writing .*1.F.safetensors"):
        first.make(overwrite=False, progress=through, tell=print)
