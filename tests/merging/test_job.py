"""The order in which a merge spends time, and what it leaves when something is wrong."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close
from merges import COLOURS, fisher_file, fisher_of, net_in, saved, shades, weights
from safetensors import safe_open
from safetensors.torch import load_file

from xai_cli.classifiers.options import ModelOptions
from xai_cli.merging import estimates
from xai_cli.merging import job as module
from xai_cli.merging.inputs import open_inputs
from xai_cli.merging.job import Job
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.provenance import Outcome
from xai_cli.merging.search import search
from xai_cli.merging.statistics import read_statistics, write_statistics
from xai_cli.merging.writing import write_tensors
from xai_cli.outputs.files import alone_at


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [saved(tmp_path / f"{n}.safetensors", weights(torch.eye(3), n)) for n in (1, 2)]
    for path in found:
        fisher_of(path, 0)
    return found


def job(
    paths: list[Path], told: list[str] | None = None, *, fisher: FisherOptions | None = None, out: Path | None = None,
    overwrite: bool = False, **given: Any,
) -> Job:  # fmt: skip
    folder = paths[0].parent
    options = MergeOptions(**({} if {"data", "method"} & {*given} else {"fisher": [*map(fisher_file, paths)]}), **given)
    inputs = open_inputs(paths, ModelOptions(model=net_in(folder), labels=names_in(folder)), options)
    tell = print if told is None else told.append
    return Job(inputs, options, fisher or FisherOptions(), out or folder / "m.safetensors", overwrite=overwrite,
               progress=lambda batches, total, done: batches, tell=tell)  # fmt: skip


def names_in(folder: Path) -> Path:
    (folder / "names.txt").write_text("\n".join(COLOURS))
    return folder / "names.txt"


def test_a_merge_without_evaluation_has_no_rows(paths: list[Path], tmp_path: Path) -> None:
    told: list[str] = []
    found = job(paths, told).run()
    assert found == Outcome((0.5, 0.5), (0.0, 0.0), found.distances, [], {}, 0)
    assert told == ["entries below the floor of 1e-06 times the mean: 0.0%, 0.0%"]
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert json.loads(file.metadata()["coefficients"]) == [0.5, 0.5]
    assert job(paths, told).run().header() == found.header()
    assert "left as it is" in told[-1]


def constant(path: Path, **values: float) -> None:
    """Makes the Fisher of a checkpoint anew, of these tensors (`_` for a dot) with one value each."""
    about, state = read_statistics(fisher_file(path)).about, load_file(path)
    names = {name.replace("_", "."): value for name, value in values.items()}
    fisher = {name: torch.full_like(state[name], value) for name, value in names.items()}
    write_statistics(fisher_file(path), {name: tuple(t.shape) for name, t in fisher.items()}, fisher.items(), about)


def middle(paths: list[Path], name: str) -> torch.Tensor:
    first, second = (load_file(path)[name] for path in paths)
    return (first + second) / 2


def test_what_only_one_file_knows_has_no_part_in_the_balance(paths: list[Path], tmp_path: Path) -> None:
    constant(paths[0], conv_weight=1, norm_bias=1)
    constant(paths[1], conv_weight=1, norm_weight=1e4, norm_bias=1)
    told: list[str] = []
    job(paths, told).run()
    found = load_file(tmp_path / "m.safetensors")
    for name in ("conv.weight", "norm.weight"):
        assert_close(found[name], middle(paths, name), rtol=1e-6, atol=1e-7)
    assert "3 of 5 merged tensors have no Fisher in some file and take the plain mean, head.bias first" in told[0]
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert [each["trace"] for each in json.loads(file.metadata()["statistics"])] == [12, 12]


def test_a_head_that_is_not_merged_has_no_part_in_the_balance(paths: list[Path], tmp_path: Path) -> None:
    body = {"conv_weight": 1, "norm_weight": 1, "norm_bias": 1}
    constant(paths[0], **body, head_weight=1e4, head_bias=1)
    constant(paths[1], **body, head_weight=1, head_bias=1)
    job(paths, head="target").run()
    found = load_file(tmp_path / "m.safetensors")
    assert_close(found["conv.weight"], middle(paths, "conv.weight"), rtol=1e-6, atol=1e-7)


def test_a_fisher_of_zeros_is_refused(paths: list[Path], tmp_path: Path) -> None:
    constant(paths[1], conv_weight=0, norm_weight=0, norm_bias=0, head_weight=1, head_bias=1)
    with pytest.raises(ValueError, match=r"2.F.safetensors expected a Fisher of what is merged, found 0 in all of it"):
        job(paths, head="target").run()
    assert not (tmp_path / "m.safetensors").exists()


def test_pictures_of_classes_with_given_names_have_an_empirical_fisher(paths: list[Path], tmp_path: Path) -> None:
    told: list[str] = []
    data = shades(tmp_path / "data")
    job(paths, told, data=[data], fisher=FisherOptions(estimator="empirical")).run()
    assert sum("holds a biased estimate (empirical)" in each for each in told) == 2


def test_one_folder_for_each_checkpoint(paths: list[Path], tmp_path: Path) -> None:
    folders = [shades(tmp_path / name, count=count) for name, count in (("x", 1), ("y", 2))]
    (folders[1] / "red/broken.jpg").write_text("no picture")
    found = job(paths, [], data=folders).run()
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        told = json.loads(file.metadata()["statistics"])
        assert [(each["n"], each["skipped"]) for each in told] == [(3, []), (6, ["red/broken.jpg"])]
        assert file.metadata()["left_out"] == "1"
    assert found.left_out == 1
    assert job(paths, [], data=folders).run().left_out == 1


def test_nothing_is_spent_on_what_will_be_refused(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(estimates, "estimate_fisher", spent)
    data = shades(tmp_path / "data")
    made = job(paths, data=[data], eval=[shades(tmp_path / "whales", ["whale"])])
    with pytest.raises(LookupError, match="no class is named 'whale'"):
        made.run()
    with pytest.raises(OSError, match=r"names\.txt"):
        job(paths, data=[data], out=tmp_path / "names.txt/m.safetensors").run()
    with pytest.raises(ValueError, match=r"-o expects a new file, found .*2.safetensors, which is to be read"):
        job(paths, data=[data], out=paths[1], overwrite=True).run()
    with alone_at(tmp_path / "m.safetensors"), pytest.raises(ValueError, match="another process is writing"):
        job(paths, data=[data]).run()
    lacking = {name: tensor for name, tensor in weights(torch.eye(3)).items() if name != "norm.bias"}
    half = [paths[0], saved(tmp_path / "3.safetensors", lacking)]
    with pytest.raises(ValueError, match=r"--data expects checkpoints that fit the model, and .*3.safetensors lacks"):
        job(half, data=[data], tensors="union").run()
    for flag in ("eval", "recalibrate_bn"):
        made = job(half, method="average", tensors="intersection", **{flag: [data] if flag == "eval" else data})
        with pytest.raises(ValueError, match=r"expects a merge that fits the model, and this one lacks norm.bias"):
            made.run()
    assert not (tmp_path / "m.safetensors").exists()


def test_a_failing_write_leaves_nothing(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Job, "_merged", lambda *_: iter([("conv.weight", torch.eye(3)[:, :, None, None])]))
    before = {*tmp_path.iterdir()}
    with pytest.raises(ValueError, match="would lack"):
        job(paths, method="average").run()
    assert {path for path in tmp_path.iterdir() if path.name not in ("names.txt", "brightest.py")} == before


def test_heads_that_are_kept_say_what_they_are(paths: list[Path], tmp_path: Path) -> None:
    job(paths, method="average", head="keep-all").run()
    for number, path in enumerate(paths, 1):
        head = tmp_path / f"m.head-{number}.safetensors"
        assert load_file(head).keys() == {"head.weight", "head.bias"}
        assert_close(load_file(head)["head.weight"], load_file(path)["head.weight"], rtol=0, atol=0)
        with safe_open(head, "pt") as file:
            told = file.metadata()
        assert json.loads(told["classes"]) == [*COLOURS]
        assert told["checkpoint"] == path.name
        assert told["model"] == net_in(tmp_path)
        assert told["xai"] == version("xai-cli")


def test_models_that_lie_apart_are_told(paths: list[Path], tmp_path: Path) -> None:
    told: list[str] = []
    far = [paths[0], saved(tmp_path / "far.safetensors", weights(-9 * torch.eye(3)))]
    job(far, told, method="average").run()
    assert "share no ancestor do not merge well" in told[0]
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        (distance,) = json.loads(file.metadata()["distances"]).values()
    states = [torch.cat([tensor.flatten() for name, tensor in load_file(path).items() if "running" not in name and
                         "tracked" not in name]) for path in far]  # fmt: skip
    assert_close(distance, (states[1] - states[0]).norm() / states[0].norm(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("derived", ["m.fisher-2.safetensors", "m.fisher-1.safetensors.partial", "m.safetensors"])
def test_what_is_read_is_never_written(paths: list[Path], tmp_path: Path, derived: str) -> None:
    content = paths[0].read_bytes()
    (tmp_path / derived).symlink_to(paths[0])
    with pytest.raises(ValueError, match=rf"{derived}, which is to be read; give another -o"):
        job(paths, data=[shades(tmp_path / "data")], overwrite=True).run()
    assert paths[0].read_bytes() == content
    assert not [*tmp_path.glob("m.*csv")]


def test_class_names_are_not_written_over(paths: list[Path], tmp_path: Path) -> None:
    names = (tmp_path / "m.csv").resolve()
    names.write_text("\n".join(COLOURS))
    given = {"eval": [shades(tmp_path / "eval")], "grid": 2, "class_names": [names, names], "method": "average"}
    with pytest.raises(ValueError, match=r"-o .*m.safetensors would write .*m.csv, which is to be read"):
        job(paths, overwrite=True, **given).run()
    assert names.read_text().split() == [*COLOURS]


def test_a_table_of_something_else_is_refused(paths: list[Path], tmp_path: Path) -> None:
    given = {"eval": [shades(tmp_path / "eval")], "grid": 2, "method": "average"}
    table = tmp_path / "m.csv"
    table.write_text("mine")
    with pytest.raises(ValueError, match=r"m.csv exists and is no table of this request; give another -o, or --over"):
        job(paths, **given).run()
    assert {path.name for path in tmp_path.glob("m.*")} == {"m.csv"}
    job(paths, overwrite=True, **given).run()
    made = table.read_bytes()
    assert made.startswith(b"coefficient_1")
    told: list[str] = []
    table.unlink()
    job(paths, told, **given).run()
    assert "from the same request, and what was missing beside it is made" in told[0]
    assert table.read_bytes() == made
    assert not [*tmp_path.glob("*.search")]
    table.unlink()
    table.mkdir()
    with pytest.raises(ValueError, match=r"m.csv, which is a folder"):
        job(paths, overwrite=True, **given).run()


def test_a_search_goes_on_whose_table_is_written(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"eval": [shades(tmp_path / "eval")], "grid": 2, "data": [shades(tmp_path / "data")]}

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            job(paths, **given).run()
    assert (tmp_path / "m.csv").exists()
    monkeypatch.setattr(module, "search", lambda *given, **how: search(given[0], killed, **how))  # type: ignore[arg-type]
    job(paths, **given).run()
    assert not [*tmp_path.glob("*.search")]


def test_a_lost_head_comes_back_and_one_of_others_stays(paths: list[Path], tmp_path: Path) -> None:
    given = {"method": "average", "head": "keep-all"}
    job(paths, **given).run()
    heads = [tmp_path / f"m.head-{number}.safetensors" for number in (1, 2)]
    content = [head.read_bytes() for head in heads]
    heads[1].unlink()
    job(paths, **given).run()
    assert [head.read_bytes() for head in heads] == content
    heads[0].write_bytes(content[1])
    for lost in ((), ("m.safetensors",)):
        for name in lost:
            (tmp_path / name).unlink()
        with pytest.raises(
            ValueError, match=r"m.head-1.safetensors exists and is not the answer .*\(other checkpoint\)"
        ):
            job(paths, **given).run()
        assert heads[0].read_bytes() == content[1]
    assert not (tmp_path / "m.safetensors").exists()
    job(paths, overwrite=True, **given).run()
    assert [head.read_bytes() for head in heads] == content


def test_heads_are_written_first(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"method": "average", "head": "keep-all"}

    def failing(path: Path, *rest: Any, **named: Any) -> None:
        if path.name == "m.head-2.safetensors":
            raise OSError(28, "No space left on device")
        write_tensors(path, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_tensors", failing)
        with pytest.raises(OSError, match="No space"):
            job(paths, **given).run()
    assert {path.name for path in tmp_path.glob("m.*")} == {"m.head-1.safetensors"}
    job(paths, **given).run()
    assert len([*tmp_path.glob("m.*")]) == 3


def test_another_request_is_refused_before_anything_is_estimated(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent(*_: object, **__: object) -> None:
        raise AssertionError

    data = shades(tmp_path / "data")
    job(paths, [], data=[data]).run()
    for path in tmp_path.glob("m.fisher-*"):
        path.unlink()
    monkeypatch.setattr(estimates, "estimate_fisher", spent)
    for other in ({"floor": 0.5}, {"fisher": FisherOptions(count=3)}, {"fisher": FisherOptions(params="head")}):
        with pytest.raises(ValueError, match=r"m.safetensors exists and is not the answer .* \(other (options|data)\)"):
            job(paths, [], data=[data], **other).run()


def test_overwritten_is_the_merge_and_not_its_fishers(paths: list[Path], tmp_path: Path) -> None:
    data, told = [shades(tmp_path / "data")], list[str]()
    job(paths, told, data=data).run()
    files = [tmp_path / f"m.fisher-{number}.safetensors" for number in (1, 2)]
    stamps = [file.stat().st_mtime_ns for file in files]
    merge = (tmp_path / "m.safetensors").stat().st_ino
    job(paths, told, data=data, overwrite=True).run()
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert (tmp_path / "m.safetensors").stat().st_ino != merge
    assert f"{files[0]} is there already, from the same request, and kept; remove it" in " ".join(told)
    job(paths, told, data=data, overwrite=True, fisher=FisherOptions(count=3)).run()
    assert [read_statistics(file).about.n for file in files] == [3, 3]


@pytest.mark.parametrize(
    ("coefficients", "expected"), [("1,0", [None, None]), ("1,0,1", [0.0, None, 0.0]), ("1,1", [0.0, 0.0])]
)
def test_who_takes_no_part_has_no_floor(
    paths: list[Path], tmp_path: Path, coefficients: str, expected: list[float | None]
) -> None:
    third = saved(tmp_path / "3.safetensors", weights(torch.eye(3), 3))
    fisher_of(third, 3)
    given = [*paths, third][: len(expected)]
    assert job(given, coefficients=coefficients).run().floored == tuple(expected)
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert json.loads(file.metadata()["floored"]) == expected
