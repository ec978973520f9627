from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor

from xai_cli.merging.formula import Average, FisherMean, Fit, restricted, taking_part
from xai_cli.merging.statistics import About, Statistics, read_statistics, write_statistics

SHAPE = (300, 300)  # more entries than are computed at a time
FEW_ULP = 1e-6  # of float32, for normal numbers, of which the largest of so many lie between 4 and 8


def statistics(*fishers: Tensor | None) -> Any:
    """Files of statistics in memory; None: one that lacks the tensor."""
    return [
        SimpleNamespace(
            weights=SimpleNamespace(
                names=() if fisher is None else ("w",),
                path=Path(f"F{number}.safetensors"),
                tensor=lambda _, fisher=fisher: fisher.clone(),
            ),
            about=SimpleNamespace(
                mean=0.0 if fisher is None else fisher.double().mean().item(),
                norm=0.0 if fisher is None else fisher.double().norm().item(),
                trace=0.0 if fisher is None else fisher.double().sum().item(),
            ),
        )
        for number, fisher in enumerate(fishers)
    ]


def merge(
    tensors: Sequence[Tensor], fishers: Sequence[Tensor | None], coefficients: Sequence[float], **options: Any
) -> Tensor:
    return FisherMean(statistics(*fishers), **options)("w", tensors, coefficients, [None] * len(tensors))


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def weights(models: int, draw: torch.Generator) -> list[Tensor]:
    return [torch.randn(SHAPE, generator=draw) for _ in range(models)]


def fishers(models: int, draw: torch.Generator) -> list[Tensor]:
    """Over many orders of magnitude, as real ones are."""
    return [torch.exp(4 * torch.randn(SHAPE, generator=draw)) for _ in range(models)]


@pytest.mark.parametrize("normalize", ["l2", "trace", "none"])
def test_is_the_weighted_mean_of_the_formula(normalize: str, draw: torch.Generator) -> None:
    theta, fisher, shares = weights(3, draw), fishers(3, draw), (1.0, 2.0, 0.5)
    divisors = {"l2": [f.double().norm() for f in fisher], "trace": [f.double().sum() for f in fisher]}
    parts = [s * f.double() / n for s, f, n in zip(shares, fisher, divisors.get(normalize, [1] * 3), strict=True)]
    expected = sum(p * t.double() for p, t in zip(parts, theta, strict=True)) / sum(parts)
    assert_close(merge(theta, fisher, shares, normalize=normalize, floor=0.0), expected, rtol=1e-6, atol=FEW_ULP)


