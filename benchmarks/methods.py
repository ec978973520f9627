"""What each method costs here and in the field's reference implementation, in forward passes of the bare model.

    python benchmarks/methods.py --model torchvision/resnet50 --rounds 5 --json benchmarks/results/methods.json

Every round runs, in turn, one eager float32 NCHW forward pass of the model as its library makes it (the unit), this
project, and the peers, each on the same batch in the same process, and takes their CPU seconds. A cost is the median
over the rounds of seconds / unit; a share is the median over the rounds of this project's seconds / the peer's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from captum.attr import Deconvolution, GuidedBackprop, IntegratedGradients, LayerGradCam, Saliency
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox, EpsilonPlusFlat
from zennit.core import Composite
from zennit.torchvision import ResNetCanonizer

from xai_cli import attribute, find_method, load_classifier
from xai_cli.classifiers import zoo
from xai_cli.classifiers.classifier import Classifier
from xai_cli.targets import Target

STEPS = 20
# What each row is called, the method, and its options.
OURS: dict[str, tuple[str, dict[str, object]]] = {
    "saliency": ("saliency", {}),
    "gradcam": ("gradcam", {}),
    "ig": ("ig", {"steps": STEPS}),
    "epsilon-plus-flat": ("lrp", {"composite": "epsilon-plus-flat"}),
    "epsilon-gamma-box": ("lrp", {"composite": "epsilon-gamma-box"}),
    "deeplift": ("deeplift", {"baseline": "zero"}),
    "guided-backprop": ("guided-backprop", {}),
    "deconvnet": ("deconvnet", {}),
}
# captum's DeepLift fails on nets that use one ReLU module twice, as torchvision's ResNets do.
NO_PEER = "none that runs"

Work = Callable[[], object]


def our_work(classifier: Classifier, inputs: Tensor, classes: list[int]) -> dict[str, Work]:
    """One call per method of this project."""
    targets = [Target(index) for index in classes]

    def work(row: str) -> Work:
        name, options = OURS[row]
        method = find_method(name)(**options)
        return lambda: attribute(classifier, inputs, method, targets, chunk=len(inputs))

    return {name: work(name) for name in OURS}


def zennit_work(module: nn.Module, composite: Composite, inputs: Tensor, classes: list[int]) -> Work:
    """One attribution by zennit, canonizing included, as it does for every batch."""

    def seed(output: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(classes), output.shape[1]) * output

    def work() -> None:
        with Gradient(model=module, composite=composite) as attributor:
            attributor(inputs.clone(), seed)

    return work


def peer_work(
    classifier: Classifier, module: nn.Module, layer: nn.Module, inputs: Tensor, classes: list[int]
) -> dict[str, dict[str, Work]]:
    """For each method, one call per peer: `{method: {peer: call}}`, on the module as its library makes it."""
    low, high = (classifier.colour(name).expand_as(inputs) for name in ("black", "white"))
    plus = EpsilonPlusFlat(canonizers=[ResNetCanonizer()])
    box = EpsilonGammaBox(low=low, high=high, canonizers=[ResNetCanonizer()])
    target = torch.tensor(classes)
    points = inputs.contiguous().requires_grad_()
    cam = GradCAM(module, [layer])
    integrated = IntegratedGradients(module)
    return {
        "saliency": {"captum": lambda: Saliency(module).attribute(points, target)},
        "gradcam": {
            "captum": lambda: LayerGradCam(module, layer).attribute(points, target),
            "pytorch-grad-cam": lambda: cam(points, [ClassifierOutputTarget(index) for index in classes]),
        },
        "ig": {
            "captum": lambda: integrated.attribute(
                points, target=target, n_steps=STEPS, internal_batch_size=len(inputs)
            )
        },
        "epsilon-plus-flat": {"zennit": zennit_work(module, plus, inputs, classes)},
        "epsilon-gamma-box": {"zennit": zennit_work(module, box, inputs, classes)},
        "deeplift": {NO_PEER: bare_forward(module, inputs)},
        "guided-backprop": {"captum": lambda: GuidedBackprop(module).attribute(points, target)},
        "deconvnet": {"captum": lambda: Deconvolution(module).attribute(points, target)},
    }


def cpu_seconds(work: Work) -> float:
    """CPU seconds of this process that one call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def bare_forward(module: nn.Module, inputs: Tensor) -> Work:
    """The unit: one eager NCHW forward pass without a graph."""
    inputs = inputs.contiguous()

    def work() -> None:
        with torch.no_grad():
            module(inputs)

    return work


def measure(name: str, batch_size: int, rounds: int, only: list[str]) -> list[dict[str, object]]:
    """One row per method and peer: cost of both in forward-equivalents, and this project's share of the peer's CPU."""
    classifier = load_classifier(name, pretrained=False, device="cpu")
    module = zoo.build(name, pretrained=False, classes=None, size=None).module.eval()
    layer = module.get_submodule(classifier.feature_layer().name)
    torch.manual_seed(0)
    inputs = torch.randn(batch_size, *classifier.example().shape[1:])
    classes = list(range(batch_size))
    unit, ours = bare_forward(module, inputs), our_work(classifier, inputs, classes)
    peers = {
        name: calls for name, calls in peer_work(classifier, module, layer, inputs, classes).items() if name in only
    }
    rows = []
    for method, calls in peers.items():
        for peer, call in calls.items():
            for work in (unit, ours[method], call):
                work()
            times = [[cpu_seconds(work) for work in (unit, ours[method], call)] for _ in range(rounds)]
            rows.append(
                {
                    "method": method,
                    "peer": peer,
                    "cost": round(statistics.median(mine / one for one, mine, _ in times), 2),
                    "costs": [round(mine / one, 2) for one, mine, _ in times],
                }
            )
            if peer != NO_PEER:
                rows[-1] |= {
                    "peer_cost": round(statistics.median(theirs / one for one, _, theirs in times), 2),
                    "share": round(statistics.median(mine / theirs for _, mine, theirs in times), 3),
                    "shares": [round(mine / theirs, 3) for _, mine, theirs in times],
                }
            theirs, share = (rows[-1].get(name, "-") for name in ("peer_cost", "share"))
            print(f"{method:18} {peer:18} {rows[-1]['cost']:8} {theirs:>8} {share:>8}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision/resnet50")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=OURS, default=list(OURS), help="some rows; all if not given")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{'method':18} {'peer':18} {'here':>8} {'peer':>8} {'share':>8}", flush=True)
    rows = measure(asked.model, asked.batch_size, asked.rounds, asked.only)
    if asked.json:
        machine = {"processor": platform.processor() or platform.machine(), "threads": asked.threads}
        versions = {name: version(name) for name in ("torch", "torchvision", "captum", "grad-cam", "zennit")}
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"model": asked.model, "batch_size": asked.batch_size, "machine": machine, "versions": versions}
        asked.json.write_text(json.dumps({**report, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
