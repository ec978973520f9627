"""One backward pass by the rules of LRP, with its account: what `lrp` and `deep-taylor` share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from xai_cli.methods.contract import Attribution, Evidence

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.operators.account import Account
    from xai_cli.operators.composites import Composite

Start = Literal["logit", "one", "contrastive"]


def check_operators(classifier: Classifier, *, allow_unruled: bool) -> tuple[str, ...]:
    """What to say of operators without rule, if they are allowed. Raises ValueError with the first one if not."""
    refused = classifier.plan.refused
    if refused and not allow_unruled:
        raise ValueError(refused[0])
    return tuple(f"{sentence.partition(';')[0]}; its plain gradient was taken" for sentence in refused)


def forward_gap(evidence: Evidence, logits: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """How far the scores under the rules are from the plain ones, relative to the largest, if there are plain ones of
    the same precision.
    """
    if evidence.logits is None or evidence.classifier.dtype != evidence.classifier.canonical_dtype:
        return {}
    plain = evidence.logits[rows]
    gap = (logits.detach() - plain).abs().amax(1)
    return {"forward_gap": (gap / plain.abs().amax(1)).where(gap > 0, 0)}


def propagate(
    evidence: Evidence, composite: Composite, *, rule: str, start: Start = "logit", allow_unruled: bool = False
) -> Attribution:
    """The relevance of every pixel, signed, with the shares of the score that did not reach the pixels."""
    import torch

    notes = check_operators(evidence.classifier, allow_unruled=allow_unruled)
    maps, checks = [], []
    # Where pictures change their axis, the account cannot tell them apart: then one at a time.
    parts = evidence if evidence.classifier.plan.batch_first else replace(evidence, chunk=1)
    for rows, real in parts.parts():
        ruled = _Ruled.of(evidence.classifier, evidence.inputs[rows], composite, allow_unruled=allow_unruled)
        relevance, measured = ruled.back(_started(evidence, ruled.logits, rows, start))
        measured |= forward_gap(evidence, ruled.logits, rows)
        maps.append(relevance[:real])
        checks.append({name: values[:real] for name, values in measured.items()})
    joined = {name: torch.cat([each[name] for each in checks]) for name in checks[0]}
    if composite.first is not None and not ruled.met_pixels:
        notes += (
            f"no layer sees the pixels alone, so the rule {composite.first.name} for the first layer was not used",
        )
    return Attribution(torch.cat(maps).float(), signed=True, checks=joined, rule=rule, notes=notes)


def try_composite(classifier: Classifier, composite: Composite, *, allow_unruled: bool) -> None:
    """Raises ValueError if a rule of `composite` does not fit the layer that it is for."""
    _Ruled.of(classifier, classifier.example(), composite, allow_unruled=allow_unruled)


@dataclass(frozen=True)
class _Ruled:
    """A forward pass by the rules of a composite: `logits` `(n, K)`, and what its way back leads to."""

    logits: Tensor
    share: Tensor
    account: Account
    met_pixels: bool

    @classmethod
    def of(cls, classifier: Classifier, inputs: Tensor, composite: Composite, *, allow_unruled: bool) -> _Ruled:
        from xai_cli.operators.account import Account
        from xai_cli.operators.lrp import Lrp, with_pixels

        account = Account(len(inputs), inputs.device)
        low, high = (classifier.colour(name) for name in ("black", "white"))
        share, pixels = with_pixels(inputs.to(classifier.canonical_dtype), low, high)
        rules = Lrp(classifier.canonical, composite, account)
        logits = classifier.ruled_logits(pixels, rules, allow_unruled=allow_unruled)
        return cls(logits, share, account, rules.met_pixels)

    def back(self, scores: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Relevance `(n, h, w)` and checks of the pictures, of whose relevance `scores` `(n,)` are the whole."""
        import torch

        relevance = None
        if scores.requires_grad:
            wanted = [self.share, self.account.anchor]
            relevance, _ = torch.autograd.grad(scores.sum(), wanted, allow_unused=True)
        if relevance is None:
            raise ValueError("no relevance comes back from the scores: the model scales or detaches what carries it")
        pixels = relevance.sum(dim=1)
        return pixels, _checks(pixels, scores, self.account)


def _started(evidence: Evidence, logits: Tensor, rows: Tensor, start: Start) -> Tensor:
    """The relevance that each picture's score starts with."""
    scores = evidence.scores(logits, rows)
    if start == "one":
        return scores / scores.detach()
    if start == "contrastive" and evidence.contrasts is None:
        if logits.shape[1] == 1:
            raise ValueError("--start contrastive expects a model of several classes, found one; take logit")
        others = logits.scatter(1, evidence.targets[rows, None], -float("inf"))
        return scores - others.amax(1)
    return scores


def _checks(pixels: Tensor, scores: Tensor, account: Account) -> dict[str, Tensor]:
    """What reached the pixels, and what kept the rest, as shares of the score; and what is missing to a whole."""
    total = scores.detach().double()
    reached = pixels.sum(dim=(1, 2)).double() / total
    kept = {f"kept_by_{name}": values / total for name, values in account.sums.items()}
    return {"conservation": reached, **kept, "account_gap": (reached + sum(kept.values()) - 1).abs()}
