from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from merges import COLOURS, fisher_file, fisher_of, net_in, saved, weights
from safetensors.torch import save_file

from xai_cli.classifiers.options import ModelOptions
from xai_cli.merging.inputs import open_inputs
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.pictures import Picture
from xai_cli.merging.provenance import (
    Outcome,
    digest_of_request,
    head_header,
    request_of,
    statistics_asked,
    told_by,
    written_before,
)
from xai_cli.merging.statistics import About, Statistics
from xai_cli.merging.weights import Weights


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [saved(tmp_path / f"{n}.safetensors", weights(torch.eye(3), n)) for n in (1, 2)]
    for path in found:
        fisher_of(path, 0)
    return found


def asked(
    paths: list[Path], model: ModelOptions, pictures: tuple[Picture, ...] = (), **given: object
) -> dict[str, str]:
    fisher = FisherOptions(**{name: given.pop(name) for name in ("seed", "batch_size") if name in given})  # type: ignore[arg-type]
    options = MergeOptions(fisher=[fisher_file(path) for path in paths], **given)  # type: ignore[arg-type]
    inputs = open_inputs(paths, model, options)
    statistics = [inputs.statistics(n, fisher_file(path)) for n, path in enumerate(paths)]
    return request_of(inputs, options, {"--eval x": pictures}, fisher) | statistics_asked(statistics)


def test_a_request_is_all_that_the_result_depends_on(tmp_path: Path, paths: list[Path]) -> None:
    net = net_in(tmp_path)
    for number, names in enumerate((COLOURS, ("x", "y", "z")), 1):
        (tmp_path / f"{number}.txt").write_text("\n".join(names))
    (tmp_path / "p.png").write_bytes(b"1")
    names, data = [tmp_path / f"{n}.txt" for n in (1, 2)], tmp_path / "p.png"
    found = [
        asked(paths, ModelOptions(model=net)),
        asked(paths[::-1], ModelOptions(model=net)),
        asked(paths, ModelOptions(model=net, ema=False)),
        asked(paths, ModelOptions(model=net, mean=(0, 0, 0))),
        asked(paths, ModelOptions(model=net, input_size=(4, 4))),
        asked(paths, ModelOptions(model=net, labels=names[0])),
        asked(paths, ModelOptions(model=net), class_names=names[:1] * 2),
        asked(paths, ModelOptions(model=net), class_names=names),
        asked(paths, ModelOptions(model=net), coefficients="1,2"),
        asked(paths, ModelOptions(model=net), floor=0.1),
        asked(paths, ModelOptions(model=net), normalize="none"),
        asked(paths, ModelOptions(model=net), seed=1),
        asked(paths, ModelOptions(model=net), (Picture("p.png", data),)),
        asked(paths, ModelOptions(model=net), recalibrate_bn=tmp_path),
        asked(paths, ModelOptions(model=net), recalibrate_bn=tmp_path, batch_size=3),
    ]
    digests = [digest_of_request(request) for request in found]
    # Names for all alike are the same names, by whichever flag.
    assert digests[5] == digests[6]
    assert len({*digests}) == len(digests) - 1
    same = [
        asked(paths, ModelOptions(model=net), batch_size=3),
        asked(paths, ModelOptions(model=net, device="cpu", compile=True)),
        asked(paths, ModelOptions(model=net), dry_run=True),
    ]
    assert {digest_of_request(request) for request in same} == {digests[0]}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = [path.rename(elsewhere / path.name) for path in paths]
    for path in paths:
        fisher_file(path).rename(fisher_file(elsewhere / path.name))
    assert asked(moved, ModelOptions(model=net)) == found[0]


def test_a_file_is_the_answer_or_refused(tmp_path: Path) -> None:
    out, request = tmp_path / "m.safetensors", {"xai": "1", "model": "m", "classes": "null"}
    assert not written_before(out, request, overwrite=False)
    rows = [{"name": "a", "coefficients": None, "accuracy": {"x": 0.5}, "mean": 0.5}]
    found = Outcome([1, 0], [0.5, None], {"2": 0.5}, rows, {"x": 2}, 3)
    save_file({"w": torch.ones(1)}, out, {**request, **found.header()})
    assert written_before(out, request, overwrite=False)
    assert not written_before(out, request, overwrite=True)
    assert told_by(out) == found
    for name in ("model", "new"):
        with pytest.raises(
            ValueError, match=rf"m.safetensors exists and is not the answer to .* \(other {name}\); give"
        ):
            written_before(out, {**request, name: "n"}, overwrite=False)
    out.write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"exists and is not the answer to this request \(no merge\); give another -o"):
        written_before(out, request, overwrite=False)


def test_what_is_known_at_the_end_is_json() -> None:
    found = Outcome((0.25, 0.75), (0.0, None), {"2": 2.0}, [], {"x": 2}, 1)
    assert {name: json.loads(text) for name, text in found.header().items()} == {
        "coefficients": [0.25, 0.75], "floored": [0.0, None], "distances": {"2": 2.0}, "evaluation": [],
        "evaluated_pictures": {"x": 2}, "left_out": 1,
    }  # fmt: skip


def test_statistics_are_told_by_all_that_made_them(paths: list[Path]) -> None:
    about = About("fisher", "m", "weights", "pictures", "inputs", n=7, params="head", error=0.5, skipped=("a.png",),
                  per_example="one by one")  # fmt: skip
    (told,) = json.loads(statistics_asked([Statistics(Weights(paths[0]), about)])["statistics"])
    expected = {**asdict(about), "name": "1.safetensors", "skipped": ["a.png"]}
    # The model and the file of its weights stand with the merge, and the contents of each picture would be long.
    left = ("model", "checkpoint_sha256", "contents")
    assert told == {name: value for name, value in expected.items() if name not in left}


def test_a_head_says_which_it_is(tmp_path: Path, paths: list[Path]) -> None:
    inputs = open_inputs(paths, ModelOptions(model=net_in(tmp_path)), MergeOptions(method="average"))
    first, second = (head_header(inputs, number) for number in (0, 1))
    assert (first["checkpoint"], second["checkpoint"]) == ("1.safetensors", "2.safetensors")
    assert first["checkpoint_sha256"] == inputs.weights[0].sha256
    # Both have the same head, which of averaged weights in one file would be two.
    assert first["digest"] == second["digest"]
    third = saved(tmp_path / "3.safetensors", weights(2 * torch.eye(3), 1))
    inputs = open_inputs([paths[0], third], ModelOptions(model=net_in(tmp_path)), MergeOptions(method="average"))
    assert head_header(inputs, 1)["digest"] != first["digest"]
