"""Two fine-tunings of one net on real pictures: the better the Fisher the better the merge, the plain mean last."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from xai_cli.classifiers.loading import load_classifier
from xai_cli.merging.evaluate import Evaluator, Task
from xai_cli.merging.fisher import estimate_fisher
from xai_cli.merging.formula import Average, FisherMean, Rule
from xai_cli.merging.merge import merged
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import Estimator, FisherOptions
from xai_cli.merging.pictures import Picture, labelled
from xai_cli.merging.plan import plan
from xai_cli.merging.statistics import Statistics, read_statistics
from xai_cli.merging.weights import Weights

SEEDS = range(4)
BASE, TUNED, TOLD = 400, 1200, 100  # where the pictures of the base, of the fine-tunings and of the Fishers end
TURNS = {"upright": 0, "turned": 1}

Digits = tuple[NDArray[np.uint8], NDArray[np.int64]]


def small_net() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip
    net.pretrained_cfg = {"input_size": (1, 8, 8), "crop_pct": 1.0, "mean": (0.5,), "std": (0.5,)}
    return net


def train(net: nn.Module, digits: Digits, epochs: int, rate: float, seed: int) -> None:
    inputs, labels = torch.from_numpy(digits[0])[:, None] / 127.5 - 1, torch.from_numpy(digits[1])
    generator, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(net.parameters(), rate)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()


@pytest.fixture(scope="module")
def domains() -> dict[str, Digits]:
    """Handwritten digits of 8x8 pixels as they are, and turned by 90 degrees, in one random order."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels = np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)
    return {name: (np.rot90(pixels, turns, (1, 2)).copy(), digits.target[order]) for name, turns in TURNS.items()}


@pytest.fixture(scope="module")
def folders(domains: Mapping[str, Digits], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each domain a folder with `told/DIGIT/*.png`, of which the net has been told, and `new/DIGIT/*.png`."""
    found = {name: tmp_path_factory.mktemp(name) for name in domains}
    for name, (pixels, labels) in domains.items():
        for kind, first, last in (("told", BASE, BASE + TOLD), ("new", TUNED, len(labels))):
            for index in range(first, last):
                path = found[name] / kind / str(labels[index]) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[index]).save(path)
    return found


def part(digits: Digits, first: int, last: int) -> Digits:
    return digits[0][first:last], digits[1][first:last]


def fine_tunings(domains: Mapping[str, Digits], seed: int) -> dict[str, nn.Module]:
    """A net that has seen a little of both domains, and then much of one."""
    torch.manual_seed(seed)
    base = small_net()
    pixels, labels = zip(*(part(digits, 0, BASE) for digits in domains.values()), strict=True)
    train(base, (np.concatenate(pixels), np.concatenate(labels)), 3, 2e-3, seed)
    tuned = {name: copy.deepcopy(base) for name in domains}
    for name, net in tuned.items():
        train(net, part(domains[name], BASE, TUNED), 20, 1e-3, seed)
    return tuned


def unheard(*said: object) -> None:
    pass


def pictures(folder: Path) -> list[Picture]:
    return labelled(folder, [*"0123456789"], required=True)


def fishers(tuned: Mapping[str, nn.Module], folders: Mapping[str, Path], out: Path, how: Estimator) -> list[Statistics]:
    files = []
    for name, net in tuned.items():
        files.append(out / f"{name}-{how}.safetensors")
        classifier = load_classifier(net, fold=False, device="cpu")
        options = FisherOptions(estimator=how, batch_size=100)
        estimate_fisher(classifier, pictures(folders[name] / "told"), options, files[-1], tell=unheard)
    return [read_statistics(file) for file in files]


@pytest.fixture(scope="module")
def accuracies(
    domains: Mapping[str, Digits], folders: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, NDArray[np.float64]]:
    """Of each way to merge, the accuracy on new pictures of both domains, (seeds, domains)."""
    tasks = [Task(name, pictures(folder / "new")) for name, folder in folders.items()]
    classifier = load_classifier(small_net(), fold=False, device="cpu")
    evaluator = Evaluator(classifier, tasks, 600, tell=unheard, broken=unheard)
    scores: dict[str, list[list[float]]] = {}
    for seed in SEEDS:
        out, tuned = tmp_path_factory.mktemp("merge"), fine_tunings(domains, seed)
        for name, net in tuned.items():
            save_file(net.state_dict(), out / f"{name}.safetensors")
            scores.setdefault(name, []).append([*evaluator.scores(net.state_dict().items()).values()])
        weights = [Weights(out / f"{name}.safetensors") for name in tuned]
        names = [name for name, _ in classifier.module.named_parameters()]
        made = plan(weights, names, (), MergeOptions(method="average"))
        rules: dict[str, Rule] = {"average": Average()}
        rules |= {how: FisherMean(fishers(tuned, folders, out, how)) for how in ("sampled", "expected")}
        for name, rule in rules.items():
            found: dict[str, Tensor] = dict(merged(made, weights, rule, (1, 1)))
            scores.setdefault(name, []).append([*evaluator.scores(found.items()).values()])
    return {name: np.array(found) for name, found in scores.items()}


def test_each_fine_tuning_is_good_at_its_own_domain_alone(accuracies: Mapping[str, NDArray[np.float64]]) -> None:
    for own, name in enumerate(TURNS):
        assert (accuracies[name][:, own] > 0.94).all()
        assert (accuracies[name][:, 1 - own] < 0.4).all()


def test_the_better_the_fisher_the_better_the_merge(accuracies: Mapping[str, NDArray[np.float64]]) -> None:
    average, sampled, exact = (accuracies[name].mean(1) for name in ("average", "sampled", "expected"))
    assert average.mean() + 0.05 < sampled.mean() <= exact.mean()
    assert (average < exact).all()
