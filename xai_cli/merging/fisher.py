"""The diagonal of the Fisher information of a classifier, exact per picture, into a file of its own.

F = 1/N sum_n sum_k (J_n^T v_k)^2 with the cotangents of `cotangents.py`: each picture's own gradient is squared before
pictures are summed. Squares of a batch's gradient are something else, which changes with the batch size.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.func import functional_call

from xai_cli.classifiers.classifier import Classifier
from xai_cli.images.sources import seed_of
from xai_cli.merging.cotangents import cotangents
from xai_cli.merging.options import FisherOptions
from xai_cli.merging.pictures import (
    Batch,
    NoPictures,
    Picture,
    batches,
    content_digests,
    data_digest,
    evenly,
    short_digests,
)
from xai_cli.merging.statistics import (
    About,
    Tell,
    about_of,
    metadata,
    refuse_other,
    room_for,
    settled,
    write_statistics,
)  # fmt: skip
from xai_cli.merging.weights import Weights
from xai_cli.merging.writing import write_tensors
from xai_cli.operators.one_picture import OnePicture
from xai_cli.operators.per_example import Mixed, PerExample, forgetful
from xai_cli.sentences import reason, unknown

Progress = Callable[[Iterator[Batch], int, int], Iterable[Batch]]
"""Shows batches that pass, of how many pictures, of which how many are done; it may raise between two of them."""

_SECONDS = 60.0
"""How much work is lost at most."""
_TOLERANCE = 1e-3
_BLOCK = 2**26  # entries of gradients that a GPU makes at a time


class Squares:
    """Sums of the squares of single pictures' gradients, in the type of the parameters, for `PerExample`."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self._own = torch.empty(0)

    def factors(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        """Adds the squares of `outputs^T inputs`, from `(B, T, I)` and `(B, T, O)`."""
        total = self.sums[name].view(outputs.shape[2], inputs.shape[2])
        if inputs.shape[1] == 1:  # the square of a product of two vectors is the product of their squares
            total.addmm_(outputs[:, 0].square().T, inputs[:, 0].square())
            return
        if total.device.type == "cpu":
            self._add_in_place(total, inputs, outputs)
            return
        pictures = max(1, _BLOCK // total.numel())
        for x, g in zip(inputs.split(pictures), outputs.split(pictures), strict=True):
            self.whole(name, torch.bmm(g.mT, x).view(-1, *self.sums[name].shape))

    def _add_in_place(self, total: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """Each gradient is written over the one before: new memory for each would cost a tenth of all."""
        if self._own.numel() < total.numel() or self._own.dtype != total.dtype:
            self._own = total.new_empty(total.numel())
        own = self._own[: total.numel()].view_as(total)
        for x, g in zip(inputs, outputs, strict=True):
            torch.mm(g.T, x, out=own)
            total.addcmul_(own, own)

    def whole(self, name: str, gradients: Tensor) -> None:
        """Adds the squares of gradients `(b, *shape)`."""
        if len(gradients) == 1:
            self.sums[name].addcmul_(gradients[0], gradients[0])
        else:
            self.sums[name] += gradients.square().sum(0)

    def replace(self, sums: Mapping[str, Tensor]) -> None:
        """Goes on from other sums."""
        for name, total in self.sums.items():
            total.copy_(sums[name])

    def clear(self) -> None:
        """Begins anew."""
        for total in self.sums.values():
            total.zero_()


def estimate_fisher(
    classifier: Classifier,
    pictures: Sequence[Picture],
    options: FisherOptions,
    out: Path,
    *,
    progress: Progress = lambda batches, total, done: batches,
    tell: Tell,
    checkpoint: Path | None = None,
    overwrite: bool = False,
) -> About:
    """What the file `out` says of itself, which holds the mean over the pictures of each parameter's squared gradients.

    The module is left as it is; parameters must not be folded. The first batch is compared with plain autograd, and
    where pictures cannot be kept apart all are done one at a time, which is told. What is done so far is kept in
    `<out>.partial` every minute, and when `progress` raises; a later call with the same request goes on from there, and
    with the same batch size comes to the same bytes.

    Args:
        classifier: loaded with `fold=False`; half precision becomes float32.
        pictures: of these at most `options.count` are taken; with labels for the estimator `empirical`.
        options: the estimator and its settings.
        out: a safetensors file.
        progress: is given all batches to show them.
        tell: is given sentences for the user.
        checkpoint: the file that the weights came from.
        overwrite: makes the file again, if it is there.

    Raises:
        NoPictures: none can be read.
        LookupError: no parameter has a name as asked for.
        ValueError: the model is folded or has no parameters, less than two classes or infinite scores, the estimator
            does not take so many probes, or `out` is the answer to another request.
    """
    passes = Passes.of(classifier, options)
    pictures = evenly(pictures, options.count)
    contents = content_digests(pictures)
    asked = _about(passes, pictures, contents, checkpoint)
    if asked.biased:
        tell("the empirical Fisher is biased: it takes the given labels, not what the model expects")
    found = settled(out, asked, overwrite=overwrite, tell=tell)
    if found is not None:
        return found
    run = _Run(passes, pictures, out.with_name(f"{out.name}.partial"), tell, Squares(passes.parameters), asked)
    run.begin(overwrite=overwrite)
    try:
        run.add_all(progress)
    except Mixed as mixed:
        run.begin_one_by_one(mixed)
        run.add_all(progress)
    if not run.about.n:
        raise NoPictures(f"a Fisher expects pictures, found none that can be read among {len(pictures)}")
    sums = {name: run.squares.sums[first] for name, first in passes.names.items()}
    means = ((name, total / run.about.n) for name, total in sums.items())
    about = replace(run.about, contents=short_digests(contents, run.about.skipped))
    about = write_statistics(out, {name: tuple(total.shape) for name, total in sums.items()}, means, about)
    run.partial.unlink(missing_ok=True)
    return about


@dataclass(frozen=True)
class Passes:
    """How a batch adds its squared gradients.

    Attributes:
        classifier: in float32 or better.
        options: how.
        parameters: those that are asked for, each once.
        names: all names of these parameters, which may be tied, with the one in `parameters`.
    """

    classifier: Classifier
    options: FisherOptions
    parameters: dict[str, Tensor]
    names: dict[str, str]

    @classmethod
    def of(cls, classifier: Classifier, options: FisherOptions) -> Passes:
        """The passes of a classifier. Raises as `estimate_fisher`."""
        if classifier.folded:
            raise ValueError("a Fisher expects the model's own parameters, found batch norms folded away; load it with "
                             "fold=False")  # fmt: skip
        if len(classifier.labels) < 2:
            raise ValueError(f"a Fisher expects two classes or more, found {len(classifier.labels)} in "
                             f"{classifier.name}; give a model whose scores go through a softmax")  # fmt: skip
        options.check_for(len(classifier.labels))
        if any(getattr(layer, "grad_checkpointing", False) for layer in classifier.module.modules()):
            raise ValueError(f"{classifier.name} has checkpointing switched on, which hides its parameters; switch it "
                             "off (in timm: set_grad_checkpointing(False))")  # fmt: skip
        classifier = classifier.in_dtype(torch.promote_types(classifier.dtype, torch.float32))
        chosen = _chosen(classifier.module, options.params)
        first: dict[int, str] = {}
        names = {name: first.setdefault(id(parameter), name) for name, parameter in chosen.items()}
        return cls(classifier, options, {name: chosen[name] for name in first.values()}, names)

    def together(self, batch: Batch, squares: Squares) -> Tensor:
        """Adds those of all pictures from one way forward; returns the logits.

        Raises Mixed where that cannot be, or where one of the pictures gets other scores than alone.
        """
        pictures, inputs = batch[0], batch[1].to(self.classifier.dtype)
        watched = PerExample(self.parameters, len(inputs), squares)
        logits = self.classifier.checked(watched.logits(self.classifier.module, inputs), len(inputs))
        for vectors in self._cotangents(logits, pictures):
            watched.back(logits, vectors.to(logits))
        n = seed_of(pictures[0].key) % len(pictures)
        if len(pictures) > 1 and not _same(logits[n : n + 1], self._alone(inputs[n : n + 1])):
            raise Mixed(f"{pictures[n].key} gets other scores beside other pictures than alone")
        return logits.detach()

    def check_steady(self, batch: Batch) -> None:
        """Raises ValueError if a picture does not get the same scores twice."""
        first = batch[1][:1].to(self.classifier.dtype)
        if not _same(self._alone(first), self._alone(first)):
            raise ValueError(f"{self.classifier.name} gives other scores for {batch[0][0].key} each time; switch off "
                             "what is random in it, such as dropout")  # fmt: skip

    def _alone(self, inputs: Tensor) -> Tensor:
        with torch.no_grad(), forgetful(self.classifier.module):
            return self.classifier.checked(self.classifier.module(inputs), 1)

    def one_by_one(self, batch: Batch, squares: Squares, logits: Tensor | None = None) -> None:
        """Adds the same by plain autograd, one picture at a time; `logits` say where draws are made, if not its own."""
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in self.parameters.items()}
        inputs = batch[1].to(self.classifier.dtype)
        for n, picture in enumerate(batch[0]):
            with torch.enable_grad(), forgetful(self.classifier.module), OnePicture():
                output = functional_call(self.classifier.module, leaves, (inputs[n : n + 1],))
                own = self.classifier.checked(output, 1)
            for vector in self._cotangents(own if logits is None else logits[n : n + 1], [picture]):
                gradients = torch.autograd.grad(
                    own, list(leaves.values()), vector.to(own), retain_graph=True, materialize_grads=True
                )
                for name, gradient in zip(leaves, gradients, strict=True):
                    squares.whole(name, gradient[None])

    def _cotangents(self, logits: Tensor, pictures: Sequence[Picture]) -> Iterator[Tensor]:
        finite = logits.isfinite().all(1).tolist()
        if not all(finite):
            key = pictures[finite.index(False)].key
            raise ValueError(
                f"{self.classifier.name} gives scores that are NaN or infinite for {key}; check its weights"
            )
        estimator = self.options.estimator_for(logits.shape[1])
        keys, labels = [each.key for each in pictures], [each.label for each in pictures if each.label is not None]
        return cotangents(logits, estimator, self.options.probes, keys, self.options.seed, labels)


def _same(logits: Tensor, others: Tensor) -> bool:
    # What is NaN or infinite is told where it is used.
    tolerance = _TOLERANCE * float(others.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(logits, others, rtol=0, atol=tolerance, equal_nan=True)


def _chosen(module: nn.Module, pattern: str | None) -> dict[str, Tensor]:
    every: dict[str, Tensor] = {
        name: parameter
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter.is_floating_point()
    }
    if not every:
        raise ValueError(f"a Fisher expects a model with parameters, found none in {type(module).__name__}; give a "
                         "model and not a function")  # fmt: skip
    chosen = {name: each for name, each in every.items() if re.search(pattern or "", name)}
    if not chosen:
        raise LookupError(f"--params matches nothing: {unknown('parameter', str(pattern), every, always=True)}")
    return chosen


def _about(passes: Passes, pictures: Sequence[Picture], contents: Mapping[str, str], checkpoint: Path | None) -> About:
    classifier = passes.classifier
    settings = passes.options.settings_for(len(classifier.labels))
    unlabelled = [picture.key for picture in pictures if picture.label is None]
    if settings["estimator"] == "empirical" and unlabelled:
        raise ValueError(f"--estimator empirical expects pictures in folders named after classes, found "
                         f"{unlabelled[0]!r} in none; take importance, which needs no labels")  # fmt: skip
    return About(
        kind="fisher",
        model=classifier.name,
        model_digest=classifier.digest,
        data_digest=data_digest(pictures, contents),
        inputs=json.dumps(asdict(classifier.preprocessing)),
        checkpoint_sha256="" if checkpoint is None else Weights(checkpoint).sha256,
        biased=settings["estimator"] == "empirical",
        **settings,
    )


@dataclass
class _Run:
    """The pictures of one estimate, as far as they are added.

    Attributes:
        passes: how a batch adds what it has.
        pictures: all of them.
        partial: the file that keeps what is done.
        tell: is given sentences for the user.
        squares: the sums so far.
        about: what was asked for, and what is known so far.
    """

    passes: Passes
    pictures: Sequence[Picture]
    partial: Path
    tell: Tell
    squares: Squares
    about: About

    def begin(self, *, overwrite: bool) -> None:
        """Takes up what an earlier call has done for the same request; forgets it with `overwrite`."""
        if overwrite:
            self.partial.unlink(missing_ok=True)
        if not self.partial.exists():
            return
        try:
            with safe_open(self.partial, "pt") as file:
                found = about_of(file.metadata() or {})
                refuse_other(self.partial, found, self.about)
                self.squares.replace({name: file.get_tensor(name) for name in self.squares.sums})
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{self.partial} is no beginning of a Fisher; remove it, or give --overwrite") from error
        self.about = replace(
            self.about, n=found.n, skipped=found.skipped, per_example=found.per_example, error=found.error
        )
        self.tell(f"going on after {found.n} pictures of {self.partial}")

    def begin_one_by_one(self, why: Exception) -> None:
        """Begins again from the first picture, one at a time."""
        self._tell_of_singles(f"{reason(why)}; all are done again")
        self.partial.unlink(missing_ok=True)
        self.squares.clear()
        self.about = replace(self.about, n=0, skipped=(), per_example="one by one")

    def add_all(self, progress: Progress) -> None:
        """Adds all pictures that are not yet added; what is done is kept every minute, and where it is broken off."""
        skipped = [*self.about.skipped]

        def broken(picture: Picture, why: str) -> None:
            skipped.append(picture.key)
            self.tell(f"{picture.key} is left out: {why}")

        done = self.about.n + len(skipped)
        saved, whole = time.monotonic(), False
        size = self.passes.options.batch_size
        with closing(batches(self.passes.classifier, self.pictures[done:], size, broken)) as source:
            try:
                for batch in progress(source, len(self.pictures), done):
                    whole = False  # while a batch is half in the sums they are of no use to anybody
                    self._add(batch)
                    self.about = replace(self.about, n=self.about.n + len(batch[0]), skipped=tuple(skipped))
                    whole = True
                    if time.monotonic() - saved >= _SECONDS:
                        self._save()
                        saved = time.monotonic()
            except BaseException:
                if whole:
                    self._save()
                raise
        self.about = replace(self.about, skipped=tuple(skipped))

    def _add(self, batch: Batch) -> None:
        """Adds a batch, the very first one in both ways."""
        if self.about.per_example == "one by one":
            self.passes.one_by_one(batch, self.squares)
        elif self.about.n:
            self.passes.together(batch, self.squares)
        else:
            self._add_first(batch)

    def _add_first(self, batch: Batch) -> None:
        self.passes.check_steady(batch)
        plain = Squares(self.passes.parameters)
        try:
            logits = self.passes.together(batch, self.squares)
            self.passes.one_by_one(batch, plain, logits)
            error = _largest_error(self.squares.sums, plain.sums)
            fault = None if error <= _TOLERANCE else f"its first batch is {error:.1e} off plain autograd"
            self.about = replace(self.about, error=error)
        except Exception as failure:  # noqa: BLE001  # whatever a model does where it is watched
            fault = reason(failure)
        if fault is None:
            self.tell(f"first batch: {self.about.error:.1e} is the largest error of a parameter against plain autograd")
            return
        self._tell_of_singles(fault)
        # Draws were made by the scores of the batch, which are not those of each picture alone.
        self.squares.clear()
        self.passes.one_by_one(batch, self.squares)
        self.about = replace(self.about, per_example="one by one")

    def _tell_of_singles(self, why: str) -> None:
        name = self.passes.classifier.name
        self.tell(f"{name} does not keep the pictures of a batch apart, so each is done alone: {why}")

    def _save(self) -> None:
        layout = {name: (total.dtype, tuple(total.shape)) for name, total in self.squares.sums.items()}
        header = metadata(self.about)
        write_tensors(self.partial, layout, self.squares.sums.items(), lambda: header, room=room_for(header))


def _largest_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest relative error of one tensor, NaN if there is one.

    Some gradients are zero but for rounding, such as that of the bias of keys: they are held against the others.
    """
    norms = {name: float(each.norm()) for name, each in expected.items()}
    least = 1e-8 * max(norms.values()) or 1.0
    errors = [float((found[name] - each).norm()) / max(norms[name], least) for name, each in expected.items()]
    return max(errors, key=lambda error: float("inf") if error != error else error)
