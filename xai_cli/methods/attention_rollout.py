"""Attention rollout: how much of each patch reaches the tokens that the scores read, if attention alone moved it.

    R = row of ( A'_L ... A'_2 A'_1 ),    A'_l = (A_l + I) / 2

with A_l the attention of layer l, the mean of its heads, and I for what the residual branch keeps; the row is that of
the token which the scores read (class token, attention pooling), or the mean row if they read several. It tells where
a transformer looks, not what it makes of it: values, MLPs and scores take no part, so the map is the same for every
class. Each row is an average, so what is missing to a sum of 1 lies on the other tokens.

Abnar, Zuidema: Quantifying Attention Flow in Transformers, 2020 (arXiv:2005.00928).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.attention import AttentionMap, attention_of
from xai_cli.methods.contract import Evidence, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.attention_path import AttentionPath
    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class AttentionRollout(AttentionMap):
    """Attention multiplied up through all layers; the same for every class (Abnar 2020)."""

    name: ClassVar[str] = "attention-rollout"
    class_specific: ClassVar[bool] = False
    by_gradient: ClassVar[bool] = False

    heads: Annotated[
        Literal["mean", "max", "min"], Option("What is taken of the heads of a layer; mean is the published one.")
    ] = "mean"

    def needs(self, classifier: Classifier) -> Needs:
        needs = super().needs(classifier)
        if not classifier.attention.averages:
            raise ValueError(
                "attention-rollout expects attention that averages, this model mixes the weights of its heads after "
                "the softmax; take gradient-rollout"
            )
        return needs

    def tokens(self, evidence: Evidence, rows: Tensor, path: AttentionPath) -> tuple[Tensor, Tensor]:
        """The row of all layers' attention, each mixed with what the tokens keep."""
        logits, attention = attention_of(evidence.classifier, evidence.inputs[rows])
        steps = [
            _averaging(self._fused(weights.detach()) + link.residual)
            for weights, link in zip(attention, path.links, strict=True)
        ]
        return path.rows(steps), logits.detach()

    def _fused(self, weights: Tensor) -> Tensor:
        """One attention `(B, Q, K)` of heads `(B, H, Q, K)`."""
        return _averaging(weights.mean(1) if self.heads == "mean" else getattr(weights, f"a{self.heads}")(1))


def _averaging(rows: Tensor) -> Tensor:
    """The rows made to sum to 1; one of zeros stays, as of sharp heads that have nothing in common."""
    total = rows.sum(-1, keepdim=True)
    return rows / total.where(total > 0, 1)
