"""Files of statistics: what they say of themselves, and how two of them become one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import assert_close
from safetensors.torch import load_file, save_file

from xai_cli.merging.statistics import About, about_of, combine, metadata, read_statistics, settled, write_statistics

ABOUT = About("fisher", "net", "m1", "d1", "{}", n=3, contents="p1,p2,p3", estimator="importance", probes=2, seed=7,
              params="head", skipped=("a \udcff,b", "c"), error=1e-6)  # fmt: skip
FIRST = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([0.5])}


def written(path: Path, about: About, factor: float = 1.0) -> Path:
    tensors = ((name, factor * tensor) for name, tensor in FIRST.items())
    write_statistics(path, {name: tuple(tensor.shape) for name, tensor in FIRST.items()}, tensors, about)
    return path


def silent(message: str) -> None:
    pass


def test_what_a_file_says_comes_back(tmp_path: Path) -> None:
    assert about_of(metadata(ABOUT)) == ABOUT
    read = read_statistics(written(tmp_path / "f.safetensors", replace(ABOUT, skipped=("c",))))
    sums = {"mean": 10.5 / 5, "norm": 30.25**0.5, "trace": 10.5}
    assert read.about == replace(ABOUT, skipped=("c",), **sums)
    assert torch.equal(read.weights.tensor("a"), FIRST["a"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(FIRST, path)
    with pytest.raises(ValueError, match="expected statistics as 'xai fisher' writes them, found no such header"):
        read_statistics(path)
    with pytest.raises(ValueError, match="exists and holds something else; give another -o, or --overwrite"):
        settled(path, ABOUT, overwrite=False, tell=silent)
    assert settled(path, ABOUT, overwrite=True, tell=silent) is None


def test_an_answer_is_kept_and_another_refused(tmp_path: Path) -> None:
    path, told = written(tmp_path / "f.safetensors", ABOUT), []
    assert settled(path, replace(ABOUT, n=0), overwrite=False, tell=told.append).n == 3  # type: ignore[union-attr]
    assert "left as it is" in told[0]
    with pytest.raises(ValueError, match=r"answers another request \(seed 7, now 8\); give another -o, or --overwrite"):
        settled(path, replace(ABOUT, seed=8), overwrite=False, tell=silent)


def test_two_are_combined_by_their_numbers_of_pictures(tmp_path: Path) -> None:
    second = replace(ABOUT, data_digest="d2", n=1, contents="p0", estimator="expected")
    third = replace(ABOUT, data_digest="d3", n=4, contents="p4,p4,p5,p6")
    paths = [written(tmp_path / f"{number}.safetensors", about, factor)
             for number, about, factor in ((1, ABOUT, 1.0), (2, second, 5.0), (3, third, 0.0))]  # fmt: skip
    both = combine([*map(read_statistics, paths[:2])], tmp_path / "12.safetensors", overwrite=False, tell=silent)
    assert (both.n, both.data_digest, both.estimator) == (4, "d1,d2", "expected,importance")
    assert both.contents == "p0,p1,p2,p3"
    assert_close(load_file(tmp_path / "12.safetensors")["a"], 2 * FIRST["a"], rtol=1e-7, atol=0)
    three = combine([*map(read_statistics, [tmp_path / "12.safetensors", paths[2]])], tmp_path / "123.safetensors",
                    overwrite=False, tell=silent)  # fmt: skip
    assert (three.n, three.data_digest) == (8, "d1,d2,d3")
    assert_close(load_file(tmp_path / "123.safetensors")["a"], FIRST["a"], rtol=1e-7, atol=0)
    with pytest.raises(ValueError, match=r"12.safetensors and .*1.safetensors count the same pictures; leave one out"):
        combine([*map(read_statistics, [tmp_path / "12.safetensors", paths[0]])], tmp_path / "x.safetensors",
                overwrite=False, tell=silent)  # fmt: skip


@pytest.mark.parametrize(("contents", "message"), [
    ("p0,p3", "1.safetensors and .*2.safetensors both count 1 picture of the same content; leave one out, or make one"),
    ("p2,p2,p3", "both count 2 pictures of"),
])  # fmt: skip
def test_pictures_that_both_count_are_refused(tmp_path: Path, contents: str, message: str) -> None:
    one = read_statistics(written(tmp_path / "1.safetensors", ABOUT))
    two = read_statistics(written(tmp_path / "2.safetensors", replace(ABOUT, data_digest="d2", contents=contents)))
    three = read_statistics(written(tmp_path / "3.safetensors", replace(ABOUT, data_digest="d3", contents="p9")))
    with pytest.raises(ValueError, match=message):
        combine([three, one, two], tmp_path / "x.safetensors", overwrite=False, tell=silent)
    apart = combine([three, one], tmp_path / "x.safetensors", overwrite=False, tell=silent)
    assert apart.contents == "p1,p2,p3,p9"


def test_a_missing_file_is_none_of_statistics(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a file of statistics, found nothing at .*; make it"):
        read_statistics(tmp_path / "no.safetensors")
    with pytest.raises(FileNotFoundError, match="found no file at"):
        read_statistics(tmp_path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_digest": "m2"}, "differ in their weights; combine statistics of one model"),
    ({"kind": "gram"}, "differ in their kind"),
    ({"inputs": "{1}"}, "differ in their preprocessing"),
])  # fmt: skip
def test_what_does_not_belong_together_is_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    one = read_statistics(written(tmp_path / "1.safetensors", ABOUT))
    two = read_statistics(written(tmp_path / "2.safetensors", replace(ABOUT, data_digest="d2", **changes)))
    with pytest.raises(ValueError, match=message):
        combine([one, two], tmp_path / "x.safetensors", overwrite=False, tell=silent)
    with pytest.raises(ValueError, match="two files or more are combined, found 1"):
        combine([one], tmp_path / "x.safetensors", overwrite=False, tell=silent)
    assert not (tmp_path / "x.safetensors").exists()
