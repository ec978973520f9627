from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.plan import Entry, Plan, head_layout, lines, plan
from xai_cli.merging.weights import Weights

PARAMETERS = ["body.weight", "pos_embed", "fc.weight", "fc.bias"]
HEAD = ["fc.weight", "fc.bias"]


def state(classes: int = 2, **others: Tensor) -> dict[str, Tensor]:
    own = {"body.weight": torch.zeros(3, 4), "fc.weight": torch.zeros(classes, 3), "fc.bias": torch.zeros(classes)}
    return {**own, **{name.replace("__", "."): tensor for name, tensor in others.items()}}


def planned(
    folder: Path, states: Sequence[Mapping[str, Tensor]], labels: Sequence[Sequence[str]] | None = None, **options: Any
) -> Plan:
    weights = []
    for name, each in zip("ABC", states, strict=False):
        save_file(dict(each), folder / f"{name}.safetensors")
        weights.append(Weights(folder / f"{name}.safetensors"))
    return plan(weights, PARAMETERS, HEAD, MergeOptions(**options), labels)


def entries(plan: Plan) -> dict[str, Entry]:
    return {entry.name: entry for entry in plan.entries}


def test_each_kind_of_tensor_has_its_treatment(tmp_path: Path) -> None:
    norm = {
        "bn__running_mean": torch.zeros(3),
        "bn__running_var": torch.ones(3),
        "bn__num_batches_tracked": torch.tensor(3, dtype=torch.int32),
        "lonely__running_var": torch.ones(3),
        "index": torch.zeros(3, dtype=torch.int64),
        "scale": torch.ones(1),
    }
    found = entries(planned(tmp_path, [state(**norm), state(**norm)]))
    assert {name: entry.treatment for name, entry in found.items()} == {
        "body.weight": "merge",
        "fc.weight": "merge",
        "fc.bias": "merge",
        "bn.running_mean": "average",
        "bn.running_var": "mixture",
        "bn.num_batches_tracked": "largest",
        "lonely.running_var": "average",
        "index": "equal",
        "scale": "average",
    }
    assert found["bn.num_batches_tracked"].dtype == torch.int64
    averaged = entries(planned(tmp_path, [state(**norm), state(**norm)], batch_norm="average"))
    assert averaged["bn.running_var"].treatment == "average"


def test_what_does_not_match_is_refused_with_three_keys_and_the_policies(tmp_path: Path) -> None:
    first = state(a=torch.zeros(2), b=torch.zeros(2), c=torch.zeros(2), d=torch.zeros(2))
    second = state(a=torch.zeros(3), b=torch.zeros(2, dtype=torch.int64), d=torch.zeros(5))
    with pytest.raises(ValueError, match="do not match") as error:
        planned(tmp_path, [first, second])
    a, b = tmp_path / "A.safetensors", tmp_path / "B.safetensors"
    assert str(error.value) == (
        f"the checkpoints do not match: a: {a} (2,), {b} (3,); b: {a} float32, {b} int64; c: {a} (2,), not in {b}; "
        "and 1 more; choose --on-mismatch target or skip; --tensors union, intersection or target"
    )
    kept = planned(tmp_path, [first, second], on_mismatch="target", tensors="union")
    assert [entries(kept)[name].treatment for name in "abcd"] == ["copy", "copy", "average", "copy"]
    assert entries(kept)["c"].models == (0,)
    less = planned(tmp_path, [first, second], on_mismatch="skip", tensors="intersection")
    assert set(less.layout) == {*HEAD, "body.weight"}


def test_tensors_of_some_models_are_taken_by_policy(tmp_path: Path) -> None:
    states = [state(a=torch.zeros(2)), state(a=torch.zeros(2), b=torch.zeros(2)), state()]

    def kept(**options: Any) -> set[str]:
        return {*planned(tmp_path, states, **options).layout} & {"a", "b"}

    assert kept(tensors="union") == {"a", "b"}
    assert kept(tensors="intersection") == set()
    assert kept(tensors="target") == {"a"}
    assert kept(tensors="target", target=2) == {"a", "b"}
    assert entries(planned(tmp_path, states, tensors="union"))["a"].models == (0, 1)
    counted = [state(), state(bn__num_batches_tracked=torch.tensor(1))]
    assert entries(planned(tmp_path, counted))["bn.num_batches_tracked"].models == (1,)


