"""The Fisher of a whole run: exact, whatever the batch, whole or absent, the same bytes after an interruption."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close
from nets import classifier_of, conv_net, linear_net, seeded
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from xai_cli.classifiers.classifier import Classifier
from xai_cli.merging import fisher
from xai_cli.merging.fisher import estimate_fisher
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.pictures import Batch, NoPictures, Picture
from xai_cli.merging.statistics import About, combine, read_statistics
from xai_cli.operators.per_example import Mixed, PerExample


@pytest.fixture
def seven(tmp_path: Path) -> list[Picture]:
    """Pictures of noise, the fourth of them broken."""
    noise = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    listed = [Picture(f"{n}.png", tmp_path / f"data/{n}.png", n % 3) for n in range(8)]
    for picture in listed:
        Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(picture.path)
    listed[3].path.write_text("no picture")
    return listed


class Net(nn.Module):
    """Tokens, a token for the class, positions, attention, norms, a layer used twice, and a head tied to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(self.mix(torch.relu(self.mix(x)))[:, 0])


class Mean(nn.Module):
    """Takes the mean over the batch away: pictures are not kept apart."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


def watched() -> bool:
    """Whether each picture's own gradient is followed at the moment."""
    return any(isinstance(mode, PerExample) for mode in torch.overrides._get_current_function_mode_stack())


class Moody(nn.Module):
    """Fails where it is watched."""

    def forward(self, x: Tensor) -> Tensor:
        if watched():
            raise RuntimeError("not while I am watched")
        return x


class Late(nn.Module):
    """Cannot be followed on the last, smaller batch."""

    def forward(self, x: Tensor) -> Tensor:
        if watched() and len(x) == 1:
            raise Mixed("too late")
        return x


class Centred(nn.Module):
    """Pictures of a batch share a mean that is held fast: no gradient tells of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.detach().mean((0, 2, 3), keepdim=True)


class Louder(torch.autograd.Function):
    """Leaves a batch as it is, and multiplies what comes back by the number of pictures."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * len(gradient)


class Loud(nn.Module):
    """Batches have other gradients than pictures, and the same scores."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return Louder.apply(x + self.shift)


class Smaller(nn.Module):
    """Mixes pictures in batches of three alone, as the last one is."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True) if len(x) == 3 else x


