"""The file of what was measured of a model, Fisher information or Gram matrices: tensors, and what they were made of.

It is safetensors with the names of the model's parameters, float32; its header tells the rest, one string per field of
`About`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from xai_cli.merging.weights import Weights
from xai_cli.merging.writing import write_tensors

Tell = Callable[[str], None]


@dataclass(frozen=True)
class About:
    """What a file of statistics says of itself.

    Attributes:
        kind: what its tensors are.
        model: the name of the model, as the user gave it.
        model_digest: of the weights, as `Classifier.digest` has it.
        data_digest: of the pictures; of combined files that of each, separated by commas.
        inputs: how pictures became inputs, as JSON.
        n: the number of pictures that were counted.
        contents: short digests of what they hold, sorted, separated by commas.
        checkpoint_sha256: of the file that the weights came from, if they came from one.
        estimator: of a Fisher; of combined files all, separated by commas.
        probes: the ways back for each picture.
        biased: whether the estimate is off even on average.
        params: the regular expression that chose parameters, if one did.
        per_example: whether the pictures of a batch went through the model together.
        error: the largest relative error of one tensor against plain autograd, in the first batch.
        skipped: pictures that could not be read.
        mean, norm, trace: over all entries of all tensors: their mean, the root of the sum of their squares, their sum.
    """

    kind: Literal["fisher", "gram"]
    model: str
    model_digest: str
    data_digest: str
    inputs: str
    n: int = 0
    contents: str = ""
    checkpoint_sha256: str = ""
    estimator: str = ""
    probes: int = 0
    seed: int = 0
    biased: bool = False
    params: str = ""
    per_example: Literal["batched", "one by one"] = "batched"
    error: float = 0.0
    skipped: tuple[str, ...] = ()
    mean: float = 0.0
    norm: float = 0.0
    trace: float = 0.0

    def difference(self, asked: About) -> str | None:
        """The first thing that was asked for otherwise than here, if there is one, in words."""
        for name, word in _REQUEST.items():
            found, now = getattr(self, name), getattr(asked, name)
            if found != now:
                return (
                    f"other {word}"
                    if name in ("model_digest", "data_digest", "inputs")
                    else f"{word} {found}, now {now}"
                )
        return None


_REQUEST = {
    "kind": "kind", "model_digest": "weights", "data_digest": "pictures", "inputs": "preprocessing",
    "estimator": "estimator", "probes": "probes", "seed": "seed", "params": "params",
}  # fmt: skip


def metadata(about: About) -> dict[str, str]:
    """What a file's header says: texts as they are, all else as JSON."""
    values = {field.name: getattr(about, field.name) for field in fields(about)}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {"xai": version("xai-cli"), **texts}


def about_of(header: Mapping[str, str]) -> About:
    """The reverse of `metadata`. Raises KeyError or ValueError if something is missing or none of ours."""
    values: dict[str, Any] = {}
    for field in fields(About):
        is_text = str(field.type).startswith(("str", "Literal"))
        values[field.name] = header[field.name] if is_text else json.loads(header[field.name])
    if values["kind"] not in ("fisher", "gram"):
        raise ValueError(values["kind"])
    return About(**{**values, "skipped": tuple(values["skipped"])})


@dataclass(frozen=True)
class Statistics:
    """An open file of statistics."""

    weights: Weights
    about: About


def read_statistics(path: Path) -> Statistics:
    """The statistics in `path`. Raises FileNotFoundError, or ValueError if the file holds none."""
    if not path.is_file():
        found = "no file" if path.exists() else "nothing"
        raise FileNotFoundError(f"expected a file of statistics, found {found} at {path}; make it with 'xai fisher'")
    weights = Weights(path)
    try:
        return Statistics(weights, about_of(weights.metadata))
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} expected statistics as 'xai fisher' writes them, found no such header; make them again"
        ) from error


def write_statistics(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[tuple[str, Tensor]], about: About
) -> About:
    """Writes tensors, one at a time, as float32 with what is known `about` them; returns it with their sums."""
    sums = torch.zeros(2, dtype=torch.float64)

    def counted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            tensor = tensor.float().cpu()
            sums.add_(torch.stack([tensor.sum(dtype=torch.float64), tensor.norm(dtype=torch.float64).square()]))
            yield name, tensor

    def finished() -> About:
        trace, squares = sums.tolist()
        entries = sum(torch.Size(shape).numel() for shape in shapes.values())
        return replace(about, mean=trace / max(entries, 1), norm=squares**0.5, trace=trace)

    layout = {name: (torch.float32, shape) for name, shape in shapes.items()}
    write_tensors(path, layout, counted(), lambda: metadata(finished()), room=room_for(metadata(about)))
    return finished()


