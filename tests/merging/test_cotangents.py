"""The vectors at the logits: their squares are the Fisher's core A = diag(p) - p p^T, exactly or on average."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_close
from torch import Tensor

from xai_cli.merging.cotangents import Softmax, cotangents


def logits(classes: int, rows: int = 3) -> Tensor:
    return 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)


def squares(*arguments: object) -> Tensor:
    """The sum over k of v_k v_k^T, `(B, C, C)`."""
    return sum(v[:, :, None] * v[:, None] for v in cotangents(*arguments))  # type: ignore[arg-type, return-value]


def core(z: Tensor) -> Tensor:
    p = z.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None]


@pytest.mark.parametrize(("estimator", "classes", "probes"), [
    ("expected", 7, 1), ("eig", 2, 3), ("eig", 7, 8), ("eig", 7, 7), ("eig", 32, 33),
])  # fmt: skip
def test_the_exact_ones_sum_to_the_core(estimator: str, classes: int, probes: int) -> None:
    z = logits(classes)
    assert_close(squares(z, estimator, probes, "abc", 0), core(z), rtol=0, atol=1e-12)


def test_squared_lengths_of_the_factors() -> None:
    softmax = Softmax.of(logits(9))
    assert_close(softmax.w.sum(1), 1 - softmax.p.square().sum(1), rtol=1e-14, atol=0)
    every = softmax.factors(torch.arange(9).expand(3, 9))
    assert_close(every.square().sum(2), softmax.w, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("estimator", "classes", "probes"), [
    ("sampled", 5, 1), ("sampled", 5, 3), ("importance", 5, 1), ("importance", 5, 3), ("eig", 5, 2), ("eig", 40, 3),
])  # fmt: skip
def test_the_drawn_ones_are_right_on_average(estimator: str, classes: int, probes: int) -> None:
    seeds, z = 2000, logits(classes, rows=1)
    found = squares(z.expand(seeds, -1), estimator, probes, [*map(str, range(seeds))], 0)
    error = (found.var(0).sum() / seeds).sqrt()
    assert (found.mean(0) - core(z)[0]).norm() <= 4 * error


@pytest.mark.parametrize(("estimator", "classes", "probes"), [
    ("sampled", 5, 1), ("importance", 5, 1), ("importance", 40, 1), ("eig", 5, 2), ("eig", 40, 3), ("eig", 35, 33),
])  # fmt: skip
def test_the_average_over_all_draws_is_the_core(
    monkeypatch: pytest.MonkeyPatch, estimator: str, classes: int, probes: int
) -> None:
    draws, z = 1000, logits(classes, rows=1)
    grid = (torch.arange(draws, dtype=torch.float64)[:, None] + 0.5) / draws
    monkeypatch.setattr("xai_cli.merging.cotangents._uniform", lambda keys, seed, count: grid)
    found = squares(z.expand(draws, -1), estimator, probes, [""] * draws, 0).mean(0)
    assert_close(found, core(z)[0], rtol=0, atol=1 / draws)


def test_importance_and_eig_have_less_spread_than_plain_draws() -> None:
    z = torch.tensor([[9.0, 3.0, 1.0, 0.0, -1.0]]).expand(4000, -1)
    keys = [*map(str, range(4000))]
    spread = {name: squares(z, name, 2, keys, 0).var(0).sum() for name in ("sampled", "importance", "eig")}
    assert spread["eig"] < spread["importance"] / 10 < spread["sampled"] / 100


@pytest.mark.parametrize("estimator", ["expected", "importance", "eig", "sampled"])
@pytest.mark.parametrize("gap", [28.0, 40.0, 800.0])
def test_one_certain_class_gives_small_numbers_and_no_nan(estimator: str, gap: float) -> None:
    z = torch.tensor([[gap, 0.0, -1.0]], dtype=torch.float64)
    found = squares(z, estimator, 2, ["a"], 0)
    assert found.isfinite().all()
    if estimator == "expected":  # 1 - p of the first class is known to rounding, though p is 1
        others = z[0, 1:].sub(gap).exp().sum()
        assert_close(found[0, 0, 0], others / (1 + others) ** 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("estimator", ["importance", "eig", "sampled"])
def test_draws_belong_to_the_picture_alone(estimator: str) -> None:
    z, keys = logits(50, rows=6), ["a", "b", "c/d", "e", "f", "g"]
    together = torch.stack([*cotangents(z, estimator, 4, keys, 5)])
    turned = torch.stack([*cotangents(z.flip(0), estimator, 4, keys[::-1], 5)]).flip(1)
    alone = torch.cat([torch.stack([*cotangents(z[n : n + 1], estimator, 4, keys[n : n + 1], 5)]) for n in range(6)], 1)
    for other in (turned, alone):
        assert_close(other.square(), together.square(), rtol=0, atol=1e-12)
    assert not torch.equal(together, torch.stack([*cotangents(z, estimator, 4, keys, 6)]))


def test_the_empirical_one_is_the_gradient_of_the_loss() -> None:
    z = logits(4).requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, torch.tensor([1, 0, 3]), reduction="sum"), z)
    (vectors,) = cotangents(z, "empirical", 1, "abc", 0, [1, 0, 3])
    assert_close(vectors, -gradient, rtol=1e-12, atol=1e-15)
