"""What a merged file says of itself in its header: of what, how and how well; texts, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xai_cli.classifiers.checkpoints import digest_of
from xai_cli.merging.inputs import Inputs
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.pictures import Picture, data_digest
from xai_cli.merging.plan import head_layout
from xai_cli.merging.statistics import Statistics
from xai_cli.merging.weights import Weights

# What of the model's options decides which numbers are read and how a picture meets them.
_MODEL = ("ema", "num_classes", "in_chans", "input_size", "resize", "crop_mode", "interpolation", "mean", "std")
# They say where something lies or how it is shown, and not what is merged.
_ELSEWHERE = {"fisher", "data", "eval", "class_names", "recalibrate_bn", "dry_run"}
# The digests of model and pictures with the rest stand for the file's own.
_STATISTICS = (
    "kind", "model_digest", "data_digest", "inputs", "n", "estimator", "probes", "seed", "biased", "params",
    "per_example", "error", "skipped", "mean", "norm", "trace",
)  # fmt: skip

Row = dict[str, Any]
"""The accuracies of one model: its name, its coefficients if it is a merge, accuracy by task, and their mean."""


def request_of(
    inputs: Inputs, options: MergeOptions, pictures: Mapping[str, Sequence[Picture]], fisher: FisherOptions
) -> dict[str, str]:
    """All that the merge depends on but its statistics: the same request gives the same file."""
    settings = {name: value for name, value in options.as_row().items() if name not in _ELSEWHERE}
    settings |= {name: value for name, value in inputs.model.as_row().items() if name in _MODEL}
    settings["class_names"] = inputs.names and sha256(json.dumps(inputs.names).encode()).hexdigest()
    settings["seed"] = fisher.seed
    if options.recalibrate_bn is not None:  # what comes into a deep layer then depends on the batches
        settings["batch_size"] = fisher.batch_size
    files = [{"name": each.path.name, "sha256": each.sha256} for each in inputs.weights]
    return {
        **_made_by(inputs),
        "checkpoints": json.dumps(files),
        "options": json.dumps(settings),
        "head": inputs.plan.head,
        "classes": json.dumps(inputs.names and inputs.plan.classes),
        "pictures": json.dumps({name: data_digest(found) for name, found in pictures.items()}),
    }


def estimates_asked(estimates: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a request says of statistics that are yet to be made, by the settings of each."""
    return {"data": json.dumps(list(estimates))}


def statistics_asked(statistics: Sequence[Statistics]) -> dict[str, str]:
    """What a request says of the statistics."""
    sources = []
    for each in statistics:
        about = asdict(each.about)
        sources.append({"name": each.weights.path.name, **{name: about[name] for name in _STATISTICS}})
    return {"statistics": json.dumps(sources)}


def head_header(inputs: Inputs, checkpoint: int) -> dict[str, str]:
    """What the file of one checkpoint's head says of itself."""
    weights = inputs.weights[checkpoint]
    tensors = ((name, weights.tensor(name)) for name in sorted(head_layout(weights, inputs.head)))
    return {
        **_made_by(inputs),
        "checkpoint": weights.path.name,
        "checkpoint_sha256": weights.sha256,
        "digest": digest_of(tensors),  # of averaged weights it is another
        "classes": json.dumps(inputs.labels(checkpoint)),
    }


def _made_by(inputs: Inputs) -> dict[str, str]:
    return {"xai": version("xai-cli"), "model": inputs.model.model}


def digest_of_request(request: Mapping[str, str]) -> str:
    """One name for a request."""
    return sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def written_before(path: Path, request: Mapping[str, str], *, overwrite: bool) -> bool:
    """Whether `path` is already what is asked for. Raises ValueError if it is anything else and may not be replaced."""
    if overwrite or not path.exists():
        return False
    try:
        found = Weights(path).metadata
    except (ValueError, OSError):
        found = {}
    difference = next((f"other {name}" for name, value in request.items() if found.get(name) != value), None)
    if difference is not None:
        why = difference if "classes" in found else "no merge"
        raise ValueError(f"{path} exists and is not the answer to this request ({why}); give another -o, or "
                         "--overwrite")  # fmt: skip
    return True


@dataclass(frozen=True)
class Outcome:
    """What only is known of a merge at the end.

    Attributes:
        coefficients: one per model.
        floored: each model's share of floored entries, None of one whose Fisher was not needed; None: no Fisher mean.
        distances: how far each model lies from the target, by its number from 1.
        evaluation: the accuracies of inputs, plain mean and merge.
        evaluated_pictures: how many of each task were read.
        left_out: how many pictures could not be read, for statistics or accuracies.
    """

    coefficients: Sequence[float]
    floored: Sequence[float | None] | None
    distances: Mapping[str, float]
    evaluation: Sequence[Row]
    evaluated_pictures: Mapping[str, int]
    left_out: int

    def header(self) -> dict[str, str]:
        """As a merged file tells it."""
        return {name: json.dumps(value) for name, value in vars(self).items()}


def told_by(path: Path) -> Outcome:
    """What a merged file tells."""
    metadata = Weights(path).metadata
    return Outcome(**{field.name: json.loads(metadata[field.name]) for field in fields(Outcome)})
