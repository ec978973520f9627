"""How exact the diagonal Fisher is, what it costs, and what a few probes miss of it.

    python benchmarks/fisher.py exact
    python benchmarks/fisher.py cost --model vit_tiny_patch16_224 --pictures 8
    python benchmarks/fisher.py estimators --pictures 100

`exact`: ten architectures with 10 classes and random weights: all classes here, in batches of 1, 3 and 7, against a
double loop over pictures and classes with autograd; beside it what comes of one backward pass of the sum over a batch
of `sqrt(p) log p`, squared, as FusionBench has it, in the same batches. `cost`: CPU seconds of probes of all parameters
that share a forward pass, over those of a plain forward and backward pass of the batch. `estimators`: the relative RMS
error of estimators on the embedded trained nets and scenes drawn for them, from the exact variance of their draws.
Each writes its table into the JSON file, where the others stay.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call

from xai_cli import load_classifier
from xai_cli.merging.cotangents import Softmax, cotangents
from xai_cli.merging.fisher import Squares
from xai_cli.operators.per_example import PerExample, forgetful
from xai_cli.scenes.dataset import shrink
from xai_cli.scenes.drawing import CLASSES, draw_scene

SIDE = 64
PICTURES = 7
BATCHES = (1, 3, 7)
# Small widths where the architecture has them: a double loop over pictures and classes is slow.
ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    "ViT (timm vit_tiny_patch16_224)": lambda: _timm("vit_tiny_patch16_224", img_size=SIDE, init_values=0.1),
    "ConvNeXt (timm convnext_atto)": lambda: _timm("convnext_atto"),
    "ResNet (timm resnet18)": lambda: _timm("resnet18"),
    "EfficientNet (timm efficientnet_b0)": lambda: _timm("efficientnet_b0"),
    "Swin (timm swin_tiny_patch4_window7_224)": lambda: _timm("swin_tiny_patch4_window7_224", img_size=SIDE),
    "MLP-Mixer (timm mixer_s32_224)": lambda: _timm("mixer_s32_224", img_size=SIDE),
    "MobileNet (timm mobilenetv3_small_050)": lambda: _timm("mobilenetv3_small_050"),
    "DenseNet (timm densenet121)": lambda: _timm("densenet121"),
    "RegNet (timm regnety_002)": lambda: _timm("regnety_002"),
    "ViT (torchvision vit_b_16, 2 blocks)": lambda: torchvision.models.VisionTransformer(
        SIDE, 16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=10
    ),
}
Row = dict[str, Any]
Sums = dict[str, Tensor]


def _timm(name: str, **settings: Any) -> nn.Module:
    return timm.create_model(name, num_classes=10, **settings)


def enlivened(module: nn.Module) -> nn.Module:
    """In evaluation mode, with nothing left at zero or one: a head of zeros lets no gradient through."""
    with torch.no_grad():
        for parameter in module.parameters():
            if float(parameter.float().std(correction=0)) == 0:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval().requires_grad_(False)


def exact(asked: argparse.Namespace) -> list[Row]:
    """The worst error over parameters, the change with the batch size, and both of the squared gradient of a batch."""
    rows = []
    for name, build in ARCHITECTURES.items():
        torch.manual_seed(0)
        module, inputs = enlivened(build()), torch.randn(PICTURES, 3, SIDE, SIDE)
        wanted = by_autograd(module, inputs)
        here = {size: in_batches(module, inputs, size) for size in BATCHES}
        squared = {size: of_batches(module, inputs, size) for size in BATCHES}
        row: Row = {"architecture": name, "parameters": sum(each.numel() for each in wanted.values())}
        row["worst error"] = f"{max(worst(found, wanted) for found in here.values()):.1e}"
        row["worst change with the batch size"] = f"{max(worst(here[size], here[1]) for size in BATCHES[1:]):.1e}"
        for size, found in squared.items():
            row[f"batch squared, batches of {size}: error"] = round(relative(found, wanted), 3)
        change = round(relative(squared[BATCHES[-1]], squared[1]), 3)
        rows.append(row | {f"batch squared, change from batches of 1 to {BATCHES[-1]}": change})
        print(rows[-1], flush=True)
    return rows


def by_autograd(module: nn.Module, inputs: Tensor) -> Sums:
    """The mean over pictures of the diagonal Fisher: one gradient of each picture's every class, squared."""
    leaves = {name: parameter.detach().requires_grad_() for name, parameter in module.named_parameters()}
    sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for picture in inputs:
        # Twice the same picture: torch gives wrong gradients of some batch norms for one.
        with forgetful(module):
            logits = functional_call(module, leaves, (torch.stack([picture, picture]),))[0]
        scores = logits.log_softmax(0)
        for probability, score in zip(logits.detach().softmax(0), scores, strict=True):
            for name, gradient in gradients_of(score, leaves).items():
                sums[name] += probability * gradient.square()
    return {name: total / len(inputs) for name, total in sums.items()}


