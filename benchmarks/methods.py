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
from captum.attr import (
    Attribution,
    Deconvolution,
    GuidedBackprop,
    GuidedGradCam,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    NoiseTunnel,
    Saliency,
)
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonGammaBox, EpsilonPlusFlat
from zennit.core import Composite
from zennit.torchvision import ResNetCanonizer

from xai_cli import find_method, load_classifier
from xai_cli.classifiers import zoo
from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.plain_pass import PlainPass, plain_pass, union
from xai_cli.targets import Target

STEPS = 20
SAMPLES = 10
CHANNELS = 16
# captum's DeepLift fails on nets that use one ReLU module twice, as torchvision's ResNets do; Score-CAM and
# Ablation-CAM of pytorch-grad-cam take every channel; the others have no peer.
NO_PEER = "none that runs"
SHARED = ("saliency", "gradient-x-input", "gradcam", "gradcam++", "layercam")
# What each row is called, and the methods with their options; several share one pass, as in `xai explain`.
OURS: dict[str, dict[str, dict[str, object]]] = {
    "saliency": {"saliency": {}},
    "sensitivity": {"sensitivity": {}},
    "gradient-x-input": {"gradient-x-input": {}},
    "smoothgrad": {"smoothgrad": {"samples": SAMPLES}},
    "gradcam": {"gradcam": {}},
    "gradcam++": {"gradcam++": {}},
    "hirescam": {"hirescam": {}},
    "layercam": {"layercam": {}},
    "xgradcam": {"xgradcam": {}},
    "eigencam": {"eigencam": {}},
    "cam": {"cam": {}},
    "scorecam": {"scorecam": {"channels": CHANNELS}},
    "ablationcam": {"ablationcam": {"channels": CHANNELS}},
    "together": {name: {} for name in SHARED},
    "ig": {"ig": {"steps": STEPS, "tolerance": 0}},
    "guided-ig": {"guided-ig": {"steps": STEPS}},
    "blur-ig": {"blur-ig": {"steps": STEPS}},
    "epsilon-plus-flat": {"lrp": {"composite": "epsilon-plus-flat"}},
    "epsilon-gamma-box": {"lrp": {"composite": "epsilon-gamma-box"}},
    "deeplift": {"deeplift": {"baseline": "zero"}},
    "guided-backprop": {"guided-backprop": {}},
    "guided-gradcam": {"guided-gradcam": {}},
    "deconvnet": {"deconvnet": {}},
}

Work = Callable[[], object]


def our_work(classifier: Classifier, inputs: Tensor, classes: list[int], row: str) -> Work:
    """One call: the pass that the methods of a row share, and each of them. What they need is asked once for a run."""
    targets = [Target(index) for index in classes]
    methods = [find_method(name)(**options) for name, options in OURS[row].items()]
    needs = union(classifier, methods)

    def work() -> None:
        passed = plain_pass(classifier, inputs, needs) if needs else PlainPass(classifier, inputs, None, needs, {})
        evidence = passed.evidence(targets, chunk=len(inputs))
        for method in methods:
            method.attribute(evidence)

    return work


def zennit_work(module: nn.Module, composite: Composite, inputs: Tensor, classes: list[int]) -> Work:
    """One attribution by zennit, canonizing included, as it does for every batch."""

    def seed(output: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(classes), output.shape[1]) * output

    def work() -> None:
        with Gradient(model=module, composite=composite) as attributor:
            attributor(inputs.clone(), seed)

    return work


def cam_work(kind: type[BaseCAM], module: nn.Module, layer: nn.Module, inputs: Tensor, classes: list[int]) -> Work:
    """One map by pytorch-grad-cam, whose hooks are on the module for that call only."""

    def work() -> None:
        with kind(module, [layer]) as cam:
            cam(inputs, [ClassifierOutputTarget(index) for index in classes])

    return work


def peer_work(
    classifier: Classifier, module: nn.Module, layer: nn.Module, inputs: Tensor, classes: list[int]
) -> dict[str, dict[str, Work]]:
    """For each row, one call per peer: `{row: {peer: call}}`, on the module as its library makes it."""
    low, high = (classifier.colour(name).expand_as(inputs) for name in ("black", "white"))
    plus = EpsilonPlusFlat(canonizers=[ResNetCanonizer()])
    box = EpsilonGammaBox(low=low, high=high, canonizers=[ResNetCanonizer()])
    target = torch.tensor(classes)
    inputs = inputs.contiguous()
    points = inputs.clone().requires_grad_()

    def cam(kind: type[BaseCAM]) -> dict[str, Work]:
        return {"pytorch-grad-cam": cam_work(kind, module, layer, inputs, classes)}

    def captum(kind: type[Attribution], *arguments: object, **options: object) -> dict[str, Work]:
        return {"captum": lambda: kind(*arguments).attribute(points, target=target, **options)}

    # Its way out of the memory that 10 copies of every picture take at once; here it is also the faster one.
    samples = {"nt_type": "smoothgrad", "nt_samples": SAMPLES, "nt_samples_batch_size": 1, "abs": False}
    peers = {
        "saliency": captum(Saliency, module),
        "gradient-x-input": captum(InputXGradient, module),
        "smoothgrad": captum(NoiseTunnel, Saliency(module), **samples),
        "gradcam": captum(LayerGradCam, module, layer) | cam(GradCAM),
        "gradcam++": cam(GradCAMPlusPlus),
        "hirescam": cam(HiResCAM),
        "layercam": cam(LayerCAM),
        "xgradcam": cam(XGradCAM),
        "eigencam": cam(EigenCAM),
        "ig": captum(IntegratedGradients, module, n_steps=STEPS, internal_batch_size=len(inputs)),
        "epsilon-plus-flat": {"zennit": zennit_work(module, plus, inputs, classes)},
        "epsilon-gamma-box": {"zennit": zennit_work(module, box, inputs, classes)},
        "guided-backprop": captum(GuidedBackprop, module),
        "guided-gradcam": captum(GuidedGradCam, module, layer),
        "deconvnet": captum(Deconvolution, module),
    }
    alone = [next(iter(peers[name].values())) for name in SHARED]
    return peers | {"together": {"one after another": lambda: [work() for work in alone]}}


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
    unit, peers = bare_forward(module, inputs), peer_work(classifier, module, layer, inputs, classes)
    rows = []
    for row in only:
        ours = our_work(classifier, inputs, classes, row)
        for peer, theirs in peers.get(row, {NO_PEER: unit}).items():
            calls = (unit, ours, theirs)
            for call in calls:
                call()
            times = [[cpu_seconds(call) for call in calls] for _ in range(rounds)]
            rows.append(described(row, peer, times))
            numbers = (rows[-1].get(name, "-") for name in ("cost", "peer_cost", "share"))
            print(f"{row:18} {peer:18}", *(f"{number:>8}" for number in numbers), flush=True)
    return rows


def described(row: str, peer: str, times: list[list[float]]) -> dict[str, object]:
    """A row of the report, from the seconds of the unit, of this project and of the peer in every round."""
    costs = {
        "method": row,
        "peer": peer,
        "cost": round(statistics.median(mine / one for one, mine, _ in times), 2),
        "costs": [round(mine / one, 2) for one, mine, _ in times],
    }
    if peer == NO_PEER:
        return costs
    return costs | {
        "peer_cost": round(statistics.median(theirs / one for one, _, theirs in times), 2),
        "share": round(statistics.median(mine / theirs for _, mine, theirs in times), 3),
        "shares": [round(mine / theirs, 3) for _, mine, theirs in times],
    }


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