def room_for(header: Mapping[str, str]) -> int:
    """Bytes for a header like this one, whatever numbers stand in it at the end."""
    return len(json.dumps(header)) + 256


def settled(out: Path, about: About, *, overwrite: bool, tell: Tell) -> About | None:
    """What is known of the file `out` if it already answers the same request, which is told.

    Raises ValueError if another file stands there and may not be overwritten.
    """
    if overwrite or not out.exists():
        return None
    try:
        found = read_statistics(out).about
    except (ValueError, OSError) as error:
        raise ValueError(f"{out} exists and holds something else; give another -o, or --overwrite") from error
    refuse_other(out, found, about)
    tell(f"{out} is there already, from the same request, and left as it is; --overwrite makes it again")
    return found


def refuse_other(path: Path, found: About, asked: About) -> None:
    """Raises ValueError if what was found in a file was asked for differently."""
    difference = found.difference(asked)
    if difference is not None:
        raise ValueError(f"{path} answers another request ({difference}); give another -o, or --overwrite")


def combine(parts: Sequence[Statistics], out: Path, *, overwrite: bool, tell: Tell) -> About:
    """Writes the statistics of one model over the data of all parts, each counted by its number of pictures.

    Raises ValueError for fewer than two parts, for different models, kinds or parameters, and where two parts count the
    same picture.
    """
    _check_parts(parts)
    abouts = [part.about for part in parts]
    total = sum(about.n for about in abouts)
    about = replace(
        abouts[0],
        data_digest=_joined(each.data_digest for each in abouts),
        contents=_joined(each.contents for each in abouts),
        n=total,
        estimator=",".join(sorted({name for each in abouts for name in each.estimator.split(",")})),
        probes=max(each.probes for each in abouts),
        biased=any(each.biased for each in abouts),
        per_example="batched" if all(each.per_example == "batched" for each in abouts) else "one by one",
        error=max(each.error for each in abouts),
        skipped=tuple(key for each in abouts for key in each.skipped),
    )
    found = settled(out, about, overwrite=overwrite, tell=tell)
    if found is not None:
        return found
    first = parts[0].weights
    tensors = ((name, sum((part.about.n / total) * part.weights.tensor(name).double() for part in parts))
               for name in first.names)  # fmt: skip
    return write_statistics(out, {name: first.shape(name) for name in first.names}, tensors, about)  # type: ignore[arg-type]  # of two or more, a sum is no number


def _joined(lists: Iterable[str]) -> str:
    """One list of what lists separated by commas hold."""
    return ",".join(sorted(chain.from_iterable(each.split(",") for each in lists if each)))


def _check_parts(parts: Sequence[Statistics]) -> None:
    if len(parts) < 2:
        raise ValueError(f"two files or more are combined, found {len(parts)}; give the others too")
    first = parts[0]
    for part in parts[1:]:
        for name in ("kind", "model_digest", "inputs"):
            if getattr(part.about, name) != getattr(first.about, name):
                raise ValueError(
                    f"{part.weights.path} and {first.weights.path} differ in their {_REQUEST[name]}; combine "
                    "statistics of one model"
                )
        kept = {name: part.weights.shape(name) for name in part.weights.names}
        if kept != {name: first.weights.shape(name) for name in first.weights.names}:
            raise ValueError(f"{part.weights.path} and {first.weights.path} hold different parameters; give both "
                             "the same --params")  # fmt: skip
    for one, other in combinations(parts, 2):
        _check_apart(one, other)


def _check_apart(one: Statistics, other: Statistics) -> None:
    paths = f"{one.weights.path} and {other.weights.path}"
    if {*one.about.data_digest.split(",")} & {*other.about.data_digest.split(",")}:
        raise ValueError(f"{paths} count the same pictures; leave one out")
    both = {*one.about.contents.split(",")} & {*other.about.contents.split(",")} - {""}
    if both:
        pictures = f"{len(both)} picture{'s' * (len(both) != 1)}"
        raise ValueError(f"{paths} both count {pictures} of the same content; leave one out, or make one on other "
                         "pictures")  # fmt: skip
