"""The model's part of a run: batches of one fixed shape, one shared pass, every method on it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.outcomes import DeviceLostError, Explained, Failed, HopelessError, Loaded, Map, Outcome
from xai_cli.engine.plain_pass import PlainPass, plain_pass, union
from xai_cli.methods.contract import Attribution, Evidence, Method
from xai_cli.sentences import reason
from xai_cli.targets import Target, TargetRule

_HOPELESS = 8


class NonFinite(ArithmeticError):  # noqa: N818  # its name is what the manifest says
    """The model gave a picture scores that are no numbers."""


class Attributor:
    """Explains pictures by `methods`, `batch_size` at a time, or fewer once the device's memory was not enough.

    Methods that sample run `inner_batch` samples at a time (as many as pictures, if it is None), drawn from `seed`.
    With `proven` there were pictures that it could explain, in an earlier part of the run: then those that fail are to
    blame themselves, however many they are.

    Raises:
        ValueError: a method does not fit the model.
    """

    def __init__(
        self,
        classifier: Classifier,
        methods: Sequence[Method],
        rule: TargetRule,
        batch_size: int,
        *,
        inner_batch: int | None = None,
        seed: int = 0,
        proven: bool = False,
    ) -> None:
        self._classifier, self._methods, self._rule = classifier, methods, rule
        self._needs = union(classifier, methods)
        self._batch_size = self._rows = batch_size
        self._chunk = inner_batch or batch_size
        self._seed, self._proven = seed, proven

    def attribute(self, pictures: Iterable[Loaded | Failed]) -> Generator[Outcome, None, None]:
        """The outcome of every picture, in order.

        Raises:
            HopelessError: a method failed on eight pictures, or on all there were, and succeeded on none.
        """
        failures, successes = Counter[str](), Counter[str]()
        last = {}
        for batch in _batches(pictures, self._batch_size):
            for outcome in self.explain_all(batch):
                yield outcome if successes or self._proven else _perhaps(outcome)
                for method, failure in self._faults(outcome).items():
                    (failures if failure else successes)[method] += 1
                    last[method] = failure
                    if failures[method] == _HOPELESS and not successes[method] and not self._proven:
                        raise HopelessError(f"the first {_HOPELESS} pictures all failed, the last with {failure}")
        for method in failures:
            if not successes[method] and not self._proven:
                raise HopelessError(
                    f"no picture could be explained by {method}, the last of {failures[method]} failed with "
                    f"{last[method]}"
                )

    def explain(self, pictures: list[Loaded]) -> list[Outcome]:
        """The outcome of each picture of a batch; if the batch fails, of each alone, so that only the guilty one is
        lost; if memory was short, of smaller batches, from now on.
        """
        if len(pictures) > self._rows:
            outcomes: list[Outcome] = []
            while pictures:
                # Cut in one go, because computing the first part may make the rows fewer.
                first, pictures = pictures[: self._rows], pictures[self._rows :]
                outcomes += self.explain(first)
            return outcomes
        result = self._attempt(pictures)
        if not isinstance(result, _Fault):
            return result
        if result.out_of_memory and self._shrink(result.in_method):
            return self.explain(pictures)
        if len(pictures) > 1:
            return [outcome for picture in pictures for outcome in self.explain([picture])]
        return [Failed(pictures[0].image, "attribute", result.type, result.message, result.out_of_memory)]

    def explain_all(self, batch: list[Loaded | Failed]) -> list[Outcome]:
        """The outcome of each picture of a batch, of which some could not be read."""
        loaded = [item for item in batch if isinstance(item, Loaded)]
        outcomes = iter(self.explain(loaded) if loaded else [])
        return [next(outcomes) if isinstance(item, Loaded) else item for item in batch]

    def _faults(self, outcome: Outcome) -> dict[str, str | None]:
        """How each method fared: what failed, or None where it explained at least one target."""
        if isinstance(outcome, Failed):
            return {method.name: _told(outcome) for method in self._methods if outcome.stage == "attribute"}
        made = [each for each in outcome.maps if isinstance(each, Map)]
        faults = {str(each.method): _told(each) for each in outcome.maps if isinstance(each, Failed)}
        return {**faults, **dict.fromkeys(each.method for each in made)}

    def _attempt(self, pictures: list[Loaded]) -> list[Outcome] | _Fault:
        # What an exception's traceback keeps alive, tensors among it, is gone when this returns.
        try:
            return list(self._explained(pictures))
        except _MethodError as error:
            fault = _Fault.of(error.__cause__ or error, in_method=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # no picture must end the run, whatever a model does
            fault = _Fault.of(error, in_method=False)
        if fault.device_lost:
            raise DeviceLostError(f"the device failed and needs a new process ({fault.message}); run the command again")
        return fault

    def _shrink(self, in_method: bool) -> bool:
        """Halves what is computed at once, the samples of a method first; False if it is one already."""
        if in_method and self._chunk > 1:
            self._chunk = (self._chunk + 1) // 2
        elif self._rows > 1:
            self._rows = (self._rows + 1) // 2
        else:
            return False
        if self._classifier.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _explained(self, pictures: list[Loaded]) -> Iterator[Explained]:
        passed = self._pass(pictures)
        assert passed.logits is not None
        logits = passed.logits[: len(pictures)].detach()
        if not logits.isfinite().all():
            raise NonFinite("the model's scores hold NaN or infinity")
        probabilities = logits.softmax(dim=1).cpu().numpy()
        scores = logits.cpu().numpy()
        keys = [picture.image.key for picture in pictures]
        labels = self._classifier.labels
        targets = [self._rule.choose(row, key, labels) for row, key in zip(scores, keys, strict=True)]
        maps: list[list[Map | Failed]] = [[] for _ in pictures]
        ranks = [*zip(*targets, strict=True)]
        sizes = [picture.geometry.original for picture in pictures]
        for evidence in passed.evidences(ranks, chunk=self._chunk, keys=keys, sizes=sizes, seed=self._seed):
            ranked = zip(ranks[evidence.rank], scores, probabilities, strict=True)
            described = [self._described(*each) for each in ranked]
            for method in self._methods:
                for made, each in zip(maps, self._maps(method, evidence, pictures, described), strict=True):
                    made.append(each)
        for picture, row, made in zip(pictures, probabilities, maps, strict=True):
            best = (-row).argsort(kind="stable")[:5]
            yield Explained(picture, [[int(index), round(float(row[index]), 6)] for index in best], made)

    def _maps(
        self, method: Method, evidence: Evidence, pictures: list[Loaded], targets: list[dict[str, Any]]
    ) -> list[Map | Failed]:
        """What one method makes of a batch; of a picture alone also that the method fails on it."""
        start = time.perf_counter()
        try:
            attribution = method.attribute(evidence)
            arrays = attribution.relevance.float().cpu().numpy()
            checks = [_row_of(attribution, row) for row in range(len(pictures))]
        except (Exception, SystemExit) as error:
            fault = _Fault.of(error, in_method=True)
            may_be_less = fault.out_of_memory and self._rows * self._chunk > 1
            if len(pictures) > 1 or may_be_less or fault.device_lost:
                raise _MethodError from error
            return [_failed(pictures[0], method, targets[0], fault.type, fault.message, fault.out_of_memory)]
        seconds = (time.perf_counter() - start) / len(pictures)
        batch = {"pictures": self._rows, "samples": self._chunk}
        said = (attribution.layer, attribution.rule, attribution.notes)
        segments = attribution.segments or (None,) * len(pictures)
        return [
            Map(method.name, target, evidence.rank, array, attribution.signed, checked, *said, batch, seconds, parts)
            if np.isfinite(array).all()
            else _failed(picture, method, target, "NonFinite", f"the map of {method.name} holds NaN or infinity")
            for picture, target, array, checked, parts in zip(pictures, targets, arrays, checks, segments, strict=True)
        ]

    def _pass(self, pictures: list[Loaded]) -> PlainPass:
        """The plain pass, filled up to the full batch: the same shape gives a picture the same bytes."""
        pixels = [picture.pixels for picture in pictures]
        # By a picture that is there: one of our own making could be one that the model cannot bear.
        padding = pixels[:1] * (self._rows - len(pixels))
        return plain_pass(self._classifier, self._classifier.prepare(pixels + padding), self._needs)

    def _described(self, target: Target, logits: np.ndarray, probabilities: np.ndarray) -> dict[str, object]:
        described: dict[str, object] = {
            "index": target.index,
            "name": self._classifier.labels[target.index],
            "how": target.how,
            "probability": round(float(probabilities[target.index]), 6),
            "logit": float(logits[target.index]),
        }
        if target.against is not None:
            described["against"] = {"index": target.against, "name": self._classifier.labels[target.against]}
        return described


class _MethodError(RuntimeError):
    """A method failed, and not the pass that all methods share."""


@dataclass(frozen=True)
class _Fault:
    """What is kept of an exception."""

    type: str
    message: str
    in_method: bool
    out_of_memory: bool

    @classmethod
    def of(cls, error: BaseException, *, in_method: bool) -> _Fault:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
            sign in str(error) for sign in ("out of memory", "can't allocate memory", "ALLOC_FAILED")
        )
        return cls("OutOfMemory" if short else type(error).__name__, reason(error), in_method, short)

    @property
    def device_lost(self) -> bool:
        """After such an error, a failed assertion on the device say, whatever the process does there fails."""
        return not self.out_of_memory and "CUDA error" in self.message


def _failed(
    picture: Loaded, method: Method, target: dict[str, Any], kind: str, message: str, transient: bool = False
) -> Failed:
    return Failed(picture.image, "attribute", kind, message, transient, method=method.name, target=target)


def _perhaps(outcome: Outcome) -> Outcome:
    """What fails before anything has succeeded may be the run's fault, and is tried again when the run goes on."""
    if isinstance(outcome, Failed):
        return replace(outcome, transient=True) if outcome.stage == "attribute" else outcome
    maps = [replace(made, transient=True) if isinstance(made, Failed) else made for made in outcome.maps]
    return replace(outcome, maps=maps)


def _told(failed: Failed) -> str:
    return f"{failed.type}: {failed.message}"


def _batches(pictures: Iterable[Loaded | Failed], size: int) -> Iterator[list[Loaded | Failed]]:
    """Runs of pictures with `size` good ones each; broken ones travel along, so that the order stays."""
    batch: list[Loaded | Failed] = []
    good = 0
    for picture in pictures:
        batch.append(picture)
        good += isinstance(picture, Loaded)
        # A long run of broken pictures must not wait, and grow, until enough good ones come.
        if good == size or len(batch) == 8 * size:
            yield batch
            batch, good = [], 0
    if batch:
        yield batch


def _row_of(attribution: Attribution, row: int) -> dict[str, float]:
    return {name: float(values[row]) for name, values in attribution.checks.items()}