class Random(nn.Module):
    """Never the same twice."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


def estimated(
    classifier: Classifier, pictures: list[Picture], out: Path, said: list[str] | None = None, **options: Any
) -> tuple[About, dict[str, Tensor]]:
    given = {name: options.pop(name) for name in ("progress", "overwrite") if name in options}
    tell = (said if said is not None else []).append
    about = estimate_fisher(classifier, pictures, FisherOptions(**options), out, tell=tell, **given)
    return about, load_file(out)


def expected(classifier: Classifier, pictures: list[Picture]) -> dict[str, Tensor]:
    """The mean over pictures of sum_c p_c (d log p_c)^2, by a loop over pictures and classes."""
    parameters = dict(classifier.module.requires_grad_().named_parameters())
    total = {name: torch.zeros_like(each) for name, each in parameters.items()}
    for picture in pictures:
        logs = classifier.logits(classifier.read([picture.path]))[0].log_softmax(0)
        for log in logs:
            gradients = torch.autograd.grad(log, parameters.values(), retain_graph=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += log.detach().exp() * gradient.square() / len(pictures)
    classifier.module.requires_grad_(False)
    return total


def good(pictures: list[Picture]) -> list[Picture]:
    return [*pictures[:3], *pictures[4:]]


def test_closed_form_of_one_layer(seven: list[Picture], tmp_path: Path) -> None:
    classifier = classifier_of(linear_net())
    about, found = estimated(classifier, seven, tmp_path / "f.safetensors")
    x = classifier.read([each.path for each in good(seven)]).double()
    p = classifier.logits(x).softmax(1)
    weights = (p * (1 - p)).T @ x.flatten(1).square() / 7
    assert_close(found["1.weight"], weights, rtol=1e-6, atol=0)
    assert_close(found["1.bias"], (p * (1 - p)).mean(0), rtol=1e-6, atol=0)
    assert (about.n, about.skipped, about.estimator, about.probes) == (7, ("3.png",), "expected", 3)
    assert abs(about.trace - float(weights.sum() + (p * (1 - p)).mean(0).sum())) < 1e-6 * about.trace


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_against_a_double_loop_whatever_the_batch(
    seven: list[Picture], tmp_path: Path, size: int, dtype: torch.dtype
) -> None:
    classifier = classifier_of(seeded(Net), dtype=dtype)
    about, found = estimated(classifier, seven, tmp_path / "f.safetensors", batch_size=size)
    wanted = expected(classifier, good(seven))
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        assert_close(found[name], each, rtol=1e-4, atol=1e-6 * float(each.max()))
        assert found[name].dtype == torch.float32
    assert (about.per_example, about.n) == ("batched", 7)
    assert about.error < 1e-4


@pytest.mark.parametrize(("estimator", "probes"), [("importance", 2), ("eig", 2), ("sampled", 2), ("empirical", 1)])
def test_draws_do_not_depend_on_the_batch(seven: list[Picture], tmp_path: Path, estimator: str, probes: int) -> None:
    classifier = classifier_of(conv_net())
    found = [estimated(classifier, seven, tmp_path / f"{size}.safetensors", estimator=estimator, probes=probes,
                       batch_size=size)[1] for size in (1, 3, 7)]  # fmt: skip
    for other in found[1:]:
        for name, each in found[0].items():
            assert_close(other[name], each, rtol=1e-6, atol=0)


def test_importance_is_right_on_average(seven: list[Picture], tmp_path: Path) -> None:
    classifier, pictures = classifier_of(conv_net()), good(seven)[:2]
    wanted = expected(classifier, pictures)["7.weight"]
    seeds = [estimated(classifier, pictures, tmp_path / f"{seed}.safetensors", estimator="importance", seed=seed)
             for seed in range(100)]  # fmt: skip
    found = torch.stack([tensors["7.weight"] for _, tensors in seeds])
    assert (found.mean(0) - wanted).norm() <= 4 * (found.var(0).sum() / len(found)).sqrt()


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (Mean, "keep the pictures apart|other scores"),
        (Loud, "off plain autograd"),
        (Moody, "not while I am watched"),
        (Late, "too late; all are done again"),
    ],
)
def test_a_model_that_mixes_is_done_one_by_one(
    seven: list[Picture], tmp_path: Path, odd: Callable[[], nn.Module], why: str
) -> None:
    classifier, said = classifier_of(nn.Sequential(odd(), seeded(conv_net))), []
    about, found = estimated(classifier, seven, tmp_path / "f.safetensors", said, batch_size=3)
    assert about.per_example == "one by one"
    for name, each in expected(classifier, good(seven)).items():
        assert_close(found[name], each, rtol=1e-5, atol=1e-12)
    assert re.search(f"so each is done alone: .*{why}", "\n".join(said))


class Killed(BaseException):
    """What a signal raises."""


def ending(after: int) -> Callable[..., Iterator[Batch]]:
    def progress(batches: Iterator[Batch], total: int, done: int) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            if number == after:
                raise Killed
            yield batch

    return progress


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("estimator", ["expected", "importance"])
def test_resumed_comes_to_the_same_bytes(seven: list[Picture], tmp_path: Path, after: int, estimator: str) -> None:
    classifier, out, whole = classifier_of(conv_net()), tmp_path / "f.safetensors", tmp_path / "whole.safetensors"
    asked, said = {"estimator": estimator, "batch_size": 2}, []
    estimated(classifier, seven, whole, **asked)
    with pytest.raises(Killed):
        estimated(classifier, seven, out, progress=ending(after), **asked)
    assert not out.exists()
    assert (tmp_path / "f.safetensors.partial").exists()
    with pytest.raises(ValueError, match=r"partial answers another request \(params , now 7\); give another -o"):
        estimated(classifier, seven, out, params="7", **asked)
    estimated(classifier, seven, out, said, **asked)
    assert f"going on after {2 * after} pictures" in said[0]
    assert out.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "f.safetensors", "whole.safetensors"}


def test_what_takes_long_is_saved_on_the_way(
    seven: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "_SECONDS", 0.0)
    seen = []

    def progress(batches: Iterator[Batch], total: int, done: int) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            seen.append((tmp_path / "f.safetensors.partial").exists())

    estimated(classifier_of(conv_net()), seven, tmp_path / "f.safetensors", progress=progress, batch_size=3)
    assert seen == [True, True, True]


def test_an_answer_is_left_as_it_is(seven: list[Picture], tmp_path: Path) -> None:
    classifier, out, said = classifier_of(conv_net()), tmp_path / "f.safetensors", []
    first, _ = estimated(classifier, seven, out)
    out.touch()
    stamp = out.stat().st_mtime_ns
    assert estimated(classifier, seven, out, said)[0] == first == read_statistics(out).about
    assert "left as it is" in said[0]
    assert out.stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"answers another request \(other pictures\)"):
        estimated(classifier, seven[1:], out)
    assert estimated(classifier, seven[1:], out, overwrite=True)[0].n == 6


def test_parameters_that_are_asked_for(seven: list[Picture], tmp_path: Path) -> None:
    classifier = classifier_of(conv_net())
    _, every = estimated(classifier, seven, tmp_path / "every.safetensors")
    _, some = estimated(classifier, seven, tmp_path / "some.safetensors", params="^7|bias$")
    assert some.keys() == {"0.bias", "3.bias", "7.weight", "7.bias"}
    assert all(torch.equal(some[name], every[name]) for name in some)
    with pytest.raises(LookupError, match=r"--params matches nothing: no parameter is named '7.wait'; .*'7.weight'"):
        estimated(classifier, seven, tmp_path / "none.safetensors", params="7.wait")


def test_tied_parameters_stand_under_both_names(seven: list[Picture], tmp_path: Path) -> None:
    net = seeded(Net)
    net.again = net.mix
    _, found = estimated(classifier_of(net), seven, tmp_path / "f.safetensors")
    assert torch.equal(found["again.weight"], found["mix.weight"])


def test_the_module_is_left_as_it_was(seven: list[Picture], tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(144, 3))
    classifier = classifier_of(net, dtype=torch.float32)
    before = {name: each.clone() for name, each in net.state_dict().items()}
    _, found = estimated(classifier, seven, tmp_path / "f.safetensors")
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert not any(each.requires_grad or each.grad is not None for each in net.parameters())
    assert found.keys() == dict(net.named_parameters()).keys()
    half = classifier.in_dtype(torch.float16)
    _, precise = estimated(half, seven, tmp_path / "half.safetensors")
    assert_close(precise["1.weight"], found["1.weight"], rtol=0.1, atol=1e-4)
    assert next(half.module.parameters()).dtype == torch.float16


def test_what_cannot_be_estimated(seven: list[Picture], tmp_path: Path) -> None:
    classifier, out = classifier_of(conv_net()), tmp_path / "f.safetensors"
    unlabelled = [replace(each, label=None) for each in seven]
    with pytest.raises(ValueError, match=r"in folders named after classes, found '0.png' in none; take importance"):
        estimated(classifier, unlabelled, out, estimator="empirical")
    with pytest.raises(NoPictures, match="found none that can be read among 1"):
        estimated(classifier, seven[3:4], out)
    with pytest.raises(ValueError, match="found none in Flatten; give a model and not a function"):
        estimated(classifier_of(nn.Flatten()), seven, out)
    with pytest.raises(ValueError, match=r"load it with fold=False"):
        estimated(replace(classifier, folded={"a": "b"}), seven, out)
    nan = classifier_of(conv_net())
    nan.module[7].bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"gives scores that are NaN or infinite for 0.png; check its weights"):
        estimated(nan, seven, out)
    assert not out.exists()
    said: list[str] = []
    assert estimated(classifier, seven, out, said, estimator="empirical")[0].biased
    assert "is biased" in said[0]


def test_probes_without_effect_are_refused_before_anything_is_read(seven: list[Picture], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--probes 4 has no effect with --estimator expected"):
        estimated(classifier_of(conv_net()), seven, tmp_path / "f.safetensors", probes=4)
    assert not (tmp_path / "f.safetensors").exists()


def test_a_file_knows_what_it_counted(seven: list[Picture], tmp_path: Path) -> None:
    classifier, half = classifier_of(linear_net()), tmp_path / "half.safetensors"
    whole, _ = estimated(classifier, seven, tmp_path / "f.safetensors", seed=3)
    digests = [hashlib.sha256(each.path.read_bytes()).hexdigest()[:16] for each in good(seven)]
    assert read_statistics(tmp_path / "f.safetensors").about.contents == ",".join(sorted(digests))
    # Draws are made by estimators that draw: another seed is the same request.
    assert (whole.seed, estimated(classifier, seven, tmp_path / "f.safetensors", seed=4)[0]) == (0, whole)
    estimated(classifier, [replace(each, key=f"other/{each.key}") for each in seven], half, count=4)
    with pytest.raises(ValueError, match="both count 4 pictures of the same content; leave one out"):
        combine([read_statistics(tmp_path / "f.safetensors"), read_statistics(half)], tmp_path / "x.safetensors",
                overwrite=False, tell=print)  # fmt: skip


def test_options() -> None:
    assert [FisherOptions().estimator_for(classes) for classes in (16, 17)] == ["expected", "importance"]
    with pytest.raises(ValueError, match="--probes of 2 to 33, its directions and one draw of the rest, found 1"):
        FisherOptions(estimator="eig")
    with pytest.raises(ValueError, match="--probes has no effect with --estimator expected; leave it out"):
        FisherOptions(estimator="expected", probes=2)
    with pytest.raises(ValueError, match="--probes 5 has no effect with --estimator expected, which is taken for 16"):
        FisherOptions(probes=5).check_for(16)
    with pytest.raises(ValueError, match="--estimator eig expects --probes of at most 10 for 10 classes, found 11"):
        FisherOptions(estimator="eig", probes=11).check_for(10)
    exact, drawn = (FisherOptions(seed=3).settings_for(classes) for classes in (16, 17))
    assert exact == {"estimator": "expected", "probes": 16, "seed": 0, "params": ""}
    assert drawn == {"estimator": "importance", "probes": 1, "seed": 3, "params": ""}
    for given, classes in (({"probes": 5}, 17), ({"estimator": "eig", "probes": 10}, 10), ({}, 2)):
        FisherOptions(**given).check_for(classes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"--params expects a regular expression, found '\('"):
        FisherOptions(params="(")


@pytest.mark.parametrize("odd", [Centred, Smaller])
def test_pictures_that_are_mixed_later_are_found(seven: list[Picture], tmp_path: Path, odd: type[nn.Module]) -> None:
    classifier, said = classifier_of(nn.Sequential(odd(), conv_net())), list[str]()
    about, found = estimated(classifier, seven, tmp_path / "f.safetensors", said, batch_size=4)
    assert about.per_example == "one by one"
    assert any(re.search("gets other scores beside other pictures than alone", each) for each in said)
    for name, each in expected(classifier, good(seven)).items():
        assert_close(found[name], each, rtol=1e-5, atol=1e-9)


def test_what_cannot_be_repeated_is_refused(seven: list[Picture], tmp_path: Path) -> None:
    classifier = classifier_of(nn.Sequential(Random(), conv_net()))
    with pytest.raises(ValueError, match=r"gives other scores for 0\.png each time; switch off what is random in it"):
        estimated(classifier, seven, tmp_path / "f.safetensors")


def test_checkpointing_is_refused(seven: list[Picture], tmp_path: Path) -> None:
    net = conv_net()
    net.grad_checkpointing = True
    with pytest.raises(ValueError, match="has checkpointing switched on, which hides its parameters; switch it off"):
        estimated(classifier_of(net), seven, tmp_path / "f.safetensors")


class Cached(nn.Module):
    """A bias that is kept as it was made first, as timm's attention biases are."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, 3))
        self.bias_cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "made" not in self.bias_cache:
            self.bias_cache["made"] = self.bias[:, None, None] * 2
        return x + self.bias_cache["made"]


