"""`xai merge-fisher` from a shell: what it writes, prints and says, and every way to end."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import Answer, assert_close, run_xai
from merges import COLOURS, PARAMETERS, fisher_file, fisher_of, net_in, saved, shades, weights
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from xai_cli.classifiers.loading import load_classifier
from xai_cli.merging import judging
from xai_cli.merging.batch_norm import recalibrate
from xai_cli.merging.judging import Court
from xai_cli.merging.pictures import batches, labelled

RIGHT = torch.eye(3)
SWAPPED = torch.eye(3)[[1, 0, 2]]  # red and green change places: a third is right


@pytest.fixture
def net(tmp_path: Path) -> str:
    return net_in(tmp_path)


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """A checkpoint that is right, and a louder one that takes red for green; both with Fishers."""
    found = [saved(tmp_path / "a.safetensors", weights(2 * RIGHT, 1)),
             saved(tmp_path / "b.safetensors", weights(3 * SWAPPED, 2))]  # fmt: skip
    for seed, path in enumerate(found):
        fisher_of(path, seed)
    return found


@pytest.fixture
def names(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    return tmp_path / "names.txt"


def given(checkpoints: Sequence[Path]) -> list[object]:
    """The checkpoints with their Fishers."""
    return [*checkpoints, *(part for path in checkpoints for part in ("--fisher", fisher_file(path)))]


def merged(*arguments: object) -> Answer:
    return run_xai("merge-fisher", *arguments)


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        texts = file.metadata()
    return {name: json.loads(text) if text[:1] in '[{"' or text == "null" else text for name, text in texts.items()}


def by_hand(
    checkpoints: Sequence[Path], fishers: Sequence[dict[str, Tensor]], shares: Sequence[float]
) -> dict[str, Tensor]:
    """Matena & Raffel (2022), each Fisher divided by its length."""
    states = [load_file(path) for path in checkpoints]
    lengths = [torch.cat([each.flatten() for each in fisher.values()]).norm() for fisher in fishers]
    parts = [{name: share * fisher[name] / length for name in fisher}
             for share, fisher, length in zip(shares, fishers, lengths, strict=True)]  # fmt: skip
    return {
        name: sum(part[name] * state[name] for part, state in zip(parts, states, strict=True))
        / sum(part[name] for part in parts)
        for name in PARAMETERS
    }


@pytest.mark.parametrize("shares", [(0.3, 0.7), (0.2, 0.5, 0.3)])
def test_the_file_holds_the_formula_and_says_what_it_was_made_of(
    net: str, tmp_path: Path, shares: tuple[float, ...]
) -> None:
    found = [saved(tmp_path / f"{number}.safetensors", weights(torch.randn(3, 3), number)) for number, _ in
             enumerate(shares)]  # fmt: skip
    fishers = [fisher_of(path, seed) for seed, path in enumerate(found)]
    out = tmp_path / "new/m.safetensors"
    answer = merged(*given(found), "--model", net, "--coefficients", ",".join(map(str, shares)), "-o", out)
    assert (answer.code, answer.paths) == (0, [str(out)]), answer.said
    state = load_file(out)
    for name, expected in by_hand(found, fishers, shares).items():
        assert_close(state[name], expected, rtol=1e-5, atol=1e-6)
    assert state["norm.num_batches_tracked"] == len(shares) - 1
    told = header(out)
    assert [each["sha256"] for each in told["checkpoints"]] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in found
    ]
    assert told["coefficients"] == list(shares)
    assert [(each["estimator"], each["n"]) for each in told["statistics"]] == [("expected", 7)] * len(shares)
    assert told["options"]["floor"] == 1e-6
    floors = [1e-6 * torch.cat([each.flatten() for each in fisher.values()]).mean() for fisher in fishers]
    low = [sum(int((each <= floor).sum()) for each in fisher.values()) for fisher, floor in
           zip(fishers, floors, strict=True)]  # fmt: skip
    assert_close(told["floored"], [count / 27 for count in low], rtol=1e-9, atol=0)
    again = tmp_path / "again.safetensors"
    merged(*given(found), "--model", net, "--coefficients", ",".join(map(str, shares)), "-o", again)
    assert again.read_bytes() == out.read_bytes()


def test_json_without_evaluation(net: str, pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    for method, floored in (("average", None), ("fisher", [0.0, 0.0])):
        files = given(pair) if method == "fisher" else pair
        answer = merged(*files, "--model", net, "--method", method, "-o", out, "--json", "--overwrite")
        assert [json.loads(line) for line in answer.paths] == [
            {"path": str(out), "coefficients": [0.5, 0.5], "floored": floored}
        ]


def test_floors_and_their_shares(net: str, pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    answer = merged(*given(pair), "--model", net, "--floor", 1, "-o", out)
    told = header(out)["floored"]
    for share, path in zip(told, pair, strict=True):
        entries = torch.cat([each.flatten() for each in load_file(fisher_file(path)).values()])
        assert_close(share, (entries <= entries.mean()).float().mean(), rtol=1e-6, atol=0)
    assert f"entries below the floor of 1 times the mean: {told[0]:.1%}, {told[1]:.1%}" in answer.said


def test_fishers_are_made_on_the_way_and_found_again(net: str, pair: list[Path], tmp_path: Path) -> None:
    data, out = shades(tmp_path / "data"), tmp_path / "m.safetensors"
    answer = merged(*pair, "--model", net, "--data", data, "-o", out)
    assert (answer.code, answer.paths) == (0, [str(out)]), answer.said
    files = [tmp_path / f"m.fisher-{number}.safetensors" for number in (1, 2)]
    for path, file in zip(pair, files, strict=True):
        run_xai("fisher", net, "--checkpoint", path, "--data", data, "-o", tmp_path / "own.safetensors", "--overwrite")
        assert (tmp_path / "own.safetensors").read_bytes() == file.read_bytes()
    expected = by_hand(pair, [load_file(file) for file in files], (1, 1))
    assert_close(load_file(out)["head.weight"], expected["head.weight"], rtol=1e-4, atol=1e-5)
    assert [each["n"] for each in header(out)["statistics"]] == [6, 6]
    stamps = [file.stat().st_mtime_ns for file in files]
    other = merged(*pair, "--model", net, "--data", data, "--coefficients", "1,3", "-o", out, "--normalize", "trace")
    assert (
        other.code,
        "is not the answer to this request (other options); give another -o, or --overwrite" in other.said,
    ) == (2, True)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert merged(*pair, "--model", net, "--data", data, "-o", out, "--overwrite", "--normalize", "trace").code == 0
    assert [file.stat().st_mtime_ns for file in files] == stamps


def test_accuracies_of_inputs_plain_mean_and_merge(net: str, pair: list[Path], names: Path, tmp_path: Path) -> None:
    evaluated, out = shades(tmp_path / "eval"), tmp_path / "m.safetensors"
    arguments = [*given(pair), "--model", net, "--labels", names, "--eval", evaluated, "--coefficients", "1,0"]
    answer = merged(*arguments, "-o", out, "--json")
    *rows, last = [json.loads(line) for line in answer.paths]
    assert last == {"path": str(out), "coefficients": [1.0, 0.0], "floored": [None, None]}
    third = pytest.approx(1 / 3)
    assert [(row["name"], row["coefficients"], row["accuracy"], row["mean"]) for row in rows] == [
        ("a.safetensors", None, {"eval": 1.0}, 1.0),
        ("b.safetensors", None, {"eval": third}, third),
        ("plain mean", [0.5, 0.5], {"eval": third}, third),
        ("fisher", [1.0, 0.0], {"eval": 1.0}, 1.0),
    ]
    assert "xai: b.safetensors 33.3% 33.3% xai: plain mean (0.5, 0.5) 33.3% 33.3% xai: fisher (1, 0) 100" in answer.said
    assert header(out)["evaluation"] == rows
    assert header(out)["evaluated_pictures"] == {"eval": 6}
    before = out.stat().st_mtime_ns
    again = merged(*arguments, "-o", out, "--json")
    assert (again.code, again.paths, out.stat().st_mtime_ns) == (0, answer.paths, before)
    assert "from the same request, and left as it is; --overwrite makes it again" in again.said
    (evaluated / "red/0.png").unlink()
    changed = merged(*arguments, "-o", out)
    assert (changed.code, "is not the answer to this request (other pictures)" in changed.said) == (2, True)
    assert merged(*arguments, "-o", out, "--mean", 0, 0, 0).code == 2
    assert merged(*arguments, "-o", out, "--overwrite").code == 0


def test_a_grid_finds_the_best_and_ties_go_to_equal_ones(
    net: str, pair: list[Path], names: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    common = ["--model", net, "--labels", names, "--eval", shades(tmp_path / "eval"), "--grid", 3, "-o", out]
    answer = merged(*given(pair), *common)
    assert answer.code == 0, answer.said
    assert header(out)["coefficients"] == [1, 0]
    assert f"best of 3 coefficients, all in {tmp_path / 'm.csv'}: 1, 0, mean 100.0%" in answer.said
    assert "the accuracies of this merge are optimistic, since the pictures of --eval chose it" in answer.said
    rows = list(csv.DictReader((tmp_path / "m.csv").open()))
    assert [(row["coefficient_1"], row["coefficient_2"]) for row in rows] == [
        ("0.5", "0.5"), ("1.0", "0.0"), ("0.0", "1.0"),
    ]  # fmt: skip
    assert [float(row["accuracy_eval"]) for row in rows] == pytest.approx([1 / 3, 1, 1 / 3])
    assert not [*tmp_path.glob("*.search")]
    loud = saved(tmp_path / "a.safetensors", weights(5 * RIGHT))
    fisher_of(loud, 0)
    fisher_of(pair[1], 0)
    assert merged(*given([loud, pair[1]]), *common, "--overwrite").code == 0
    assert header(out)["coefficients"] == [0.5, 0.5]


def test_random_coefficients_are_seeded(net: str, pair: list[Path], names: Path, tmp_path: Path) -> None:
    third = saved(tmp_path / "c.safetensors", weights(RIGHT, 3))
    found = [*pair, third]
    fisher_of(third, 3)
    evaluated = shades(tmp_path / "eval")

    def tried(out: str, *options: object) -> list[list[str]]:
        answer = merged(*given(found), "--model", net, "--labels", names, "--eval", evaluated, "--random", 4,
                        "-o", tmp_path / out, *options)  # fmt: skip
        assert answer.code == 0, answer.said
        return list(csv.reader((tmp_path / out).with_suffix(".csv").open()))

    first = tried("1.safetensors")
    assert tried("2.safetensors") == first
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert tried("3.safetensors", "--seed", 1) != first
    assert [float(cell) for cell in first[1][:3]] == pytest.approx([1 / 3] * 3)
    assert all(sum(map(float, row[:3])) == pytest.approx(1) for row in first[1:])
    assert len(first) == 6


def test_a_plan_is_printed_and_nothing_written(net: str, pair: list[Path], tmp_path: Path) -> None:
    before = {*tmp_path.rglob("*")}
    answer = merged(*pair, "--model", net, "--dry-run")
    assert answer.code == 0
    assert "norm.running_var\tmixture\t(3,)\tfloat32\t" in answer.paths
    assert "head.weight\tmerge\t(3, 3)\tfloat32\t" in answer.paths
    assert "total\tmerge\t5 tensors\t27 values\t" in answer.paths
    assert {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} == before


def test_mistakes_are_one_sentence(net: str, pair: list[Path], names: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    data, flat = shades(tmp_path / "data"), shades(tmp_path / "flat", [""])
    whales = shades(tmp_path / "whales", ["whale"])
    out, a, b, fishers = tmp_path / "m.safetensors", *pair, given(pair)
    cases: dict[tuple[object, ...], tuple[int, str]] = {
        (a,): (2, "a merge expects two checkpoints or more, found 1"),
        (a, b): (2, "--method fisher expects statistics of every checkpoint, found none; give --fisher FILE or --data"),
        (a, b, "--data", tmp_path / "empty"): (4, "expected a folder of pictures, found no picture in"),
        (*fishers, "--eval", tmp_path / "empty"): (4, "expected a folder of pictures, found no picture in"),
        (*fishers, "--eval", tmp_path / "no"): (2, "expected a folder of pictures, found none at"),
        (*fishers, "--recalibrate-bn", tmp_path / "no"): (2, "expected a folder of pictures, found none at"),
        (*fishers, "--eval", flat): (2, "labels are needed, and pictures lie in no folder named after a class"),
        (*fishers, "--labels", names, "--eval", whales): (2, "no class is named 'whale'"),
        (*fishers, "--eval", data, "--eval", data): (2, "--eval expects each folder once, found one twice"),
        (*fishers, "--grid", 3): (2, "--grid expects labelled pictures to score merges on, found none; add --eval"),
        (*fishers, "--checkpoint", a): (2, "--checkpoint is for one model; name the checkpoints to merge one after"),
        (*fishers, "--labels", flat / "0.png"): (2, "--labels expects"),
        (*fishers, "-o", tmp_path / "file/m.safetensors"): (5, "file"),
        (*fishers, "-o", a, "--overwrite"): (2, "-o expects a new file, found"),
        (*fishers, "-o", "m.pt"): (2, "expected a .safetensors file to write, found m.pt; give it with -o"),
        (a, tmp_path / "no.pt", "--data", data): (2, "expected the file of a checkpoint, found nothing at"),
        (a, b, "--fisher", a, "--fisher", b): (2, "expected statistics as 'xai fisher' writes them, found no"),
        (*fishers, "--method", "regmean"): (2, "--method regmean expects gram statistics, found fisher in"),
        (a, b, "--fisher", fisher_file(b), "--fisher", fisher_file(a)): (2, "give the statistics in the order of the"),
    }
    for arguments, (code, message) in cases.items():
        answer = merged("--model", net, "-o", out, *arguments)
        assert (answer.code, answer.paths) == (code, []), (arguments, answer.said)
        assert message in answer.said, answer.said
        assert not out.exists()


def test_a_fisher_of_another_model_is_refused_with_both_digests(net: str, pair: list[Path], tmp_path: Path) -> None:
    other = saved(tmp_path / "c.safetensors", weights(RIGHT, 3))
    fisher_of(other, 3)
    answer = merged(*pair, "--fisher", fisher_file(pair[0]), "--fisher", fisher_file(other), "--model", net,
                    "-o", tmp_path / "m.safetensors")  # fmt: skip
    digests = [load_classifier(net, checkpoint=path, fold=False).digest[:12] for path in (other, pair[1])]
    assert answer.code == 2
    assert f"was made of other weights ({digests[0]}) than those of {pair[1]} ({digests[1]})" in answer.said


def test_broken_pictures_are_counted_once(net: str, pair: list[Path], names: Path, tmp_path: Path) -> None:
    evaluated = shades(tmp_path / "eval")
    (evaluated / "red/broken.png").write_bytes(b"<html>")
    arguments = [*given(pair), "--model", net, "--labels", names, "--eval", evaluated, "--recalibrate-bn", evaluated,
                 "--grid", 2, "-o", tmp_path / "m.safetensors"]  # fmt: skip
    answer = merged(*arguments)
    assert (answer.code, answer.paths) == (3, [str(tmp_path / "m.safetensors")])
    assert answer.said.count("red/broken.png is left out") == 1
    assert header(tmp_path / "m.safetensors")["evaluated_pictures"] == {"eval": 6}
    assert merged(*arguments).code == 3
    data = merged(*pair, "--model", net, "--data", evaluated, "-o", tmp_path / "d.safetensors")
    assert data.code == 3


def test_the_merge_loads_wherever_checkpoints_do(net: str, pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    merged(*given(pair), "--model", net, "-o", out)
    image = next(shades(tmp_path / "data").rglob("*.png"))
    for command in (("explain", "--method", "saliency"), ("gradcam",)):
        answer = run_xai(*command, image, "--model", net, "--checkpoint", out, "--out", tmp_path / command[0])
        assert answer.code == 0, answer.said


def test_a_timm_model(tmp_path: Path) -> None:
    name = "mobilenetv3_small_050"
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        module = timm.create_model(name, num_classes=4)
        found.append(saved(tmp_path / f"{seed}.safetensors", module.state_dict()))
    out = tmp_path / "m.safetensors"
    answer = merged(*found, "--model", f"timm/{name}", "--method", "average", "-o", out)
    assert answer.code == 0, answer.said
    state = timm.create_model(name, num_classes=4, checkpoint_path=str(out)).state_dict()
    mean = (load_file(found[0])["classifier.weight"] + load_file(found[1])["classifier.weight"]) / 2
    assert_close(state["classifier.weight"], mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ema", [True, False])
def test_training_checkpoints_with_prefixes_and_averaged_weights(net: str, tmp_path: Path, ema: bool) -> None:
    kinds = {"state_dict": [weights(RIGHT, n) for n in (1, 2)], "state_dict_ema": [weights(2 * RIGHT, n + 4)
                                                                                   for n in (1, 2)]}  # fmt: skip
    found = [tmp_path / f"{number}.pt" for number in range(2)]
    for number, path in enumerate(found):
        wrapped = {kind: {f"module.{name}": tensor for name, tensor in states[number].items()}
                   for kind, states in kinds.items()}  # fmt: skip
        torch.save({"epoch": 3, **wrapped}, path)
    data, out = shades(tmp_path / "data"), tmp_path / "m.safetensors"
    flags = [] if ema else ["--no-ema"]
    answer = merged(*found, "--model", net, "--data", data, "-o", out, *flags)
    assert answer.code == 0, answer.said
    assert "its names are read without 'module.'" in answer.said
    plain = [saved(tmp_path / f"{n}.safetensors", state) for n, state in
             enumerate(kinds["state_dict_ema" if ema else "state_dict"])]  # fmt: skip
    alone = tmp_path / "plain.safetensors"
    assert merged(*plain, "--model", net, "--data", data, "-o", alone).code == 0
    for name, tensor in load_file(alone).items():
        assert torch.equal(load_file(out)[name], tensor), name
    for number in (1, 2):
        first, second = (load_file(tmp_path / f"{stem}.fisher-{number}.safetensors") for stem in ("m", "plain"))
        assert torch.equal(first["conv.weight"], second["conv.weight"])


@pytest.mark.parametrize("how", ["given", "data", "eval"])
def test_not_a_number_names_the_tensor(net: str, pair: list[Path], tmp_path: Path, how: str) -> None:
    broken = weights(RIGHT, 2)
    broken["norm.weight"][1] = float("nan")
    saved(pair[1], broken)
    fisher_of(pair[1], 1)
    data = shades(tmp_path / "data", ["0", "1", "2"])
    arguments = {"given": given(pair), "data": [*pair, "--data", data], "eval": [*given(pair), "--eval", data]}[how]
    before = {*tmp_path.iterdir()}
    answer = merged(*arguments, "--model", net, "-o", tmp_path / "m.safetensors")
    assert (answer.code, answer.paths) == (2, [])
    assert f"{pair[1]}: norm.weight holds NaN or infinity, expected finite numbers" in answer.said
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before


def test_other_architectures_and_what_may_be_typed(net: str, pair: list[Path], tmp_path: Path) -> None:
    alien = {name.replace("conv", "stem"): tensor for name, tensor in weights(RIGHT).items()}
    alien = {name.replace("head", "fc"): tensor for name, tensor in alien.items()}
    found = [pair[0], saved(tmp_path / "alien.safetensors", alien)]
    answer = merged(*found, "--model", net, "--method", "average", "-o", tmp_path / "m.safetensors")
    assert (answer.code, answer.paths) == (2, [])
    first = f"conv.weight: {pair[0]} (3, 3, 1, 1), not in {found[1]}; head.weight: "
    assert "the checkpoints do not match: " in answer.said
    assert first.split(";")[0] in answer.said
    assert "and 1 more; choose --tensors union, intersection or target" in answer.said


def two_tasks(tmp_path: Path) -> tuple[list[Path], list[object]]:
    """A checkpoint for red and green and one for green, blue and cyan, with what tells of their classes and folders."""
    first = weights(RIGHT[:2], head__bias=torch.tensor([0.0, 0.5]))
    # It is loud enough to drown the other head.
    second = weights(torch.cat([RIGHT[1:], torch.zeros(1, 3)]) * 100, head__bias=torch.tensor([4.0, 6, 8]))
    found = [saved(tmp_path / "warm.safetensors", first), saved(tmp_path / "cold.safetensors", second)]
    flags: list[object] = []
    for path, classes in zip(found, (COLOURS[:2], (*COLOURS[1:], "cyan")), strict=True):
        path.with_suffix(".txt").write_text("\n".join(classes))
        flags += ["--class-names", path.with_suffix(".txt")]
    folders = [shades(tmp_path / "warm", COLOURS[:2]), shades(tmp_path / "cold")]
    for picture in [*(folders[1] / "red").iterdir()]:
        picture.unlink()
    return found, [*flags, "--eval", folders[0], "--eval", folders[1]]


def test_heads_of_other_classes(net: str, tmp_path: Path) -> None:
    found, flags = two_tasks(tmp_path)
    common = [*found, "--model", net, "--method", "average", "-o", tmp_path / "m.safetensors", "--overwrite", "--json"]
    heads = [load_file(path)["head.weight"] for path in found]

    def rows(*options: object) -> list[dict[str, float]]:
        answer = merged(*common, *options)
        assert answer.code == 0, answer.said
        return [json.loads(line)["accuracy"] for line in answer.paths[:-1]]

    first, second, mean, merge = rows(*flags)
    assert (first, second, mean, merge) == ({"warm": 1.0}, {"cold": 1.0}, {"warm": 1.0}, {"warm": 1.0})
    assert torch.equal(load_file(tmp_path / "m.safetensors")["head.weight"], heads[0])
    assert rows(*flags, "--target", 2)[3] == {"cold": 1.0}
    answer = merged(*common, *flags, "--head", "merge")
    assert (answer.code, "--head merge expects the same classes in all checkpoints" in answer.said) == (2, True)
    assert rows(*flags, "--head", "keep-all")[2:] == [{"warm": 1.0, "cold": 1.0}] * 2
    body = load_file(tmp_path / "m.safetensors")
    for number, (head, classes) in enumerate(zip(heads, (2, 3), strict=True), 1):
        state = body | load_file(tmp_path / f"m.head-{number}.safetensors")
        assert torch.equal(state["head.weight"], head)
        path = saved(tmp_path / "whole.safetensors", state)
        assert len(load_classifier(net, checkpoint=path, num_classes=classes).labels) == classes


def test_rows_of_heads_come_together_by_name(net: str, tmp_path: Path) -> None:
    found, flags = two_tasks(tmp_path)
    out = tmp_path / "m.safetensors"
    answer = merged(*found, "--model", net, "--method", "average", "-o", out, "--head", "by-name", *flags, "--json")
    assert answer.code == 0, answer.said
    state, heads = load_file(out), [load_file(path)["head.weight"] for path in found]
    assert header(out)["classes"] == [*COLOURS, "cyan"]
    expected = torch.stack([heads[0][0], (heads[0][1] + heads[1][0]) / 2, heads[1][1], heads[1][2]])
    assert_close(state["head.weight"], expected, rtol=1e-6, atol=0)
    # Cyan's bias would win everywhere: each folder is answered among the classes of one checkpoint.
    assert json.loads(answer.paths[2])["accuracy"] == {"warm": 1.0, "cold": 1.0}
    assert f"warm: merged heads answer among the 2 of 4 classes that {found[0]} has" in answer.said
    assert f"cold: merged heads answer among the 3 of 4 classes that {found[1]} has" in answer.said
    unnamed = merged(*found, "--model", net, "--method", "average", "-o", out, "--head", "by-name")
    assert (unnamed.code, "--head by-name expects the class names of every checkpoint" in unnamed.said) == (2, True)


def test_a_search_needs_a_folder_that_the_merge_can_answer(net: str, tmp_path: Path) -> None:
    found, flags = two_tasks(tmp_path)
    answer = merged(*found, "--model", net, "--method", "average", "-o", tmp_path / "m.safetensors", "--grid", 2,
                    *flags[:4], *flags[6:])  # fmt: skip
    assert (answer.code, answer.paths) == (2, [])
    assert "a search expects --eval with classes of the merge's head, found those of other" in answer.said
    strange = merged(*found, "--model", net, "--method", "average", "-o", tmp_path / "m.safetensors", *flags,
                     "--eval", shades(tmp_path / "whales", ["whale"]))  # fmt: skip
    assert (strange.code, "no class is named 'whale'" in strange.said) == (2, True)


def test_tensors_that_some_checkpoint_lacks(net: str, tmp_path: Path) -> None:
    biased, out = weights(RIGHT, 1), tmp_path / "m.safetensors"
    lacking = {name: tensor for name, tensor in weights(RIGHT, 2).items() if name != "norm.bias"}
    found = [saved(tmp_path / "a.safetensors", biased), saved(tmp_path / "b.safetensors", lacking)]
    common = [*found, "--model", net, "--method", "average", "-o", out, "--overwrite"]
    refused = merged(*common)
    assert (refused.code, "choose --tensors union, intersection or target" in refused.said) == (2, True)
    assert merged(*common, "--tensors", "union").code == 0
    assert load_file(out).keys() == biased.keys()
    less = merged(*common, "--tensors", "intersection")
    assert less.code == 0
    assert load_file(out).keys() == lacking.keys()
    assert "the merge lacks norm.bias of the model: no command can load it as it is" in less.said
    data = shades(tmp_path / "data", ["0", "1", "2"])
    whole = merged(*common, "--tensors", "union", "--eval", data, "--json")
    assert whole.code == 0, whole.said
    assert [json.loads(line)["mean"] for line in whole.paths[:-1]] == [1.0, None, 1.0, 1.0]
    assert f"{found[1]} is not evaluated: it lacks norm.bias of the model" in whole.said
    never = merged(*common, "--tensors", "intersection", "--eval", data)
    assert (never.code, "--eval expects a merge that fits the model, and this one lacks norm.bias" in never.said) == (
        2, True,
    )  # fmt: skip
    unmade = merged(*found, "--model", net, "--data", data, "-o", out, "--overwrite", "--tensors", "union")
    assert (unmade.code, f"--data expects checkpoints that fit the model, and {found[1]} lacks" in unmade.said) == (
        2, True,
    )  # fmt: skip


def test_tensors_of_another_shape(net: str, tmp_path: Path) -> None:
    other = weights(RIGHT, 2, conv__weight=torch.ones(3, 3, 3, 3))
    found = [saved(tmp_path / "a.safetensors", weights(RIGHT, 1)), saved(tmp_path / "b.safetensors", other)]
    out = tmp_path / "m.safetensors"
    common = [*found, "--model", net, "--method", "average", "-o", out, "--overwrite"]
    refused = merged(*common)
    assert (refused.code, "choose --on-mismatch target or skip" in refused.said) == (2, True)
    assert merged(*common, "--on-mismatch", "target").code == 0
    assert torch.equal(load_file(out)["conv.weight"], load_file(found[0])["conv.weight"])
    skipped = merged(*common, "--on-mismatch", "skip")
    assert skipped.code == 0
    assert "conv.weight" not in load_file(out)
    assert "the merge lacks conv.weight of the model" in skipped.said
    odd = merged(*common, "--on-mismatch", "target", "--target", 2)
    assert "the merge holds conv.weight in another shape than the model" in odd.said


def test_batch_norm(net: str, pair: list[Path], tmp_path: Path) -> None:
    out, data = tmp_path / "m.safetensors", shades(tmp_path / "data")
    common = [*given(pair), "--model", net, "-o", out, "--overwrite"]
    states = [load_file(path) for path in pair]
    assert merged(*common, "--batch-norm", "average").code == 0
    plain = load_file(out)
    variances = torch.stack([state["norm.running_var"] for state in states])
    means = torch.stack([state["norm.running_mean"] for state in states])
    assert_close(plain["norm.running_var"], variances.mean(0), rtol=1e-6, atol=0)
    assert merged(*common).code == 0
    assert_close(load_file(out)["norm.running_var"], variances.mean(0) + means.var(0, correction=0), rtol=1e-6, atol=0)
    answer = merged(*common, "--recalibrate-bn", data, "--batch-size", 2)
    assert answer.code == 0, answer.said
    new = load_file(out)
    classifier = load_classifier(net, checkpoint=saved(tmp_path / "plain.safetensors", plain), fold=False)
    pictures = labelled(data, (), required=False)
    recalibrate(classifier.module, (inputs for _, inputs in batches(classifier, pictures, 2, lambda *_: None)))
    for name, tensor in classifier.module.state_dict().items():
        assert torch.equal(new[name], tensor), name
        measured = name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
        assert torch.equal(new[name], plain[name]) != measured, name


def test_the_same_net_without_statistics_of_batches(net: str, pair: list[Path], tmp_path: Path) -> None:
    data, out = shades(tmp_path / "data"), tmp_path / "m.safetensors"
    assert merged(*pair, "--model", net, "--method", "average", "--coefficients", "1,3", "-o", out).code == 0
    states = [load_file(path)["head.weight"] for path in pair]
    assert_close(load_file(out)["head.weight"], 0.25 * states[0] + 0.75 * states[1], rtol=1e-6, atol=0)
    answer = merged(*pair, "--model", net, "--method", "regmean", "--data", data, "-o", tmp_path / "r.safetensors")
    assert (answer.code, answer.paths) == (0, [str(tmp_path / "r.safetensors")]), answer.said
    grams = [load_file(tmp_path / f"r.gram-{number}.safetensors")["head.weight"].double() for number in (1, 2)]
    scaled = [0.9 * gram + 0.1 * gram.diagonal().diag() for gram in grams]
    pull = sum(gram @ state.double().T for gram, state in zip(scaled, states, strict=True))
    expected = torch.linalg.solve(scaled[0] + scaled[1], pull).T
    assert_close(load_file(tmp_path / "r.safetensors")["head.weight"], expected, rtol=1e-4, atol=1e-5)


def test_a_search_broken_off_goes_on(
    net: str, pair: list[Path], names: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = shades(tmp_path / "eval")
    arguments = [*given(pair), "--model", net, "--labels", names, "--eval", evaluated, "--grid", 5]
    merged(*arguments, "-o", tmp_path / "straight.safetensors")
    scored, score = [0], Court.of_merge

    def interrupted(court: Court, tensors: Any) -> dict[str, float]:
        scored[0] += 1
        if scored[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)  # SIGINT may be ignored where tests run behind a shell
        return score(court, tensors)

    monkeypatch.setattr(judging.Court, "of_merge", interrupted)
    out = tmp_path / "m.safetensors"
    answer = merged(*arguments, "-o", out)
    assert (answer.code, answer.paths) == (143, [])
    assert "stopped by SIGTERM; the same command goes on from what is done" in answer.said
    assert not out.exists()
    assert not [*tmp_path.glob(".*")]
    scored[0] = 10
    assert merged(*arguments, "-o", out).code == 0
    assert scored[0] == 10 + 3 + 2  # three candidates, the plain mean and the merge
    assert out.read_bytes() == (tmp_path / "straight.safetensors").read_bytes()


def test_tasks_and_checkpoints_of_one_name_are_told_apart(net: str, names: Path, tmp_path: Path) -> None:
    found = [saved(tmp_path / run / "best.safetensors", weights(RIGHT, n)) for n, run in enumerate("xy")]
    folders = [shades(tmp_path / name / "eval") for name in "ab"]
    flags = [part for folder in folders for part in ("--eval", folder)]
    answer = merged(*found, "--model", net, "--labels", names, "--method", "average", *flags, "--json",
                    "-o", tmp_path / "m.safetensors")  # fmt: skip
    rows = [json.loads(line) for line in answer.paths[:-1]]
    assert [row["name"] for row in rows] == ["x/best.safetensors", "y/best.safetensors", "plain mean", "average"]
    assert all(row["accuracy"] == {"a/eval": 1.0, "b/eval": 1.0} for row in rows)


def test_options_from_a_file(net: str, pair: list[Path], names: Path, tmp_path: Path) -> None:
    evaluated, out = shades(tmp_path / "eval"), tmp_path / "m.safetensors"
    (tmp_path / "c.yaml").write_text(
        f"checkpoints: [{pair[0]}, {pair[1]}]\nmodel: {net}\nlabels: {names}\neval: {evaluated}\ndata: {evaluated}\n"
        f"out: {out}\ngrid: 2\n"
    )
    answer = merged("--config", tmp_path / "c.yaml", "--floor", 0)
    assert (answer.code, answer.paths) == (0, [str(out)]), answer.said
    told = header(out)
    assert (told["options"]["grid"], told["options"]["floor"], len(told["checkpoints"])) == (2, 0, 2)
    (tmp_path / "c.yaml").write_text(f"fisher: [{fisher_file(pair[0])}]\n")
    assert merged(*pair, "--model", net, "--config", tmp_path / "c.yaml").code == 2


def test_fishers_broken_off_are_kept(
    net: str, pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xai_cli.merging import fisher

    add, count = fisher._Run._add, [0]

    def signalled(run: Any, batch: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        add(run, batch)

    monkeypatch.setattr(fisher._Run, "_add", signalled)
    arguments = [*pair, "--model", net, "--data", shades(tmp_path / "data"), "--batch-size", 2, "-o",
                 tmp_path / "m.safetensors"]  # fmt: skip
    assert merged(*arguments).code == 143
    monkeypatch.undo()
    again = merged(*arguments)
    assert (again.code, "going on after 4 pictures" in again.said) == (0, True)


def test_no_pair_of_requests_is_the_same(net: str, pair: list[Path], names: Path, tmp_path: Path) -> None:
    found = []
    for flags in ([], ["--labels", names], ["--input-size", 4, 4], ["--normalize", "none"], ["--target", 2]):
        answer = merged(*given(pair), "--model", net, *flags, "-o", tmp_path / f"{len(found)}.safetensors")
        assert answer.code == 0, answer.said
        found.append({name: header(tmp_path / f"{len(found)}.safetensors")[name] for name in ("options", "classes")})
    assert all(one != other for one, other in pairwise(found))


def test_options_without_effect_are_refused(net: str, pair: list[Path], tmp_path: Path) -> None:
    answer = merged(*pair, "--model", net, "--method", "average", "--floor", 0.1, "-o", tmp_path / "m.safetensors")
    assert (answer.code, "--floor has no effect with --method average; leave it out" in answer.said) == (2, True)


def test_a_dry_run_tells_files_and_coefficients(net: str, pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    answer = merged(*given(pair), "--model", net, "--coefficients", "1,3", "-o", out, "--dry-run")
    assert {"coefficients\t1,3", f"file\t{out}"} <= {*answer.paths}
    assert not out.exists()
