"""What perturbing pictures costs here and in the field's reference implementations, and how much of LIME is chance.

    python benchmarks/perturbation.py cost --model torchvision/resnet50 --samples 1000
    python benchmarks/perturbation.py cost --model torchvision/squeezenet1_1 --samples 1000
    python benchmarks/perturbation.py occlusion --model torchvision/resnet50
    python benchmarks/perturbation.py spread --model torchvision/squeezenet1_1 --checkpoint FILE --pictures photos

`cost`: LIME of one picture, here and by the `lime` package on the same segments, in turn in one process; CPU seconds,
whole and outside of the model's own forward passes. `occlusion`: 49 windows
on a batch of pictures, here (eager, compiled, in bfloat16) and by captum. `spread`: Spearman's correlation over
segments of two runs with different seeds, the package with 1000 samples beside this project with fewer. Each writes its
table into the JSON file, where the others stay.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from captum.attr import Occlusion as CaptumOcclusion
from lime.lime_image import LimeImageExplainer
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import transforms

from xai_cli import attribute, load_classifier
from xai_cli.classifiers import zoo
from xai_cli.classifiers.checkpoints import load_checkpoint
from xai_cli.classifiers.classifier import Classifier
from xai_cli.images.segments import segmented
from xai_cli.images.sources import find_images
from xai_cli.methods.contract import Attribution
from xai_cli.methods.lime import Lime
from xai_cli.methods.masking import rank_correlation
from xai_cli.methods.occlusion import Occlusion
from xai_cli.targets import Target

BATCH = 10  # the package's own
SEGMENTS = 50
Row = dict[str, Any]
Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process that one call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def bare(asked: argparse.Namespace) -> nn.Module:
    """The model as its library makes it, for the peers."""
    module = zoo.build(asked.model, pretrained=False, classes=None, size=None).module.eval().requires_grad_(False)
    if asked.checkpoint:
        load_checkpoint(module, asked.checkpoint)
    return module


def loaded(asked: argparse.Namespace, **options: Any) -> Classifier:
    return load_classifier(asked.model, pretrained=False, checkpoint=asked.checkpoint, device="cpu", **options)


def probabilities(classifier: Classifier, module: nn.Module) -> Predict:
    """The model as the package's tutorial calls it: pictures `(n, h, w, 3)` to probabilities `(n, K)`."""
    own = classifier.preprocessing
    prepared = transforms.Compose([transforms.ToTensor(), transforms.Normalize(own.mean, own.std)])

    def predict(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            return module(torch.stack([prepared(each) for each in pictures])).softmax(dim=1).numpy()

    return predict


def packages(
    predict: Predict,
    pixels: NDArray[np.uint8],
    label: int,
    samples: int,
    seed: int = 0,
    kind: str = "slic",
) -> NDArray[np.float64]:
    """The weights `(P,)` of the segments by the `lime` package."""
    labels = segmented(pixels, kind, SEGMENTS).astype(np.int64)
    explainer = LimeImageExplainer(random_state=seed)
    with redirect_stderr(StringIO()):  # its progress bar
        found = explainer.explain_instance(
            pixels, predict, labels=(label,), top_labels=None, num_samples=samples,
            batch_size=BATCH, segmentation_fn=lambda _: labels,
        )  # fmt: skip
    return np.array([weight for _, weight in sorted(found.local_exp[label])])


def ours(classifier: Classifier, inputs: Tensor, label: int, seed: int = 0, **options: Any) -> Attribution:
    method = Lime(segments=SEGMENTS, **options)
    return attribute(classifier, inputs, method, [Target(label)] * len(inputs), chunk=BATCH, seed=seed)


def cost(asked: argparse.Namespace) -> list[Row]:
    """LIME of one picture: CPU seconds whole and outside of the model, and the share of the package's."""
    classifier, module = loaded(asked), bare(asked)
    inputs = classifier.read([asked.pictures[0]]) if asked.pictures else classifier.example()
    pixels, predict = classifier.pixels(inputs)[0], probabilities(classifier, module)
    works: dict[str, tuple[nn.Module, Callable[[], object]]] = {
        "lime": (module, lambda: packages(predict, pixels, 0, asked.samples)),
        "here": (classifier.module, lambda: ours(classifier, inputs, 0, samples=asked.samples)),
        "here, a quarter": (classifier.module, lambda: ours(classifier, inputs, 0, samples=asked.samples // 4)),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    ours(classifier, inputs, 0, samples=20)  # what is imported once
    for _ in range(asked.rounds):
        for name, (model, work) in works.items():
            with inside(model) as own:
                whole = cpu_seconds(work)
            seconds[name].append((whole, sum(own)))
            print(name, round(whole, 2), f"{whole / sum(own) - 1:.2%} beyond the model", flush=True)
    rows = []
    for name, times in seconds.items():
        row: Row = {"model": asked.model, "by": name, "samples": asked.samples // (4 if "quarter" in name else 1)}
        row["seconds"] = [round(whole, 2) for whole, _ in times]
        row["beyond the model"] = round(median(whole / own - 1 for whole, own in times), 4)
        both = zip(times, seconds["lime"], strict=True)
        rows.append(row | {"share of lime": round(median(mine / their for (mine, _), (their, _) in both), 3)})
    return rows


@contextmanager
def inside(module: nn.Module) -> Iterator[list[float]]:
    """While open, the CPU seconds of every call of the module are added to the list."""
    seconds: list[float] = []
    before = module.register_forward_pre_hook(lambda *_: seconds.append(-time.process_time()))
    after = module.register_forward_hook(lambda *_: seconds.append(time.process_time()))
    try:
        yield seconds
    finally:
        before.remove()
        after.remove()


def occlusion(asked: argparse.Namespace) -> list[Row]:
    """49 windows on a batch of four, in forward passes of the bare model over the batch."""
    module, variants = bare(asked), {"here": {}, "here, compiled": {"compile": True}}
    classifiers = {name: loaded(asked, **options) for name, options in variants.items()}
    inputs = 0.5 * torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    targets = [Target(index) for index in range(4)]
    peer = CaptumOcclusion(module)
    half = replace(Occlusion(window=32, stride=32), precision="bfloat16")

    def by_captum() -> None:
        peer.attribute(inputs, (3, 32, 32), strides=(3, 32, 32), target=torch.arange(4), baselines=0)

    def here(name: str, method: Occlusion) -> Callable[[], object]:
        return lambda: attribute(classifiers[name], inputs, method, targets, chunk=asked.chunk)

    works: dict[str, Callable[[], object]] = {
        "one forward pass": lambda: plain_forward(module, inputs),
        "captum": by_captum,
        "here": here("here", Occlusion(window=32, stride=32)),
        "here, compiled": here("here, compiled", Occlusion(window=32, stride=32)),
        "here, bfloat16": here("here", half),
    }
    first = {name: cpu_seconds(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(asked.rounds):
        for name, work in works.items():
            seconds[name].append(cpu_seconds(work))
    units = seconds["one forward pass"]
    rows = []
    for name, times in seconds.items():
        each = {"model": asked.model, "by": name, "first call, seconds": round(first[name], 1)}
        each["forward passes"] = round(median(time_ / unit for time_, unit in zip(times, units, strict=True)), 2)
        each["share of captum"] = round(median(a / b for a, b in zip(times, seconds["captum"], strict=True)), 3)
        rows.append(each)
        print(each, flush=True)
    return rows


def plain_forward(module: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        module(inputs)


def spread(asked: argparse.Namespace) -> list[Row]:
    """Rank correlation of two runs, mean over pictures, by the package and here."""
    classifier, module = loaded(asked), bare(asked)
    predict = probabilities(classifier, module)
    paths = [image.path for image in find_images([str(each) for each in asked.pictures])]
    kinds: dict[str, Callable[[Tensor, int, int], NDArray[np.float64]]] = {}
    kinds["lime, 1000 samples"] = lambda inputs, label, seed: packages(
        predict, classifier.pixels(inputs)[0], label, 1000, seed
    )

    def weights(inputs: Tensor, label: int, seed: int, **options: Any) -> NDArray[np.float64]:
        return np.array(ours(classifier, inputs, label, seed, **options).segments[0]["value"])

    for samples, sampling, score in ((1000, "independent", "probability"), (250, "independent", "probability"),
                                     (250, "paired", "probability"), (250, "paired", "logit")):  # fmt: skip
        kinds[f"here, {samples} samples, {sampling}, {score}"] = lambda *run, n=samples, s=sampling, f=score: weights(
            *run, samples=n, sampling=s, score=f
        )
    correlations: dict[str, list[float]] = {name: [] for name in kinds}
    for path in paths:
        inputs = classifier.read([path])
        label = int(classifier.logits(inputs).argmax())
        for name, weigh in kinds.items():
            one, other = (torch.from_numpy(weigh(inputs, label, seed))[None] for seed in (1, 2))
            correlations[name].append(float(rank_correlation(one, other)))
            print(path.name, name, round(correlations[name][-1], 3), flush=True)
    return [
        {"model": asked.model, "pictures": len(paths), "by": name, "rank correlation": round(mean(found), 3),
         "least": round(min(found), 3)}
        for name, found in correlations.items()
    ]  # fmt: skip


TABLES = {"cost": cost, "occlusion": occlusion, "spread": spread}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--model", default="torchvision/resnet50")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--pictures", type=Path, nargs="*", default=[])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=8, help="rows of a pass, for occlusion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/perturbation.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = TABLES[asked.table](asked)
    report = json.loads(asked.json.read_text()) if asked.json.is_file() else {}
    others = [row for row in report.get(asked.table, []) if row["model"] != asked.model]
    report["machine"] = {"processor": platform.processor() or platform.machine(), "threads": asked.threads}
    report["versions"] = {name: version(name) for name in ("torch", "torchvision", "captum", "lime")}
    report[asked.table] = others + rows
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
