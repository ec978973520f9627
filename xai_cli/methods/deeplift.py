"""DeepLIFT: the change of the score from a baseline to the picture, followed back through every operator.

    R_i = sum_c m_ic (x - x0)_ic,    m = (change of the score) / (change of x_ic), by the chain rule of such quotients

Completeness: sum_i R_i = f(x) - f(x0), exactly and in one backward pass; what rounding leaves of it is measured for
every picture as `completeness_gap` = |sum R - (f(x) - f(x0))| / |f(x) - f(x0)|. How each kind of operator divides its
change is told in `xai_cli/operators/deeplift.py`. The mean over a folder of baselines is DeepLIFT-SHAP.

Shrikumar, Greenside, Kundaje: Learning Important Features Through Propagating Activation Differences, 2017
(arXiv:1704.02685); DeepLIFT-SHAP: Lundberg and Lee 2017 (arXiv:1705.07874).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.baselines import made_baseline, read_folder, read_picture
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.propagation import check_operators, forward_gap
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class DeepLift(Method):
    """The score's change from a baseline, passed back operator by operator; signed, sums to it (Shrikumar 2017)."""

    name: ClassVar[str] = "deeplift"
    family: ClassVar[str] = "propagation"
    bounds: ClassVar[Mapping[str, float]] = {"completeness_gap": 1e-3}  # it is exact, so what is left is rounding

    rule: Annotated[
        Literal["rescale", "reveal-cancel"],
        Option("One multiplier per function, or after layers with weights one for what rises and one for what falls."),
    ] = "rescale"
    baseline: Annotated[
        Literal["zero", "black", "white", "mean", "blur", "image", "folder"],
        Option("What is compared with: a colour (zero and mean are the same, what the model calls zero), the picture "
               "blurred, another picture, or in turn the pictures of a folder."),
    ] = "zero"  # fmt: skip
    baseline_image: Annotated[Path | None, Option("The picture of --baseline image.")] = None
    baseline_folder: Annotated[Path | None, Option("The pictures of --baseline folder.")] = None
    baselines: Annotated[
        int, Option("How many pictures of the folder to take, the first in the order of names.", min=1, max=1000)
    ] = 10
    allow_unruled: Annotated[bool, Option("Take the plain gradient of operators that have no rule.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, given in (("image", self.baseline_image), ("folder", self.baseline_folder)):
            if self.baseline == kind and given is None:
                raise ValueError(f"--baseline {kind} expects --baseline-{kind}, found none; add --baseline-{kind} PATH")
            if self.baseline != kind and given is not None:
                found = f"--baseline {self.baseline}"
                raise ValueError(f"--baseline-{kind} expects --baseline {kind}, found {found}; add --baseline {kind}")

    def needs(self, classifier: Classifier) -> Needs:
        check_operators(classifier, allow_unruled=self.allow_unruled)
        self._read(classifier)
        return Needs()

    def attribute(self, evidence: Evidence) -> Attribution:
        starts, broken = self._baselines(evidence)
        told: str = self.rule
        count = starts.shape[1]
        means: dict[str, Tensor] = {}
        for rows, places, real in evidence.chunks(count):
            values_of, told = self._part(evidence, rows, starts[rows, places])
            for name, values in values_of.items():
                mean = means.setdefault(name, values.new_zeros(len(evidence.inputs), *values.shape[1:]))
                mean.index_add_(0, rows[:real], values[:real] / count)
        relevance, change = means.pop("relevance"), means.pop("change")
        missing = (relevance.sum(dim=(1, 2)) - change).abs()
        # A picture that is its own baseline has nothing to explain: 0 / 0 is a gap of 0.
        means["completeness_gap"] = missing / change.abs().clamp_min(1e-30)
        notes = check_operators(evidence.classifier, allow_unruled=self.allow_unruled)
        return Attribution(relevance, signed=True, checks=means, rule=told, notes=notes + broken)

    def _part(self, evidence: Evidence, rows: Tensor, start: Tensor) -> tuple[dict[str, Tensor], str]:
        """Relevance `(n, h, w)`, the score's change `(n,)` and checks of the pictures `rows (n,)`; the rule applied."""
        from xai_cli.operators.deeplift import DeepLift, Reference

        classifier, reference = evidence.classifier, Reference(inputs_of_weights=self.rule == "reveal-cancel")
        before = classifier.ruled_logits(start.detach().requires_grad_(), reference, allow_unruled=self.allow_unruled)
        rules, inputs = DeepLift(reference), evidence.inputs[rows].requires_grad_()
        logits = classifier.ruled_logits(inputs, rules, allow_unruled=self.allow_unruled)
        rules.finish()
        scores = evidence.scores(logits, rows)
        (multipliers,) = classifier.gradient(scores, [inputs])
        relevance = (multipliers * (inputs - start)).sum(dim=1)
        change = scores - evidence.scores(before, rows)
        told = f"reveal-cancel at {rules.revealed} of {rules.functions} functions" if rules.revealed else self.rule
        measured = {"relevance": relevance.detach(), "change": change.detach(), **forward_gap(evidence, logits, rows)}
        return measured, told

    def _baselines(self, evidence: Evidence) -> tuple[Tensor, tuple[str, ...]]:
        """The baselines of each picture, `(B, S, C, h, w)`, and notes."""
        pictures, notes = self._read(evidence.classifier)
        if pictures is None:
            return made_baseline(self.baseline, evidence.inputs, evidence.classifier)[:, None], notes
        return pictures.to(evidence.inputs).expand(len(evidence.inputs), *pictures.shape), notes

    def _read(self, classifier: Classifier) -> tuple[Tensor | None, tuple[str, ...]]:
        """The pictures to compare with `(S, C, h, w)`, if they come from files, and notes."""
        if self.baseline_image is not None:
            return read_picture(self.baseline_image, classifier), ()
        if self.baseline_folder is not None:
            return read_folder(self.baseline_folder, self.baselines, classifier)
        return None, ()
