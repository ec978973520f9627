"""Statistics that a merge estimates by itself, beside its file, where a second call finds them again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from xai_cli.merging.fisher import Progress, estimate_fisher
from xai_cli.merging.inputs import Inputs
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.pictures import Picture, data_digest, evenly, labelled
from xai_cli.merging.products import partial_of
from xai_cli.merging.regmean import estimate_grams
from xai_cli.merging.statistics import About, Tell, about_of
from xai_cli.outputs.files import alone_at


@dataclass(frozen=True)
class Estimate:
    """The statistics of one checkpoint, before they are made.

    Attributes:
        inputs: what is merged.
        checkpoint: its number, from 0.
        kind: of the statistics.
        options: how.
        folder: the pictures' own.
        pictures: those that are counted.
        out: the file.
    """

    inputs: Inputs
    checkpoint: int
    kind: Literal["fisher", "gram"]
    options: FisherOptions
    folder: Path
    pictures: Sequence[Picture]
    out: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides them beside the checkpoint and its preprocessing, as `About` has it."""
        found = {"kind": self.kind, "data_digest": data_digest(self.pictures)}
        if self.kind == "gram":
            return found
        classes = self.inputs.counts[self.checkpoint]
        estimator, probes = self.options.estimator_for(classes), self.options.ways_back(classes)
        return {**found, "estimator": estimator, "probes": probes, "seed": self.options.seed,
                "params": self.options.params or ""}  # fmt: skip

    def make(self, *, overwrite: bool, progress: Progress, tell: Tell) -> About:
        """What the file says of itself; it is made, unless it is there already.

        With `overwrite` the answer to another request is replaced; what is done for this one is kept all the same.
        """
        weights, classifier = self.inputs.weights[self.checkpoint], self.inputs.classifier(self.checkpoint)
        tell(f"{self.kind} {self.checkpoint + 1}: {weights.path} on {self.folder}")
        inputs = json.dumps(asdict(classifier.preprocessing))
        asked = About(model=classifier.name, model_digest=classifier.digest, inputs=inputs, **self.settings)
        if overwrite:
            found = _answer(self.out, asked)
            if found is not None:
                tell(f"{self.out} is there already, from the same request, and kept; remove it to have it made again")
                return found
            if _answer(partial_of(self.out), asked):
                self.out.unlink(missing_ok=True)  # overwritten, it would take along what is done
                overwrite = False
        how: dict[str, Any] = {"progress": progress, "tell": tell, "checkpoint": weights.path, "overwrite": overwrite}
        with alone_at(self.out):
            if self.kind == "gram":
                return estimate_grams(classifier, self.pictures, self.out, batch_size=self.options.batch_size, **how)
            return estimate_fisher(classifier, self.pictures, self.options, self.out, **how)


def estimates(
    inputs: Inputs,
    kind: Literal["fisher", "gram"],
    folders: Sequence[Path],
    options: FisherOptions,
    out: Sequence[Path],
) -> list[Estimate]:
    """The estimates of all checkpoints, of one folder for each or one for all. Raises as `labelled`."""
    found = []
    for number, path in enumerate(out):
        folder = folders[number if len(folders) > 1 else 0]
        required = kind == "fisher" and options.estimator == "empirical"
        pictures = evenly(labelled(folder, inputs.labels(number), required=required), options.count)
        found.append(Estimate(inputs, number, kind, options, folder, pictures, path))
    return found


def _answer(path: Path, asked: About) -> About | None:
    """What a file, whole or in part, says of itself if it answers this request."""
    try:
        with safe_open(path, "pt") as file:
            found = about_of(file.metadata() or {})
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None
    return found if found.difference(asked) is None else None
