"""One backward pass by the rules of LRP, with its account: what `lrp` and `deep-taylor` share."""

from __future__ import annotations

from dataclasses import replace
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
    return {"forward_gap": (logits.detach() - plain).abs().amax(1) / plain.abs().amax(1)}


def propagate(
    evidence: Evidence, composite: Composite, *, rule: str, start: Start = "logit", allow_unruled: bool = False
) -> Attribution:
    """The relevance of every pixel, signed, with the shares of the score that did not reach the pixels."""
    import torch

    maps, checks = [], []
    # Where pictures change their axis, the account cannot tell them apart: then one at a time.
    parts = evidence if evidence.classifier.plan.batch_first else replace(evidence, chunk=1)
    for rows, real in parts.parts():
        relevance, measured = _part(evidence, rows, composite, start, allow_unruled)
        maps.append(relevance[:real])
        checks.append({name: values[:real] for name, values in measured.items()})
    joined = {name: torch.cat([each[name] for each in checks]) for name in checks[0]}
    notes = check_operators(evidence.classifier, allow_unruled=allow_unruled)
    return Attribution(torch.cat(maps).float(), signed=True, checks=joined, rule=rule, notes=notes)


def _part(
    evidence: Evidence, rows: Tensor, composite: Composite, start: Start, allow_unruled: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Relevance `(n, h, w)` and checks of the pictures `rows (n,)`."""
    import torch

    from xai_cli.operators.account import Account
    from xai_cli.operators.lrp import Lrp, with_pixels

    classifier = evidence.classifier
    account = Account(len(rows), evidence.inputs.device)
    low, high = (classifier.colour(name) for name in ("black", "white"))
    share, inputs = with_pixels(evidence.inputs[rows].to(classifier.canonical_dtype), low, high)
    logits = classifier.ruled_logits(inputs, Lrp(classifier.canonical, composite, account), allow_unruled=allow_unruled)
    scores = _started(evidence, logits, rows, start)
    if not scores.requires_grad:
        raise ValueError("no relevance comes back from the scores: the model ends in a function that carries none")
    relevance, _ = torch.autograd.grad(scores.sum(), [share, account.anchor], allow_unused=True)
    pixels = relevance.sum(dim=1)
    return pixels, {**_checks(pixels, scores, account), **forward_gap(evidence, logits, rows)}


def _started(evidence: Evidence, logits: Tensor, rows: Tensor, start: Start) -> Tensor:
    """The relevance that each picture's score starts with."""
    scores = evidence.scores(logits, rows)
    if start == "one":
        return scores / scores.detach()
    if start == "contrastive" and evidence.contrasts is None:
        others = logits.scatter(1, evidence.targets[rows, None], -float("inf"))
        return scores - others.amax(1)
    return scores


def _checks(pixels: Tensor, scores: Tensor, account: Account) -> dict[str, Tensor]:
    """What reached the pixels, and what kept the rest, as shares of the score; and what is missing to a whole."""
    total = scores.detach().double()
    reached = pixels.sum(dim=(1, 2)).double() / total
    kept = {f"kept_by_{name}": values / total for name, values in account.sums.items()}
    return {"conservation": reached, **kept, "account_gap": (reached + sum(kept.values()) - 1).abs()}