def test_types_of_the_target_are_kept(tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in state().items()}
    found = entries(planned(tmp_path, [half, state()]))["body.weight"]
    assert (found.dtype, found.note) == (torch.bfloat16, "converted from float32")
    assert entries(planned(tmp_path, [half, state()], target=2))["body.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("labels", "asked", "head", "classes"),
    [
        (None, "auto", "merge", None),
        ([["a", "b"]] * 2, "auto", "merge", ("a", "b")),
        ([["a", "b"], ["b", "a"]], "auto", "by-name", ("a", "b")),
        ([["a", "b"], ["b", "a"]], "merge", "by-name", ("a", "b")),
        ([["a", "b"], ["b", "c"]], "auto", "target", ("a", "b")),
        ([["a", "b"], ["b", "c"]], "by-name", "by-name", ("a", "b", "c")),
        ([["a", "b"], ["b", "c"]], "keep-all", "keep-all", ("a", "b")),
    ],
)
def test_the_head_follows_the_classes(
    tmp_path: Path, labels: list[list[str]] | None, asked: str, head: str, classes: tuple[str, ...] | None
) -> None:
    made = planned(tmp_path, [state(), state()], labels, head=asked)
    assert (made.head, made.classes) == (head, classes)
    bias = entries(made)["fc.bias"]
    assert bias.treatment == ("copy" if head in ("target", "keep-all") else "merge")
    assert bias.shape == ((3,) if classes == ("a", "b", "c") else (2,))
    other = planned(tmp_path, [state(), state()], labels, head=asked, target=2)
    assert other.classes == {None: None, "by-name": ("b", "a") if classes == ("a", "b") else ("b", "c", "a")}.get(
        labels and head, labels and tuple(labels[1])
    )  # fmt: skip


def test_heads_of_different_sizes_take_the_target_or_say_what_to_type(tmp_path: Path) -> None:
    made = planned(tmp_path, [state(2), state(5)])
    assert made.head == "target"
    assert made.notes == ("the checkpoints have different heads: the target's is kept; --head says otherwise",)
    assert head_layout(Weights(tmp_path / "B.safetensors"), HEAD)["fc.bias"] == (torch.float32, (5,))
    with pytest.raises(ValueError, match=r"fc.bias: .*A.safetensors \(2,\), .*B.* \(5,\).*--head target, by-name or"):
        planned(tmp_path, [state(2), state(5)], head="merge")
    with pytest.raises(ValueError, match="expects the class names of every checkpoint; add --class-names FILE"):
        planned(tmp_path, [state(2), state(5)], head="by-name")
    with pytest.raises(ValueError, match=r"B.safetensors \(5,\), for 3 class names; .*; choose --class-names with"):
        planned(tmp_path, [state(2), state(5)], [["a", "b"], ["a", "b", "c"]], head="by-name")
    with pytest.raises(ValueError, match="--class-names differ; type --head by-name"):
        planned(tmp_path, [state(), state()], [["a", "b"], ["a", "c"]], head="merge")


def test_heads_of_one_size_without_class_names_are_taken_to_have_the_same_classes(tmp_path: Path) -> None:
    (note,) = planned(tmp_path, [state(), state()]).notes
    assert note.startswith("the heads are merged row by row: the checkpoints are taken to have the same classes in the")
    assert note.endswith("if they have not, give --class-names for each, or --head target")
    assert planned(tmp_path, [state(), state()], [["a", "b"]] * 2).notes == ()
    assert planned(tmp_path, [state(), state()], head="merge").notes == ()
    headless = {"body.weight": torch.zeros(3, 4)}
    assert planned(tmp_path, [headless, headless]).notes == ()


