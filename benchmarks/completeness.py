"""How well integrated gradients add up, and what that costs, beside as many uniform steps as others take.

    python benchmarks/completeness.py --model builtin/scenes-cnn --pictures sample_images photos \
        --json benchmarks/results/completeness.json

One row per folder of pictures and way to place the steps: `ig` as it is by default, which gives pictures more gradients
until they add up, and fixed midpoints; captum takes 50 steps unless told otherwise. Of each: gradients per picture, the
largest completeness gap and the share of the pictures within 1%, and the cosine of the maps with those of many more
midpoints (`--reference`). Every picture is explained for the class that the model predicts. Rows of other models and
pictures stay in the file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from xai_cli import attribute, load_classifier
from xai_cli.classifiers.classifier import Classifier
from xai_cli.images.sources import find_images
from xai_cli.methods.contract import Attribution
from xai_cli.methods.ig import IntegratedGradients

FIXED = (16, 35, 50)
BATCH = 8


def midpoints(steps: int) -> IntegratedGradients:
    return IntegratedGradients(steps=steps, tolerance=0, quadrature="midpoint")


# What is compared, by name.
WAYS = {"ig": IntegratedGradients()} | {f"{steps} midpoints": midpoints(steps) for steps in FIXED}


def explained(classifier: Classifier, batches: list[Tensor], method: IntegratedGradients) -> Iterator[Attribution]:
    for inputs in batches:
        yield attribute(classifier, inputs, method, chunk=BATCH)


def measure(classifier: Classifier, folder: Path, reference: int) -> Iterator[dict[str, Any]]:
    """One row per way to place the steps, for all pictures of a folder."""
    paths = [image.path for image in find_images([str(folder)])]
    batches = [classifier.read(paths[start : start + BATCH]) for start in range(0, len(paths), BATCH)]
    exact = [each.relevance for each in explained(classifier, batches, midpoints(reference))]
    for name, method in WAYS.items():
        made = list(explained(classifier, batches, method))
        gaps, gradients = (
            torch.cat([each.checks[check] for each in made]).tolist()
            for check in ("completeness_gap", "gradient_evaluations")
        )
        cosines = cosine_similarity(
            torch.cat([each.relevance for each in made]).flatten(1), torch.cat(exact).flatten(1)
        ).tolist()
        yield {
            "model": classifier.name,
            "pictures": folder.name,
            "number": len(paths),
            "way": name,
            "gradients": round(mean(gradients), 1),
            "most_gradients": int(max(gradients)),
            "largest_gap": round(max(gaps), 4),
            "within_1_percent": round(mean(gap <= 0.01 for gap in gaps), 3),
            "cosine": round(mean(cosines), 5),
            "least_cosine": round(min(cosines), 5),
            "reference": reference,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin/scenes-cnn")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--pictures", type=Path, nargs="+", default=[Path("sample_images")], help="folders")
    parser.add_argument("--reference", type=int, default=2000, help="steps of the maps that cosines are taken with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    classifier = load_classifier(asked.model, checkpoint=asked.checkpoint, device="cpu")
    rows = []
    for folder in asked.pictures:
        for row in measure(classifier, folder, asked.reference):
            rows.append(row)
            print(*(f"{name} {value}" for name, value in row.items()), sep="  ", flush=True)
    if asked.json:
        kept = json.loads(asked.json.read_text())["rows"] if asked.json.exists() else []
        measured = {(row["model"], row["pictures"]) for row in rows}
        rows = [row for row in kept if (row["model"], row["pictures"]) not in measured] + rows
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps({"versions": {"torch": version("torch")}, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
