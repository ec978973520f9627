"""What methods do on timm's 98 families: one row per family, at full size.

    python benchmarks/families.py --json benchmarks/results/families.json

Each family is one small model with random weights, no parameter left at its constant start and batch norms calibrated,
and one random picture, explained for the class with the largest score in float32. A family whose row is in the file is
not run again. `account_gap` is how far pixels and what kept relevance from them are from adding up to the score (lrp),
`conservation` the pixels' share; `completeness_gap` the same of deeplift against the change from a picture of zeros;
`likeness` the cosine of the map of guided-backprop with the gradient's. Seconds are CPU seconds.

A second table: eight nets without biases, batch-norm means, class tokens and position embeddings, where all of the
score must reach the pixels; beside zennit with its composite of the same name and the canonizers it has.

A third table: where class activation maps look without a layer named. Kernels have most of their weight in the middle,
and a patch of noise is pasted into each quadrant of a grey picture; a method is right if in each of the four that
quadrant is where the maps of ten classes move most, and what is written down is the smallest share of the movement that
lies in the right quadrant (0.25 is none). `layer` is the one found, with `grid` positions read as `layout` after
`prefix` tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# In place of this folder, in which `families` would be this very file.
sys.path.remove(sys.path[0])
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from families.families import CONSERVING, FAMILIES, Family
from families.measuring import completeness_gap, evidence_of, explained, likeness_to_gradient
from families.quadrants import quadrant_shares
from torch import Tensor
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer

from xai_cli.methods.contract import Evidence

Row = dict[str, Any]
FAMILY_COLUMNS = (
    "model", "parameters", "size", "operators", "refused", "composite", "forward_gap", "account_gap", "conservation",
    "completeness_gap", "gate", "likeness", "forward_seconds", "lrp_seconds", "deeplift_seconds", "guided_seconds",
)  # fmt: skip
CONSERVING_COLUMNS = ("model", "size", "composite", "conservation", "zennit")
CAMS = ("gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "eigencam")
CAM_COLUMNS = ("model", "size", "layer", "layout", "grid", "prefix", *CAMS, "layer_seconds")


def family_row(family: Family) -> Row:
    """What every method measures on a family's model at full size."""
    classifier = family.classifier(full=True)
    evidence = evidence_of(classifier, 1)
    assert evidence.logits is not None
    plan = classifier.plan
    row: Row = {
        "family": family.name, "model": family.model,
        "parameters": sum(parameter.numel() for parameter in classifier.module.parameters()),
        "size": classifier.preprocessing.size[0], "reduced": family.full_size is not None,
        "operators": sum(step.calls for step in plan.steps), "refused": len(plan.refused),
        "forward_seconds": timed(lambda: classifier.logits(evidence.inputs))[1],
    }  # fmt: skip
    return {**row, **lrp_part(evidence), **deeplift_part(evidence), **guided_part(evidence)}


def lrp_part(evidence: Evidence) -> Row:
    attribution, seconds = timed(lambda: explained(evidence, "lrp"))
    measured = {name: float(values[0]) for name, values in attribution.checks.items()}
    return {"composite": attribution.rule, **measured, "lrp_seconds": seconds}


def deeplift_part(evidence: Evidence) -> Row:
    attribution, seconds = timed(lambda: explained(evidence, "deeplift"))
    gap = float(completeness_gap(evidence, attribution.relevance)[0])
    return {"completeness_gap": gap, "deeplift_seconds": seconds}


def guided_part(evidence: Evidence) -> Row:
    try:
        attribution, seconds = timed(lambda: explained(evidence, "guided-backprop"))
    except ValueError as refusal:
        return {"gate": "refused", "refusal": str(refusal), "likeness": None, "guided_seconds": None}
    likeness = float(likeness_to_gradient(evidence, attribution.relevance)[0])
    return {"gate": attribution.rule, "likeness": likeness, "guided_seconds": seconds}


def conserving_row(family: Family) -> Row:
    """How much of the score reaches the pixels of a net without constants, here and with zennit."""
    classifier = family.classifier(full=True, constants=False)
    evidence = evidence_of(classifier, 1)
    attribution = explained(evidence, "lrp")
    return {
        "model": family.model, "size": classifier.preprocessing.size[0], "composite": attribution.rule,
        "conservation": float(attribution.checks["conservation"][0]), "zennit": zennit_conservation(family, evidence),
    }  # fmt: skip


def zennit_conservation(family: Family, evidence: Evidence) -> float | str:
    """The sum of zennit's relevance / score on the same net, or what it fails with."""
    module = family.module(full=True, constants=False)
    inputs, target = evidence.inputs.clone().requires_grad_(), evidence.targets
    try:
        with Gradient(module, EpsilonPlusFlat(canonizers=[ResNetCanonizer()])) as attributor:
            scores, relevance = attributor(inputs, lambda out: out * torch.nn.functional.one_hot(target, out.shape[1]))
    except Exception as error:  # noqa: BLE001  # whatever it is, is the finding
        return type(error).__name__
    found = float(relevance.sum() / scores[0, target[0]].detach())
    return found if math.isfinite(found) else str(found)


def cam_row(family: Family) -> Row:
    """The layer found in a family's model, and for each class activation map whether it lies right."""
    classifier = family.classifier(full=True, local=True)
    layer, seconds = timed(classifier.feature_layer)
    shares = quadrant_shares(classifier, CAMS)
    return {
        "model": family.model, "size": classifier.preprocessing.size[0], "reduced": family.full_size is not None,
        "layer": layer.name, "layout": layer.layout, "grid": f"{layer.height}x{layer.width}", "prefix": layer.prefix,
        **{name: verdict(share) for name, share in shares.items()},
        "layer_seconds": seconds,
    }  # fmt: skip


def verdict(shares: Tensor) -> Row:
    """Whether all four quadrants are right, and the smallest share that lies in a right one."""
    right = shares.argmax(dim=1).tolist() == [0, 1, 2, 3]
    return {"right": right, "share": round(float(shares.diagonal().min()), 3)}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its CPU seconds."""
    start = time.process_time()
    out = work()
    return out, round(time.process_time() - start, 3)


def line(cells: Iterable[object]) -> str:
    """A line of a Markdown table, numbers with three digits, wrong maps marked."""
    return f"| {' | '.join(map(told, cells))} |"


def told(cell: object) -> str:
    if isinstance(cell, dict):
        return f"{'' if cell['right'] else 'wrong '}{cell['share']:.2f}"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="FAMILY", help="these families, run again")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    report["versions"] = {name: version(name) for name in ("torch", "timm", "zennit")}
    for table, families, measure, names in (
        ("families", FAMILIES, family_row, FAMILY_COLUMNS),
        ("conserving", CONSERVING, conserving_row, CONSERVING_COLUMNS),
        ("class activation maps", FAMILIES, cam_row, CAM_COLUMNS),
    ):
        rows = report.setdefault(table, {})
        print(line(names), line("---" for _ in names), sep="\n")
        for family in families:
            if family.name in asked.only if asked.only else family.name not in rows:
                rows[family.name] = measure(family)
                asked.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
            if family.name in rows:
                print(line(rows[family.name][name] for name in names), flush=True)
        for name in set(names) & set(CAMS):
            print(f"{name}: right on {sum(row[name]['right'] for row in rows.values())} of {len(rows)}")


if __name__ == "__main__":
    main()