def in_batches(module: nn.Module, inputs: Tensor, size: int) -> Sums:
    """The same as this project has it."""
    parameters = dict(module.named_parameters())
    squares = Squares(parameters)
    for batch in inputs.split(size):
        engine = PerExample(parameters, len(batch), squares)
        logits = engine.logits(module, batch)
        for vectors in cotangents(logits, "expected", 1, [""] * len(batch), 0):
            engine.back(logits, vectors.to(logits))
    return {name: total / len(inputs) for name, total in squares.sums.items()}


def of_batches(module: nn.Module, inputs: Tensor, size: int) -> Sums:
    """The square of a batch's gradient of `sum_n sum_c sqrt(p_nc) log p_nc`, over the number of pictures."""
    leaves = {name: parameter.detach().requires_grad_() for name, parameter in module.named_parameters()}
    sums = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for batch in inputs.split(size):
        with forgetful(module):
            scores = functional_call(module, leaves, (batch,)).log_softmax(1)
        for name, gradient in gradients_of((scores.detach().exp().sqrt() * scores).sum(), leaves).items():
            sums[name] += gradient.square()
    return {name: total / len(inputs) for name, total in sums.items()}


def gradients_of(score: Tensor, leaves: Mapping[str, Tensor]) -> Sums:
    found = torch.autograd.grad(
        score, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def worst(found: Sums, wanted: Sums) -> float:
    """The largest relative error of one parameter; one whose gradients are but rounding is held against the others."""
    least = 1e-8 * max(float(each.norm()) for each in wanted.values())
    return max(float((found[name] - each).norm()) / max(float(each.norm()), least) for name, each in wanted.items())


def relative(found: Sums, wanted: Sums) -> float:
    """The relative error of all parameters together."""
    missed = sum(float((found[name] - each).double().square().sum()) for name, each in wanted.items())
    return (missed / sum(float(each.double().square().sum()) for each in wanted.values())) ** 0.5


def cost(asked: argparse.Namespace) -> list[Row]:
    """CPU seconds of K probes that share a forward pass, over those of plain forward and backward passes."""
    module = timm.create_model(asked.model).eval()
    inputs = torch.randn(asked.pictures, *module.pretrained_cfg["input_size"])
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    squares = Squares(parameters)
    vectors = torch.randn(max(asked.probes), asked.pictures, module.num_classes)

    def plain() -> None:
        module.requires_grad_(True).zero_grad()
        module(inputs).backward(vectors[0])

    def here(probes: int) -> None:
        module.requires_grad_(False)
        engine = PerExample(parameters, len(inputs), squares)
        logits = engine.logits(module, inputs)
        for vector in vectors[:probes]:
            engine.back(logits, vector)

    here(1)  # the first batch shows that pictures stay apart
    rows = []
    for probes in asked.probes:
        pairs = [(cpu_seconds(plain), cpu_seconds(lambda probes=probes: here(probes))) for _ in range(asked.rounds)]
        # The least of several: what else the machine does only adds.
        unit, mine = (min(times) / asked.pictures for times in zip(*pairs, strict=True))
        row: Row = {"model": asked.model, "pictures": asked.pictures, "probes": probes}
        row |= {"plain, ms a picture": round(1e3 * unit, 1), "here, ms a picture": round(1e3 * mine, 1)}
        rows.append(row | {"plain passes a probe": round(mine / unit / probes, 3)})
        print(rows[-1], flush=True)
    return rows


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process that one call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def estimators(asked: argparse.Namespace) -> list[Row]:
    """The relative RMS error of the mean over pictures, by estimator and its number of backward passes."""
    rows = []
    for model in ("builtin/scenes-cnn", "builtin/scenes-vit"):
        classifier = load_classifier(model, fold=False, device="cpu")
        sources = (np.random.default_rng((asked.seed, index)) for index in range(asked.pictures))
        scenes = [draw_scene(index % len(CLASSES), source) for index, source in enumerate(sources)]
        inputs = classifier.prepare([shrink(scene.pixels) for scene in scenes])
        total, variances, certain = Tensor([0.0]), dict[str, float](), []
        for index in range(len(inputs)):
            factors, softmax = factors_of(classifier.module, inputs[index : index + 1])
            total = total + factors.square().sum(0)
            certain.append(float(softmax.p.max()))
            for name, variance in variances_of(factors, softmax):
                variances[name] = variances.get(name, 0.0) + variance
        row: Row = {"model": model, "pictures": len(inputs), "largest probability, median": round(median(certain), 4)}
        row |= {name: round(each**0.5 / float(total.norm()), 4) for name, each in variances.items()}
        rows.append(row)
        print(row, flush=True)
    return rows


def factors_of(module: nn.Module, inputs: Tensor) -> tuple[Tensor, Softmax]:
    """What each class's factor gives on the way back `(C, P)`, of one picture, and its softmax."""
    leaves = {name: parameter.detach().requires_grad_() for name, parameter in module.named_parameters()}
    logits = functional_call(module, leaves, (inputs,))
    softmax = Softmax.of(logits)
    rows = []
    for vector in softmax.factors(torch.arange(logits.shape[1])[None])[0]:
        found = gradients_of((logits[0] * vector.to(logits)).sum(), leaves)
        rows.append(torch.cat([each.flatten() for each in found.values()]).double())
    return torch.stack(rows), softmax


def variances_of(factors: Tensor, softmax: Softmax) -> Iterator[tuple[str, float]]:
    """The variance of one picture's estimates, summed over parameters."""
    for draws in (1, 4):
        yield f"sampled, {draws}", drawn(factors, softmax.p[0]) / draws
    for draws in (1, 4):
        yield f"importance, {draws}", drawn(factors, softmax.w[0]) / draws
    vectors = softmax.factors(torch.arange(len(factors))[None])[0]
    lengths, axes = torch.linalg.eigh(vectors @ vectors.mT)
    rotated, lengths = axes.flip(1).mT @ factors, lengths.flip(0).clamp_min(0)
    for kept in (1, 3):
        yield f"eigen-directions and a drawn rest, {kept + 1}", drawn(rotated[kept:], lengths[kept:])


def drawn(vectors: Tensor, shares: Tensor) -> float:
    """The variance, summed over parameters, of the square of a row drawn by its share and divided by it."""
    squares, chances = vectors.square(), shares / shares.sum()
    possible = chances > 0
    second = (squares[possible].square().sum(1) / chances[possible]).sum()
    return max(0.0, float(second - squares.sum(0).square().sum()))


TABLES = {"exact": exact, "cost": cost, "estimators": estimators}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="of timm, for cost")
    parser.add_argument("--pictures", type=int, default=8, help="for cost and estimators")
    parser.add_argument("--probes", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/fisher.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = TABLES[asked.table](asked)
    report = json.loads(asked.json.read_text()) if asked.json.is_file() else {}
    report["machine"] = {"processor": platform.processor() or platform.machine(), "threads": asked.threads}
    report["versions"] = {name: version(name) for name in ("torch", "torchvision", "timm")}
    report[asked.table] = rows
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