@pytest.mark.parametrize("more", [nn.Identity, Mean])
def test_what_is_kept_of_parameters_counts(seven: list[Picture], tmp_path: Path, more: type[nn.Module]) -> None:
    cached = Cached()
    classifier = classifier_of(nn.Sequential(cached, more(), conv_net()))
    classifier.logits(classifier.example())
    kept = cached.bias_cache["made"]
    _, found = estimated(classifier, good(seven), tmp_path / "f.safetensors", batch_size=3)
    assert cached.bias_cache["made"] is kept
    cached.bias_cache.clear()
    wanted = []
    for picture in good(seven):
        logs = []
        for index in range(3):
            cached.bias_cache.clear()
            bias = cached.bias.requires_grad_()
            log = classifier.logits(classifier.read([picture.path]))[0].log_softmax(0)[index]
            logs.append(log.detach().exp() * torch.autograd.grad(log, bias)[0].square())
        wanted.append(sum(logs))
    cached.bias.requires_grad_(False)
    assert_close(found["0.bias"], sum(wanted) / len(wanted), rtol=1e-5, atol=1e-9)


class Tokens(nn.Module):
    """A norm whose gradient comes back in an unusual layout, of which torch makes a wrong one for a single picture."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 3)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.head(self.norm(self.before(x).contiguous().sin()).flatten(2).transpose(1, 2).contiguous())
            .square()
            .mean(1)
        )


def test_single_pictures_are_differentiated_rightly(seven: list[Picture], tmp_path: Path) -> None:
    about, _ = estimated(classifier_of(seeded(Tokens)), seven, tmp_path / "f.safetensors", batch_size=3)
    assert about.per_example == "batched"
    assert about.error < 1e-9
