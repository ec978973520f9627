"""The identities of the regression mean, and Gram matrices against those of inputs that are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from helpers import assert_close
from nets import classifier_of, conv_net, seeded
from PIL import Image
from torch import Tensor, nn

from xai_cli.merging.formula import Fit, average
from xai_cli.merging.pictures import NoPictures, Picture, labelled
from xai_cli.merging.regmean import Grams, RegMean, estimate_grams
from xai_cli.merging.statistics import About, read_statistics, write_statistics

GRAM = About("gram", "net", "", "", "")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rule(folder: Path, grams: Sequence[Tensor], scale: float = 0.9) -> RegMean:
    """The rule with these Gram matrices of one weight, by way of files as it is used."""
    statistics = []
    for number, gram in enumerate(grams):
        path = folder / f"{number}.safetensors"
        write_statistics(path, {"w": tuple(gram.shape)}, [("w", gram)], GRAM)
        statistics.append(read_statistics(path))
    return RegMean(statistics, scale)


def gram_of(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


X = [drawn(50, 6, seed=1) @ drawn(6, 6, seed=2), drawn(40, 6, seed=3) @ drawn(6, 6, seed=4)]
W = [drawn(4, 6, seed=5), drawn(4, 6, seed=6)]
BOTH: list[Fit | None] = [None, None]


def test_equal_matrices_give_the_weighted_mean(tmp_path: Path) -> None:
    merged = rule(tmp_path, [gram_of(X[0])] * 2, scale=1)("w", W, [1, 3], BOTH)
    assert_close(merged, 0.25 * W[0] + 0.75 * W[1], rtol=0, atol=1e-9)


def test_it_minimises_the_distance_of_outputs(tmp_path: Path) -> None:
    merged = rule(tmp_path, [gram_of(x) for x in X], scale=1)("w", W, [0.3, 0.7], BOTH)
    inputs = torch.cat([(c / len(x)) ** 0.5 * x for c, x in zip((0.3, 0.7), X, strict=True)])
    outputs = torch.cat([(c / len(x)) ** 0.5 * x @ w.T for c, x, w in zip((0.3, 0.7), X, W, strict=True)])
    assert_close(merged, torch.linalg.lstsq(inputs, outputs).solution.T, rtol=1e-5, atol=1e-5)


def test_it_is_the_formula_of_the_paper(tmp_path: Path) -> None:
    grams = [0.9 * gram_of(x) + 0.1 * gram_of(x).diagonal().diag() for x in X]
    expected = torch.linalg.solve(grams[0] + grams[1], grams[0] @ W[0].T + grams[1] @ W[1].T).T
    assert_close(rule(tmp_path, [gram_of(x) for x in X])("w", W, [1, 1], BOTH), expected, rtol=1e-6, atol=1e-6)
    # A convolution is linear in its patches.
    kernels = [w.reshape(4, 2, 3, 1) for w in W]
    merged = rule(tmp_path, [gram_of(x) for x in X])("w", kernels, [1, 1], BOTH)
    assert_close(merged, expected.reshape(4, 2, 3, 1), rtol=1e-6, atol=1e-6)


def test_without_off_diagonals_each_input_has_its_own_mean(tmp_path: Path) -> None:
    squares = torch.stack([gram_of(x).diagonal() for x in X])
    merged = rule(tmp_path, [gram_of(x) for x in X], scale=0)("w", W, [1, 1], BOTH)
    expected = (squares[0] * W[0] + squares[1] * W[1]) / squares.sum(0)
    assert_close(merged, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [0.0, 0.9, 1.0])
def test_a_model_alone_and_copies_stay_to_the_last_bit(tmp_path: Path, scale: float) -> None:
    merge = rule(tmp_path, [gram_of(x) for x in X], scale)
    first, second = (w.float() for w in W)
    assert torch.equal(merge("w", [first, second], [1, 0], BOTH), first)
    assert torch.equal(merge("w", [first, second], [0, 2], BOTH), second)
    assert torch.equal(merge("w", [first, first], [0.3, 0.7], BOTH), first)
    assert torch.equal(rule(tmp_path, [gram_of(X[0])], scale)("w", [first], [1], [None]), first)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_only_ratios_matter(tmp_path: Path, factor: float) -> None:
    expected = rule(tmp_path, [gram_of(x) for x in X])("w", W, [1, 2], BOTH)
    small = rule(tmp_path, [factor * gram_of(x) for x in X])("w", W, [3e-200, 6e-200], BOTH)
    assert_close(small, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.9, 1.0])
def test_inputs_that_nobody_sees_take_the_plain_mean(tmp_path: Path, scale: float) -> None:
    seen = torch.tensor([True, False, True, True, False, True])
    merge = rule(tmp_path, [gram_of(x * seen) for x in X], scale)
    merged = merge("w", [w.float() for w in W], [1, 1], BOTH)
    mean = average([w.float() for w in W], [1, 1], BOTH)
    assert torch.equal(merged[:, ~seen], mean[:, ~seen])
    alone = rule(tmp_path, [gram_of(x[:, seen]) for x in X], scale)("w", [w[:, seen] for w in W], [1, 1], BOTH)
    assert_close(merged[:, seen], alone, rtol=1e-4, atol=1e-4)
    nobody = rule(tmp_path, [torch.zeros(6, 6)] * 2, scale)("w", [w.float() for w in W], [1, 1], BOTH)
    assert torch.equal(nobody, mean)


def test_least_squares_of_fewer_pictures_than_inputs_have_a_solution(tmp_path: Path) -> None:
    # 5 rows of 64 inputs, with copies among them: only 10 directions are seen at all.
    x = [drawn(5, 32, seed=n) @ torch.cat([torch.eye(32)] * 2, 1).double() for n in (1, 2)]
    w = [drawn(8, 64, seed=n) for n in (3, 4)]
    merged = rule(tmp_path, [gram_of(each) for each in x], scale=1)("w", w, [1, 1], BOTH)
    assert merged.isfinite().all()
    assert merged.abs().max() < 10
    # Those of one model are settled by it.
    for each, own in zip(x, w, strict=True):
        assert_close(each @ merged.T, each @ own.T, rtol=0, atol=0.01)


def test_what_has_no_matrix_or_had_to_be_fitted_is_the_plain_mean(tmp_path: Path) -> None:
    merge = rule(tmp_path, [gram_of(x) for x in X])
    fit = Fit(weights=lambda w: w, statistics=lambda f: f)
    expected = 0.5 * W[0] + 0.5 * W[1]
    assert_close(merge("bias", W, [1, 1], BOTH), expected, rtol=1e-12, atol=0)
    assert_close(merge("w", W, [1, 1], [None, fit]), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.eye(5), r"1.safetensors holds a matrix of \(5, 5\) for the 6 inputs of w; give the Gram matrices"),
        (torch.eye(6) * float("nan"), r"1.safetensors holds no Gram matrix for w \(NaN, infinite or negative\)"),
        (-torch.eye(6), r"1.safetensors holds no Gram matrix for w"),
        (torch.eye(6) + 100 * (1 - torch.eye(6)), "the Gram matrices of w are none .not positive.; estimate"),
    ],
)
def test_what_is_no_gram_matrix_is_refused(tmp_path: Path, gram: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rule(tmp_path, [torch.eye(6), gram])("w", W, [1, 1], BOTH)


def test_a_scale_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--regmean-scale expects a number from 0 to 1, found 1.5"):
        RegMean([], 1.5)


def grams_of(module: nn.Module, *inputs: Tensor) -> tuple[dict[str, Tensor], Grams]:
    grams = Grams(dict(module.named_parameters()))
    for each in inputs:
        with torch.no_grad(), grams:
            module(each)
    return dict(grams.means()), grams


@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2, "padding": 1}, {"padding": "same"}, {"padding": "valid"}, {"padding": (0, 2)}],
)
def test_a_convolution_is_solved_for_by_its_patches(settings: dict[str, object]) -> None:
    layer = seeded(lambda: nn.Conv2d(3, 4, (3, 2), bias=False, **settings)).double()  # type: ignore[arg-type]
    x = drawn(3, 3, 8, 8)
    found, _ = grams_of(layer, x[:2], x[2:])
    # E|x w|^2 of any kernel is the mean square of what the convolution gives.
    kernel = layer.weight.detach().flatten(1)
    assert_close(
        (kernel @ found["weight"] @ kernel.T).diagonal(), layer(x).square().mean((0, 2, 3)), rtol=1e-12, atol=0
    )


def test_tokens_are_rows_and_reused_layers_add_up() -> None:
    layer = nn.Linear(4, 4).double()
    x = drawn(2, 5, 4)
    found, _ = grams_of(nn.Sequential(layer, layer), x)
    assert_close(found["0.weight"], gram_of(torch.cat([x, layer(x)]).reshape(-1, 4)), rtol=1e-12, atol=1e-12)
    assert set(found) == {"0.weight"}


@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_projections_have_the_matrix_of_their_one_input(batch_first: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    module, x = seeded(Attention).double().eval(), drawn(2, 5, 8)
    found, grams = grams_of(module, x, x[:1])
    rows = torch.cat([x, x[:1]]).reshape(-1, 8) if batch_first else torch.cat([x.reshape(-1, 8), x[:1].reshape(-1, 8)])
    assert_close(found["attention.in_proj_weight"], gram_of(rows), rtol=1e-12, atol=1e-12)
    out = found["attention.out_proj.weight"]
    weight, bias = module.attention.out_proj.weight.detach(), module.attention.out_proj.bias.detach()
    heads = torch.cat([torch.linalg.solve(weight, (module(each) - bias).reshape(-1, 8).T).T for each in (x, x[:1])])
    assert_close(out, gram_of(heads), rtol=1e-9, atol=1e-12)
    assert grams.left() == {}


def test_packed_projections_of_two_inputs_are_left_to_the_mean() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x.flip(0), x.flip(0))[0]

    found, grams = grams_of(seeded(Crossed).double().eval(), drawn(5, 2, 8))
    assert set(found) == {"attention.out_proj.weight"}
    assert grams.left() == {"its parts do not have one input": ["attention.in_proj_weight"]}


def test_another_input_at_the_same_address_is_another_input() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.other = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(1, 3))

        def forward(self, x: Tensor) -> None:
            memory = x.numpy().copy()
            F.linear(torch.from_numpy(memory), self.weight[:2])
            F.linear(x, self.other)
            memory += 1  # as where memory is let go and taken again
            F.linear(torch.from_numpy(memory), self.weight[2:])

    _, grams = grams_of(Parts(), torch.rand(5, 3))
    assert grams.left() == {"its parts do not have one input": ["weight"]}


def test_what_is_left_to_the_mean_has_a_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise, self.wide = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 35, padding=17)
            self.product = nn.Parameter(torch.ones(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(self.depthwise(x)).mean((2, 3)) @ self.product

    found, grams = grams_of(Odd(), torch.zeros(1, 4, 8, 8))
    assert found == {}
    assert grams.left() == {
        "its convolution has several groups": ["depthwise.weight"],
        "it has more than 4608 inputs": ["wide.weight"],
        "it is no plain weight of a linear layer or a convolution of two axes": ["product"],
    }


def folder_of(folder: Path, count: int) -> list[Picture]:
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        (folder / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"a/{number}.png")
    return labelled(folder, ["a"], required=False)


def test_the_file_holds_the_matrices_of_all_pictures(tmp_path: Path) -> None:
    classifier, pictures, told = classifier_of(conv_net()), folder_of(tmp_path / "data", 6), list[str]()
    pictures[3].path.write_bytes(b"none")
    about = estimate_grams(classifier, pictures, tmp_path / "g.safetensors", batch_size=2, tell=told.append)
    assert (about.kind, about.n, about.skipped) == ("gram", 5, ("a/3.png",))
    found = read_statistics(tmp_path / "g.safetensors")
    assert found.about == about
    assert set(found.weights.names) == {"0.weight", "3.weight", "7.weight"}
    inputs = classifier.read([each.path for each in pictures if each.key != "a/3.png"])
    patches = F.unfold(inputs.double(), 3, padding=1).transpose(1, 2).reshape(-1, 27)
    assert_close(found.weights.tensor("0.weight"), gram_of(patches), rtol=1e-6, atol=1e-7)
    head = classifier.module[:7](inputs.double())
    assert_close(found.weights.tensor("7.weight"), gram_of(head), rtol=1e-6, atol=1e-7)
    assert len(told) == 1
    again = estimate_grams(classifier, pictures, tmp_path / "g.safetensors", batch_size=5, tell=told.append)
    assert again == about
    assert "is there already, from the same request" in told[1]


def test_pictures_that_cannot_be_read_and_broken_weights_are_told(tmp_path: Path) -> None:
    classifier, pictures = classifier_of(conv_net()), folder_of(tmp_path / "data", 2)
    missing = [Picture("x.png", tmp_path / "x.png")]
    with pytest.raises(NoPictures, match="expect pictures, found none that can be read; give another folder"):
        estimate_grams(classifier, missing, tmp_path / "g.safetensors", batch_size=2, tell=[].append)
    with torch.no_grad():
        classifier.module[0].weight[0] = float("inf")
    with pytest.raises(ValueError, match=r"what comes into 3.weight is NaN or infinite; check the checkpoint"):
        estimate_grams(classifier, pictures, tmp_path / "g.safetensors", batch_size=2, tell=[].append)
    assert not list(tmp_path.glob("*.safetensors"))