@pytest.mark.parametrize("normalize", ["l2", "trace", "none"])
def test_equal_fishers_give_the_plain_mean(normalize: str, draw: torch.Generator) -> None:
    theta, (fisher,) = weights(3, draw), fishers(1, draw)
    plain = Average()("w", theta, (0.2, 0.3, 0.5), [None] * 3)
    assert_close(plain, 0.2 * theta[0] + 0.3 * theta[1] + 0.5 * theta[2], rtol=1e-6, atol=1e-6)
    assert_close(merge(theta, [fisher] * 3, (0.2, 0.3, 0.5), normalize=normalize), plain, rtol=3e-7, atol=FEW_ULP)
    constant = [torch.full(SHAPE, 7.0)] * 3
    assert_close(merge(theta, constant, (0.2, 0.3, 0.5), normalize=normalize), plain, rtol=3e-7, atol=FEW_ULP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_of_one_model_come_out_bit_for_bit(dtype: torch.dtype, draw: torch.Generator) -> None:
    theta = torch.randn(SHAPE, generator=draw, dtype=dtype)
    assert torch.equal(merge([theta] * 3, fishers(3, draw), (0.1, 0.7, 0.3)), theta)
    assert torch.equal(Average()("w", [theta] * 3, (0.1, 0.7, 0.3), [None] * 3), theta)


@pytest.mark.parametrize("place", [0, 1])
def test_a_model_alone_comes_out_bit_for_bit_even_without_information(place: int, draw: torch.Generator) -> None:
    theta, fisher = weights(2, draw), fishers(2, draw)
    fisher[place][:100] = 0
    coefficients = [0.0, 0.0]
    coefficients[place] = 0.3
    assert torch.equal(merge(theta, fisher, coefficients), theta[place])
    fisher[place].zero_()
    assert torch.equal(merge(theta, fisher, coefficients), theta[place])


@pytest.mark.parametrize("normalize", ["l2", "trace", "none"])
@pytest.mark.parametrize("factor", [1e-20, 1e20])
def test_a_common_factor_changes_nothing(factor: float, normalize: str, draw: torch.Generator) -> None:
    theta, fisher = weights(3, draw), fishers(3, draw)
    expected = merge(theta, fisher, (1, 2, 3), normalize=normalize)
    scaled = [each * factor for each in fisher]
    assert_close(merge(theta, scaled, (1, 2, 3), normalize=normalize), expected, rtol=1e-6, atol=FEW_ULP)
    coefficients = [each * factor for each in (1, 2, 3)]
    assert_close(merge(theta, fisher, coefficients, normalize=normalize), expected, rtol=1e-6, atol=FEW_ULP)


@pytest.mark.parametrize("normalize", ["l2", "trace", "none"])
@pytest.mark.parametrize("unit", [1e-42, 1e-38, 1e-20, 1e20, 3e38])
def test_fishers_at_both_ends_of_the_range_have_their_weights(unit: float, normalize: str) -> None:
    theta = [torch.zeros(3), torch.ones(3)]
    fisher = [torch.tensor(each, dtype=torch.float64).mul(unit).float() for each in ([1, 0.5, 0.2], [0.3, 0.2, 0.7])]
    scale = {"l2": lambda f: f.norm(), "trace": lambda f: f.sum(), "none": lambda _: 1}[normalize]
    first, second = (each.double() / scale(each.double()) for each in fisher)
    assert_close(merge(theta, fisher, (1, 1), normalize=normalize), second / (first + second), rtol=1e-6, atol=0)
    small = merge(theta, fisher, (1, 1e-6), normalize=normalize)
    assert_close(small, 1e-6 * second / (first + 1e-6 * second), rtol=1e-6, atol=0)
    if normalize != "none":
        far = [fisher[0], torch.tensor([0.3, 0.2, 0.7])]
        second = far[1].double() / scale(far[1].double())
        assert_close(merge(theta, far, (1, 1), normalize=normalize), second / (first + second), rtol=1e-6, atol=0)


def test_shares_hold_out_at_both_ends_of_the_range() -> None:
    assert taking_part([1e308, 1e308, 0], range(3)) == {0: 0.5, 1: 0.5}
    assert taking_part([1e-320, 1e-320], range(2)) == {0: 0.5, 1: 0.5}
    assert taking_part([1e-300, 1], range(2)) == {1: 1}
    assert taking_part([0, 1, 0], [0, 2]) == {0: 0.5, 2: 0.5}


def test_where_one_model_knows_more_its_weight_wins_and_nothing_leaves_the_models_range(draw: torch.Generator) -> None:
    theta, fisher = weights(3, draw), fishers(3, draw)
    fisher[1][7] = 1e15
    merged = merge(theta, fisher, (1, 1, 1), normalize="none")
    assert_close(merged[7], theta[1][7], rtol=1e-5, atol=1e-6)
    every = torch.stack(theta)
    assert (merged >= every.amin(0)).all()
    assert (merged <= every.amax(0)).all()
    # Without a bound what is left of the large one would be of any size and sign.
    far = [torch.full((2,), 1e20), torch.tensor([1e-3, -1e-3])]
    assert_close(merge(far, [torch.zeros(2), torch.ones(2)], (1, 1), floor=0.0)[0], 1e-3, rtol=1e-6, atol=0)


def test_is_the_minimiser_of_the_sum_of_quadratic_losses(draw: torch.Generator) -> None:
    theta, fisher = weights(2, draw), fishers(2, draw)
    merged = merge(theta, fisher, (1, 3), normalize="none", floor=0.0).double().requires_grad_()
    loss = sum(
        (c * f.double() * (merged - t).square()).sum() / 2 for c, f, t in zip((1, 3), fisher, theta, strict=True)
    )
    (gradient,) = torch.autograd.grad(loss, merged)  # type: ignore[arg-type]
    scale = fisher[0].double() + 3 * fisher[1].double()
    assert_close(gradient / scale, torch.zeros(SHAPE), rtol=0, atol=FEW_ULP)


def test_where_no_model_knows_the_plain_mean_is_taken_and_the_floored_are_counted() -> None:
    theta = [torch.zeros(4), torch.ones(4)]
    fisher = [torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([0.0, 4.0, 0.0, 4.0])]
    rule = FisherMean(statistics(*fisher), "none", floor=1e-6)
    merged = rule("w", theta, (3, 1), [None] * 2)
    assert_close(merged, [0.25, 1 - 3 * 1e-6 / 4, 2e-6 / 6, 0.4], rtol=1e-6, atol=1e-12)
    assert rule.floored == (0.5, 0.5)
    assert_close(merge(theta, [torch.zeros(4)] * 2, (3, 1)), [0.25] * 4, rtol=1e-6, atol=0)
    assert_close(merge(theta, [torch.zeros(4), fisher[1]], (3, 1)), [0.25, 1, 0.25, 1], rtol=1e-6, atol=0)


def test_without_a_fisher_in_some_model_the_plain_mean_is_taken(draw: torch.Generator) -> None:
    theta, (fisher,) = weights(2, draw), fishers(1, draw)
    rule = FisherMean(statistics(fisher, None))
    assert torch.equal(rule("w", theta, (1, 3), [None] * 2), Average()("w", theta, (1, 3), [None] * 2))
    assert torch.equal(rule("w", theta, (1, 0), [None] * 2), theta[0])


def written(path: Path, **fisher: Tensor) -> Statistics:
    shapes = {name: tuple(tensor.shape) for name, tensor in fisher.items()}
    write_statistics(path, shapes, fisher.items(), About("fisher", "m", "", "", ""))
    return read_statistics(path)


@pytest.mark.parametrize("normalize", ["l2", "trace", "none"])
def test_what_is_not_merged_has_no_part_in_the_balance(tmp_path: Path, normalize: Any, draw: torch.Generator) -> None:
    theta, fisher = weights(2, draw), fishers(2, draw)
    files = [written(tmp_path / "F0.safetensors", w=fisher[0], head=torch.full((5,), 1e20), body=torch.ones(3)),
             written(tmp_path / "F1.safetensors", head=torch.ones(5), w=fisher[1])]  # fmt: skip
    found = restricted(files, ["w", "body", "norm"])
    for each, own in zip(found, fisher, strict=True):
        entries = own.double()
        told = (each.about.mean, each.about.norm, each.about.trace)
        assert_close(told, [entries.mean(), entries.norm(), entries.sum()], rtol=1e-12, atol=0)
    rule = FisherMean(found, normalize)
    assert torch.equal(rule("w", theta, (1, 1), [None] * 2), merge(theta, fisher, (1, 1), normalize=normalize))
    assert rule.floored[0] < 0.1  # and not all, as below a mean with the head


def test_a_file_of_the_merged_tensors_alone_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = written(tmp_path / "F0.safetensors", w=torch.ones(3), v=torch.ones(2))
    monkeypatch.delattr(type(whole.weights), "tensor")
    assert restricted([whole, whole], ["v", "u", "w"]) == [whole, whole]


def test_fishers_that_say_nothing_of_what_is_merged_are_refused(tmp_path: Path) -> None:
    known = written(tmp_path / "F0.safetensors", w=torch.ones(3), head=torch.ones(2))
    files = [known, written(tmp_path / "F1.safetensors", w=torch.zeros(3), head=torch.ones(2))]
    with pytest.raises(ValueError, match=r"F1.safetensors expected a Fisher of what is merged, found 0 in all of it"):
        restricted(files, ["w"])
    assert restricted(files, ["w", "head"]) == files
    with pytest.raises(
        ValueError, match=r"F0.safetensors and .*F1.safetensors expected Fishers of the parameters that"
    ):
        restricted(files, ["v"])


def test_rows_are_merged_by_the_models_that_have_them() -> None:
    def fit(*has: bool) -> Fit:
        return Fit(lambda tensor: tensor, lambda tensor: tensor, torch.tensor(has))

    fits = [fit(True, True, False), fit(False, True, True)]
    theta = [torch.tensor([[1.0], [2.0], [0.0]]), torch.tensor([[0.0], [4.0], [8.0]])]
    fisher = [torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([[0.0], [3.0], [1.0]])]
    rule = FisherMean(statistics(*fisher), "none")
    assert_close(rule("w", theta, (1, 1), fits), [[1.0], [3.5], [8.0]], rtol=0, atol=0)
    assert rule.floored == (0, 0)
    assert_close(Average()("w", theta, (1, 1), fits), [[1.0], [3.0], [8.0]], rtol=0, atol=0)
    # A row that only the model without weight has is taken from it.
    assert_close(rule("w", theta, (1, 0), fits), [[1.0], [2.0], [8.0]], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [-1.0, torch.nan, torch.inf])
def test_what_is_no_fisher_is_refused(bad: float) -> None:
    theta = [torch.zeros(3), torch.ones(3)]
    with pytest.raises(ValueError, match=r"F1.safetensors: w holds numbers that are no Fisher information"):
        merge(theta, [torch.ones(3), torch.tensor([1.0, bad, 1.0])], (1, 1))
    with pytest.raises(ValueError, match=r"F0.safetensors holds w as \(2,\), expected \(3,\)"):
        merge(theta, [torch.ones(2), torch.ones(3)], (1, 1))
    assert torch.equal(merge(theta, [torch.ones(3), torch.full((3,), bad)], (1, 0)), theta[0])
