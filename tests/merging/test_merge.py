from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import assert_close
from safetensors.torch import load_file, save_file
from torch import Tensor

from xai_cli.merging.formula import Average, FisherMean
from xai_cli.merging.heads import head_names
from xai_cli.merging.merge import Apart, merged
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.plan import Plan, plan
from xai_cli.merging.statistics import About, Statistics
from xai_cli.merging.weights import Weights
from xai_cli.merging.writing import write_tensors

State = Mapping[str, Tensor]


def saved(path: Path, state: State) -> Weights:
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return Weights(path)


def fishers(folder: Path, states: Sequence[State], parameters: Sequence[str]) -> list[Statistics]:
    made = []
    for number, state in enumerate(states):
        fisher = {name: torch.rand_like(state[name], dtype=torch.float32) for name in parameters}
        entries = torch.cat([each.flatten() for each in fisher.values()]).double()
        about = About(
            "fisher", "m", "", "", "", mean=float(entries.mean()), norm=float(entries.norm()),
            trace=float(entries.sum()),
        )  # fmt: skip
        made.append(Statistics(saved(folder / f"F{number}.safetensors", fisher), about))
    return made


def prepared(
    folder: Path, states: Sequence[State], parameters: Sequence[str], **options: Any
) -> tuple[Plan, list[Weights]]:
    weights = [saved(folder / f"{number}.safetensors", state) for number, state in enumerate(states)]
    return plan(weights, parameters, (), MergeOptions(**options)), weights


@pytest.fixture(scope="module")
def resnets() -> tuple[list[State], list[str]]:
    """Two fine-tunings, so to say, of a net with batch norm."""
    torch.manual_seed(0)
    module = timm.create_model("resnet10t", num_classes=3)
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def tuned(count: int) -> State:
        # Statistics stay positive, counters whole.
        return {
            name: tensor + count
            if not tensor.is_floating_point()
            else tensor * (1 + 0.1 * torch.rand_like(tensor)) + 0.01 * torch.rand_like(tensor)
            for name, tensor in base.items()
        }

    return [tuned(2**40), tuned(3)], [name for name, _ in module.named_parameters()]


def test_streamed_into_a_file_is_the_same_to_the_last_bit_as_all_in_memory(
    tmp_path: Path, resnets: tuple[list[State], list[str]]
) -> None:
    states, parameters = resnets
    statistics = fishers(tmp_path, states, parameters)
    made, weights = prepared(tmp_path, states, parameters)
    out = tmp_path / "merged.safetensors"
    write_tensors(out, made.layout, merged(made, weights, FisherMean(statistics), (0.3, 0.7)), dict, 0)
    found = load_file(out)
    rule = FisherMean(statistics)
    for name in parameters:
        whole = rule(name, [state[name] for state in states], (0.3, 0.7), [None, None])
        assert torch.equal(found[name], whole), name
    module = timm.create_model("resnet10t", num_classes=3, checkpoint_path=str(out))
    assert torch.equal(module.state_dict()["fc.weight"], found["fc.weight"])
    counters = [name for name in found if name.endswith("num_batches_tracked")]
    assert counters
    assert all(found[name].dtype == torch.int64 and found[name] == 2**40 for name in counters)
    variance = "bn1.running_var"
    means = [state["bn1.running_mean"].double() for state in states]
    expected = sum(s * (state[variance] + m**2) for s, state, m in zip((0.3, 0.7), states, means, strict=True))
    expected -= sum(s * m for s, m in zip((0.3, 0.7), means, strict=True)) ** 2
    assert_close(found[variance], expected, rtol=1e-6, atol=1e-7)
    assert all((found[name] >= 0).all() for name in found if name.endswith("running_var"))


