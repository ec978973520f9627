"""The model's part of a run: batches of one fixed shape, one shared pass, every method on it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.outcomes import Explained, Failed, Loaded, Map, Outcome
from xai_cli.engine.plain_pass import PlainPass, plain_pass
from xai_cli.methods.contract import Attribution, Method, Needs
from xai_cli.sentences import reason
from xai_cli.targets import Target, TargetRule

_HOPELESS = 8


class HopelessError(RuntimeError):
    """Every picture so far failed in the model or in a method: the run is wrong, not the pictures."""


class NonFinite(ArithmeticError):  # noqa: N818  # its name is what the manifest says
    """The model gave a picture scores that are no numbers."""


@dataclass(frozen=True)
class Attributor:
    """Explains pictures by `methods`, whose common needs of the plain pass are `needs`."""

    classifier: Classifier
    methods: Sequence[Method]
    needs: Needs
    rule: TargetRule
    batch_size: int

    def attribute(self, pictures: Iterable[Loaded | Failed]) -> Iterator[Outcome]:
        """The outcome of every picture, in order. Raises HopelessError after eight failures and no success."""
        explained = failures = 0
        for batch in _batches(pictures, self.batch_size):
            for outcome in self._batch(batch):
                if isinstance(outcome, Explained):
                    outcome = Explained(explained, outcome.picture, outcome.top, outcome.maps)
                    explained += 1
                elif outcome.stage == "attribute":
                    failures += 1
                    last = f"{outcome.type}: {outcome.message}"
                yield outcome
                if failures == _HOPELESS and not explained:
                    raise HopelessError(f"the first {failures} pictures all failed, the last with {last}")

        if failures and not explained:
            raise HopelessError(f"no picture could be explained, the last of {failures} failed with {last}")

    def _batch(self, batch: list[Loaded | Failed]) -> list[Outcome]:
        loaded = [item for item in batch if isinstance(item, Loaded)]
        outcomes = iter(self._guarded(loaded))
        return [next(outcomes) if isinstance(item, Loaded) else item for item in batch]

    def _guarded(self, pictures: list[Loaded]) -> list[Outcome]:
        """The maps of a batch; if it fails, of each picture alone, so that only the guilty one is lost."""
        if not pictures:
            return []
        try:
            return list(self._explained(pictures))
        except Exception as error:  # noqa: BLE001  # a picture must not end the run, whatever a model does with it
            failure = error
        if len(pictures) > 1:
            return [outcome for picture in pictures for outcome in self._guarded([picture])]
        return [Failed(pictures[0].key, "attribute", type(failure).__name__, reason(failure))]

    def _explained(self, pictures: list[Loaded]) -> Iterator[Explained]:
        passed = self._pass(pictures)
        logits = passed.logits[: len(pictures)].detach()
        if not logits.isfinite().all():
            raise NonFinite("the model's scores hold NaN or infinity")
        probabilities = logits.softmax(dim=1).cpu().numpy()
        scores = logits.cpu().numpy()
        labels = self.classifier.labels
        targets = [self.rule.choose(row, picture.key, labels) for row, picture in zip(scores, pictures, strict=True)]
        maps: list[list[Map]] = [[] for _ in pictures]
        for rank, ranked in enumerate(zip(*targets, strict=True)):
            evidence = passed.evidence(ranked, chunk=self.batch_size, last=rank == len(targets[0]) - 1)
            for method in self.methods:
                start = time.perf_counter()
                attribution = method.attribute(evidence)
                arrays = attribution.relevance.float().cpu().numpy()
                seconds = (time.perf_counter() - start) / len(pictures)
                for row, target in enumerate(ranked):
                    described = self._described(target, scores[row], probabilities[row])
                    checks = _row_of(attribution, row)
                    signed, layer = attribution.signed, attribution.layer
                    maps[row].append(Map(method.name, described, rank, arrays[row], signed, checks, layer, seconds))
        for picture, row, made in zip(pictures, probabilities, maps, strict=True):
            best = (-row).argsort(kind="stable")[:5]
            yield Explained(0, picture, [[int(index), round(float(row[index]), 6)] for index in best], made)

    def _pass(self, pictures: list[Loaded]) -> PlainPass:
        """The plain pass, filled up with black to the full batch: the same shape gives a picture the same bytes."""
        pixels = [picture.pixels for picture in pictures]
        padding = [np.zeros_like(pixels[0])] * (self.batch_size - len(pixels))
        return plain_pass(self.classifier, self.classifier.prepare(pixels + padding), self.needs)

    def _described(self, target: Target, logits: np.ndarray, probabilities: np.ndarray) -> dict[str, object]:
        described: dict[str, object] = {
            "index": target.index,
            "name": self.classifier.labels[target.index],
            "how": target.how,
            "probability": round(float(probabilities[target.index]), 6),
            "logit": float(logits[target.index]),
        }
        if target.against is not None:
            described["against"] = {"index": target.against, "name": self.classifier.labels[target.against]}
        return described


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