def test_position_embeddings_are_resampled_where_asked(tmp_path: Path) -> None:
    index = [torch.zeros(size, dtype=torch.int64) for size in (4, 9)]
    states = [
        state(pos_embed=torch.zeros(1, 1 + size, 8), relative_position_index=table)
        for size, table in zip((4, 9), index, strict=True)
    ]
    with pytest.raises(ValueError, match=r"pos_embed: .* \(1, 5, 8\), .* \(1, 10, 8\).*, --interpolate-pos-embed"):
        planned(tmp_path, states)
    made = planned(tmp_path, states, interpolate_pos_embed=True, target=2)
    positions = entries(made)["pos_embed"]
    assert (positions.treatment, positions.shape, positions.fits[1]) == ("merge", (1, 10, 8), None)
    assert positions.fits[0] is not None
    assert positions.fits[0].weights(torch.ones(1, 5, 8)).shape == (1, 10, 8)
    assert entries(made)["relative_position_index"].models == (1,)
    assert made.notes[-1] == "the Fisher of resampled position embeddings is resampled too, and only approximate"
    odd = [state(pos_embed=torch.zeros(1, 5, 8)), state(pos_embed=torch.zeros(1, 5, 9))]
    with pytest.raises(ValueError, match="pos_embed"):
        planned(tmp_path, odd, interpolate_pos_embed=True)


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shares no parameter with the model, found x there and body.weight in"):
        planned(tmp_path, [{"x": torch.zeros(1)}] * 2)


def test_complex_numbers_are_refused_by_file_and_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"B.safetensors: phase holds complex numbers, expected real ones"):
        planned(tmp_path, [state(), state(phase=torch.zeros(2, dtype=torch.complex64))], tensors="union")


def test_lines_say_what_becomes_of_each_tensor_and_sum_up(tmp_path: Path) -> None:
    made = planned(tmp_path, [state(2), state(5)])
    found = sorted(line.split("\t") for line in lines(made))
    assert found == [
        ["body.weight", "merge", "(3, 4)", "float32", ""],
        ["fc.bias", "copy", "(2,)", "float32", "the target's head"],
        ["fc.weight", "copy", "(2, 3)", "float32", "the target's head"],
        ["total", "copy", "2 tensors", "8 values", ""],
        ["total", "merge", "1 tensor", "12 values", ""],
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"coefficients": "0.5"}, r"expects 2 numbers of 0 or more .* found '0.5'; type --coefficients 1,1 for equal"),
        ({"coefficients": "0,0"}, "not all 0"),
        ({"coefficients": "1,-1"}, "numbers of 0 or more"),
        ({"coefficients": "1,nan"}, "found '1,nan'"),
        ({"coefficients": "1;2"}, "with commas between"),
        ({"target": 3}, "--target expects 1 to 2 for 2 checkpoints, found 3"),
        ({"target": 0}, "--target expects at least 1, found 0"),
        ({"fisher": ["a"]}, "--fisher expects one file per checkpoint, found 1 for 2"),
        ({"method": "fisher"}, "--method fisher expects statistics of every checkpoint, found none"),
        ({"grid": 3}, "--grid expects labelled pictures .* add --eval"),
        ({"grid": 3, "random": 3, "eval": ["x"]}, "found --grid and --random"),
        ({"fisher": ["a"], "data": ["b"]}, "found --fisher and --data"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], sentence: str) -> None:
    if not {"method", "fisher"} & set(options):
        options = {"method": "average", **options}
    with pytest.raises(ValueError, match=sentence):
        MergeOptions(**options).check_for(2)


def test_coefficients_are_read_from_text_and_equal_by_default() -> None:
    assert MergeOptions(coefficients="0.3, 1e3,0").coefficients_for(3) == (0.3, 1000.0, 0.0)
    for listed in ([0.25, 1], "[0.25, 1]"):  # as YAML gives it, and as the command line makes text of that
        assert MergeOptions(coefficients=listed).coefficients_for(2) == (0.25, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expects 2 numbers of 0 or more .* found 'a,1'"):
        MergeOptions(coefficients=["a", 1]).coefficients_for(2)  # type: ignore[arg-type]
    assert MergeOptions().coefficients_for(4) == (0.25,) * 4