@pytest.mark.parametrize("coefficients", [(1, 0), (0, 1)])
def test_a_model_alone_and_copies_come_out_bit_for_bit(
    tmp_path: Path, resnets: tuple[list[State], list[str]], coefficients: tuple[float, float]
) -> None:
    states, parameters = resnets
    statistics = fishers(tmp_path, states, parameters)
    made, weights = prepared(tmp_path, states, parameters)
    for name, tensor in merged(made, weights, FisherMean(statistics), coefficients):
        assert torch.equal(tensor, states[coefficients.index(1)][name]), name
    for name, tensor in merged(made, [weights[0]] * 2, FisherMean(statistics), (0.3, 0.7)):
        assert torch.equal(tensor, states[0][name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_every_floating_type_keeps_copies_and_the_targets_type(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"w": torch.randn(50, 5, dtype=torch.float64).to(dtype)}
    made, weights = prepared(tmp_path, [state, state], ["w"])
    found = dict(merged(made, weights, Average(), (0.3, 0.7)))
    assert found["w"].dtype == dtype
    assert torch.equal(found["w"].double(), state["w"].double())
    made, weights = prepared(tmp_path, [state, {"w": torch.ones(50, 5)}], ["w"])
    (only,) = (tensor for _, tensor in merged(made, weights, Average(), (0, 1)))
    assert only.dtype == dtype
    assert (only.double() == 1).all()


def test_heads_are_merged_by_the_names_of_their_classes(tmp_path: Path) -> None:
    states = [
        {"b": torch.ones(2), "fc.weight": torch.tensor([[1.0], [2.0]])},
        {"b": torch.ones(2), "fc.weight": torch.tensor([[3.0], [4.0], [5.0]])},
    ]
    weights = [saved(tmp_path / f"{number}.safetensors", state) for number, state in enumerate(states)]
    statistics = fishers(tmp_path, states, ["b", "fc.weight"])
    labels = [["cat", "dog"], ["emu", "dog", "fox"]]
    made = plan(weights, ["b", "fc.weight"], ["fc.weight"], MergeOptions(head="by-name"), labels)
    assert made.classes == ("cat", "dog", "emu", "fox")
    found = dict(merged(made, weights, FisherMean(statistics, "none"), (1, 1)))["fc.weight"]
    first, second = (each.weights.tensor("fc.weight")[1] for each in statistics)
    assert_close(found, [[1], (first * 2 + second * 4) / (first + second), [3], [5]], rtol=1e-6, atol=0)
    alone = dict(merged(made, weights, FisherMean(statistics), (1, 0)))["fc.weight"]
    assert alone.tolist() == [[1], [2], [3], [5]]


def test_tensors_of_some_models_are_merged_among_those(tmp_path: Path) -> None:
    zeros, ones = torch.zeros(2), torch.ones(2)
    states = [{"w": zeros}, {"w": ones, "u": ones}, {"w": ones, "u": zeros}]
    made, weights = prepared(tmp_path, states, ["w", "u"], tensors="union")
    found = dict(merged(made, weights, Average(), (1, 1, 3)))
    assert_close(found["u"], [0.25, 0.25], rtol=0, atol=0)
    assert_close(found["w"], [0.8, 0.8], rtol=1e-7, atol=0)
    # Of models without weight it is the plain mean.
    assert_close(dict(merged(made, weights, Average(), (1, 0, 0)))["u"], [0.5, 0.5], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_finite_is_found_however_little_it_weighs(tmp_path: Path, bad: float, place: int) -> None:
    states = [{"w": torch.ones(3)}, {"w": torch.zeros(3)}]
    states[place]["w"][1] = bad
    statistics = fishers(tmp_path, [states[0]] * 2, ["w"])
    made, weights = prepared(tmp_path, states, ["w"])
    shares = [1.0, 1.0]
    shares[place] = 1e-90
    for rule in (Average(), FisherMean(statistics)):
        with pytest.raises(ValueError, match=rf"{place}.safetensors: w holds NaN or infinity, expected finite numbers"):
            list(merged(made, weights, rule, shares))


def test_what_is_broken_names_tensor_and_file(tmp_path: Path) -> None:
    tables = [{"w": torch.ones(3), "index": torch.tensor([number])} for number in range(2)]
    made, weights = prepared(tmp_path, tables, ["w"])
    with pytest.raises(ValueError, match=r"index holds whole numbers that differ between .*0.safe.* and .*1.safe"):
        list(merged(made, weights, Average(), (1, 1)))
    with pytest.raises(ValueError, match="expects as many coefficients of 0 or more, not all 0"):
        list(merged(made, weights, Average(), (1, 1, 1)))
    large = [{"w": torch.full((2,), 1.0).half()}, {"w": torch.full((2,), 1e9)}]
    made, weights = prepared(tmp_path, large, ["w"])
    with pytest.raises(ValueError, match=r"w leaves the range of torch.float16; give a --target of a wider type"):
        list(merged(made, weights, Average(), (1, 1)))


def test_models_that_are_far_apart_are_told(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    first, other = ({"w": torch.randn(400, 400, generator=draw)} for _ in range(2))
    made, weights = prepared(tmp_path, [first, other, {"w": 1.1 * first["w"]}], ["w"])
    apart = Apart(1)
    list(merged(made, weights, Average(), (1, 1, 1), apart))
    assert [*apart.distances()] == [2, 3]
    assert_close(list(apart.distances().values()), [2**0.5, 0.1], rtol=1e-2, atol=0)
    (note,) = apart.notes([each.path for each in weights])
    assert note == (
        f"{weights[1].path} lies {apart.distances()[2]:.3g} times the target's length away from it; checkpoints that "
        "share no ancestor do not merge well"
    )


def test_position_embeddings_of_another_grid_and_their_fisher_are_resampled(tmp_path: Path) -> None:
    nets = [timm.create_model("test_vit", num_classes=2, img_size=size) for size in (160, 96)]
    states = [net.state_dict() for net in nets]
    parameters, head = [name for name, _ in nets[0].named_parameters()], head_names(nets[0], 2)
    weights = [saved(tmp_path / f"{number}.safetensors", state) for number, state in enumerate(states)]
    statistics = fishers(tmp_path, states, parameters)
    made = plan(weights, parameters, head, MergeOptions(interpolate_pos_embed=True))
    rule = FisherMean(statistics)
    found = dict(merged(made, weights, rule, (1, 1)))
    assert found["pos_embed"].shape == states[0]["pos_embed"].shape != states[1]["pos_embed"].shape
    assert torch.equal(dict(merged(made, weights, rule, (1, 0)))["pos_embed"], states[0]["pos_embed"])
