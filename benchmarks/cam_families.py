"""Where class activation maps look on timm's 98 families, without a layer named: one row per family, at full size.

    python benchmarks/cam_families.py --json benchmarks/results/cam_families.json

Each family is one small model with random weights, kernels with most of their weight in the middle. A patch of noise is
pasted into each quadrant of a grey picture; a method is right if in each of the four that quadrant is where the maps of
ten classes move most, and what is written down is the smallest share of the movement that lies in the right quadrant
(0.25 is none). `layer` is the one found, with `grid` positions read as `layout` after `prefix` tokens. A family whose
row is in the file is not run again. Seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
# Not the benchmark of that name beside this file.
sys.path.remove(str(Path(__file__).parent))

import torch
from families.families import FAMILIES, Family
from families.quadrants import quadrant_shares

METHODS = ("gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "eigencam")
COLUMNS = ("model", "size", "layer", "layout", "grid", "prefix", *METHODS, "layer_seconds")


def row(family: Family) -> dict[str, Any]:
    """The layer found in a family's model at full size, and for each method whether its maps lie right."""
    classifier = family.classifier(full=True, local=True)
    start = time.process_time()
    layer = classifier.feature_layer()
    seconds = time.process_time() - start
    shares = quadrant_shares(classifier, METHODS)
    return {
        "model": family.model, "size": classifier.preprocessing.size[0], "reduced": family.full_size is not None,
        "layer": layer.name, "layout": layer.layout, "grid": f"{layer.height}x{layer.width}", "prefix": layer.prefix,
        **{name: verdict(share) for name, share in shares.items()},
        "layer_seconds": round(seconds, 3),
    }  # fmt: skip


def verdict(shares: torch.Tensor) -> dict[str, Any]:
    """Whether all four quadrants are right, and the smallest share that lies in a right one."""
    right = shares.argmax(dim=1).tolist() == [0, 1, 2, 3]
    return {"right": right, "share": round(float(shares.diagonal().min()), 3)}


def line(cells: Iterable[object]) -> str:
    """A line of a Markdown table; what is wrong is marked."""
    told = (
        f"{'' if cell['right'] else 'wrong '}{cell['share']:.2f}" if isinstance(cell, dict) else cell for cell in cells
    )
    return f"| {' | '.join(map(str, told))} |"


def main() -> None:
    """Measure the families that have no row yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="FAMILY", help="these families, run again")
    parser.add_argument("--json", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(asked.json.read_text()) if asked.json.exists() else {"families": {}}
    report["versions"] = {name: version(name) for name in ("torch", "timm")}
    rows = report["families"]
    print(line(COLUMNS), line("---" for _ in COLUMNS), sep="\n")
    for family in FAMILIES:
        if family.name in asked.only if asked.only else family.name not in rows:
            rows[family.name] = row(family)
            asked.json.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        if family.name in rows:
            print(line(rows[family.name][name] for name in COLUMNS), flush=True)
    for name in METHODS:
        right = sum(each[name]["right"] for each in rows.values())
        print(f"{name}: {right} of {len(rows)} families")


if __name__ == "__main__":
    main()
