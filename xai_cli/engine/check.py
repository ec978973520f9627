"""The truth table of a model: what each method makes of one picture, and which invariants its map keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import not_
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from xai_cli.classifiers.checkpoints import digest
from xai_cli.classifiers.classifier import Classifier
from xai_cli.engine.attributing import NonFinite
from xai_cli.engine.checks import is_degenerate, warnings
from xai_cli.engine.outcomes import HopelessError
from xai_cli.engine.plain_pass import plain_pass, union
from xai_cli.methods.contract import Attribution, Method
from xai_cli.methods.saliency import Saliency
from xai_cli.sentences import reason
from xai_cli.targets import Target, parse_target

# What is measured here, beside the checks of `checks.BOUNDS`: when it is broken, and what that means.
_BROKEN: dict[str, tuple[Callable[[float], bool], str]] = {
    # A GPU sums in no fixed order; on a CPU the two maps are the same bytes.
    "repeatable": (lambda gap: not gap <= 1e-5, "the same picture gives another map every time"),
    # The batch has the same shape, but a GPU may still sum in another order.
    "batch_gap": (lambda gap: not gap <= 1e-3, "the map depends on the pictures beside it"),
    "equals_gradient": (bool, "the map is that of the plain gradient; the method's rules change nothing in this model"),
    "model_untouched": (not_, "weights, hooks, gradients or modes of the model are not as they were before"),
}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@dataclass(frozen=True)
class Case:
    """What methods are checked on: a picture, and another that lies beside it in a batch of two.

    Attributes:
        inputs: `(2, C, h, w)`; the first is explained.
        targets: one for each.
    """

    classifier: Classifier
    inputs: Tensor
    targets: tuple[Target, Target]

    @classmethod
    def of(cls, classifier: Classifier, image: Path | None = None, target: str = "predicted") -> Case:
        """The picture in the file `image`, or else the model's example, explained for `target`.

        Raises LookupError or ValueError for a target that is no one class or pair of classes, `Broken` for a file that
        cannot be read, HopelessError if the model fails on the picture.
        """
        rule = parse_target(target, classifier.labels)
        if rule.how == "label" or rule.count > 1:
            raise ValueError(f"--target expects predicted, a class or A-vs-B to check methods on, found {target!r}")
        example, other = classifier.probes()
        inputs = torch.cat([example if image is None else classifier.read([image]), other])
        try:
            with torch.no_grad():
                logits = [classifier.logits(each[None])[0].cpu().numpy() for each in inputs]
        except (Exception, SystemExit) as error:
            raise HopelessError(f"the model fails on the picture ({_told(error)})") from error
        first, second = (rule.choose(row, "", classifier.labels)[0] for row in logits)
        return cls(classifier, inputs, (first, second))

    def attribution(self, method: Method, pictures: int = 1) -> Attribution:
        """What `method` makes of the first picture, or of both in one batch."""
        # Passes of one shape, filled up as in a run, because what chooses among nearly equal numbers makes much of
        # rounding.
        inputs = self.inputs if pictures == 2 else self.inputs[:1].expand_as(self.inputs)
        passed = plain_pass(self.classifier, inputs, union(self.classifier, [method]))
        return method.attribute(passed.evidence(self.targets[:pictures], chunk=2))


@dataclass(frozen=True)
class Verdict:
    """How a method fares with a model.

    Attributes:
        reason: why there is no map, in one sentence; None if there is one.
        foreseen: the method itself says that it does not fit the model, before it computes anything.
        checks: `{name: value}`; a truth value or a number.
        layer, rule: the layer looked at and the rule set applied, if the method chose one.
        seconds: the time that the first map took.
        notes: what the method says of the map.
    """

    method: str
    reason: str | None = None
    foreseen: bool = False
    checks: dict[str, float] = field(default_factory=dict)
    layer: str | None = None
    rule: str | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def status(self) -> Literal["supported", "degraded", "refused"]:
        """There is a map of which all is well, one with some warning, or none."""
        return "refused" if self.reason is not None else "degraded" if self.warnings else "supported"

    @property
    def warnings(self) -> list[str]:
        """The method's notes, and one sentence for each check that is broken."""
        further = [
            f"{name} {self.checks[name]:.3g}: {meaning}"
            for name, (broken, meaning) in _BROKEN.items()
            if name in self.checks and broken(self.checks[name])
        ]
        return [*self.notes, *warnings(self.method, self.checks), *further]

    def as_row(self) -> dict[str, Any]:
        """The verdict as JSON can hold it; a check that is no number is None."""
        return {
            "method": self.method,
            "status": self.status,
            "reason": self.reason,
            "foreseen": self.foreseen,
            "layer": self.layer,
            "rule": self.rule,
            "checks": {name: value if math.isfinite(value) else None for name, value in self.checks.items()},
            "warnings": self.warnings,
            "seconds": None if self.seconds is None else round(self.seconds, 4),
        }


def verdicts(case: Case, methods: Iterable[Method]) -> Iterator[Verdict]:
    """The verdict on each method, in order; that the method, or the model inside it, fails is one as well."""
    before = _state(case.classifier.module)
    for method in methods:
        verdict = _verdict(case, method)
        after = _state(case.classifier.module)
        yield replace(verdict, checks={**verdict.checks, "model_untouched": after == before})
        # So that what one method leaves behind is not blamed on the next.
        before = after


def _verdict(case: Case, method: Method) -> Verdict:
    try:
        union(case.classifier, [method])
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a model does, the other methods are still checked
        foreseen = isinstance(error, LookupError | ValueError) and not isinstance(error, KeyError | IndexError)
        return Verdict(method.name, reason=reason(error) if foreseen else _told(error), foreseen=foreseen)
    try:
        return _measured(case, method)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # as above
        return Verdict(method.name, reason=_told(error))


def _measured(case: Case, method: Method) -> Verdict:
    start = time.perf_counter()
    attribution = case.attribution(method)
    relevance = _kept(attribution)
    seconds = time.perf_counter() - start
    if not relevance.isfinite().all():
        raise NonFinite(f"the map of {method.name} holds NaN or infinity")
    checks = {
        **{name: float(values[0]) for name, values in attribution.checks.items()},
        "degenerate": is_degenerate(relevance.numpy()),
        "repeatable": _gap(_kept(case.attribution(method)), relevance),
        "batch_gap": _gap(_kept(case.attribution(method, pictures=2))[:1], relevance),
    }
    if method.family == "propagation":
        checks["equals_gradient"] = _are_proportional(relevance, _kept(case.attribution(Saliency())))
    return Verdict(
        method.name, checks=checks, layer=attribution.layer, rule=attribution.rule, seconds=seconds,
        # That a map is of no class is no fault of the model.
        notes=attribution.notes if method.class_specific else (),
    )  # fmt: skip


def _kept(attribution: Attribution) -> Tensor:
    return attribution.relevance.detach().float().cpu()


def _told(error: BaseException) -> str:
    """An error that nobody foresaw says more with its type."""
    return f"{type(error).__name__}: {reason(error)}"


def _gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two maps, relative to the largest value expected."""
    return 0.0 if torch.equal(found, expected) else float((found - expected).abs().max() / expected.abs().max())


def _are_proportional(left: Tensor, right: Tensor) -> bool:
    return bool(cosine_similarity(left.double().flatten(), right.double().flatten(), dim=0) > 0.999999)


def _state(module: nn.Module) -> tuple[Any, ...]:
    """All of a module that a method could leave changed."""
    layers = [
        (name, layer.training, [len(getattr(layer, hooks)) for hooks in _HOOKS])
        for name, layer in module.named_modules()
    ]
    parameters = [(parameter.requires_grad, parameter.grad is None) for parameter in module.parameters()]
    return digest(module), layers, parameters
