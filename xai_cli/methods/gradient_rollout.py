"""Gradient rollout: attention through all layers, as far as the score wants it.

    R = row of ( (I + A'_L) ... (I + A'_2) (I + A'_1) - I ),    A'_l = mean over heads of ReLU( dS/dA_l * A_l )

with A_l the attention of layer l and S the explained score; the row is that of the token which the scores read (class
token, attention pooling), or the mean row if they read several. It is the self-attention rule of generic attention
explainability, R <- R + A' R from R = I; the I that is left in the end, what tokens have of themselves without any
attention, is taken off. Only what attention moves is seen, not the MLPs; evidence against the class is cut off.

Chefer, Gur, Wolf: Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers,
2021 (arXiv:2103.15679).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.attention import AttentionMap, attention_of, gradients_of
from xai_cli.methods.contract import Evidence

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.attention_path import AttentionPath


@dataclass(frozen=True)
class GradientRollout(AttentionMap):
    """Attention of all layers weighted by the score's gradient and multiplied up (Chefer 2021)."""

    name: ClassVar[str] = "gradient-rollout"

    def tokens(self, evidence: Evidence, rows: Tensor, path: AttentionPath) -> tuple[Tensor, Tensor]:
        """What the rule adds to the identity, in the row that the scores read."""
        logits, attention = attention_of(evidence.classifier, evidence.inputs[rows])
        gradients = gradients_of(evidence, logits, rows, attention)
        steps = [
            (weights.detach() * gradient).relu().mean(1) + link.residual
            for weights, gradient, link in zip(attention, gradients, path.links, strict=True)
        ]
        alone = path.rows([link.residual[None] for link in path.links])
        return path.rows(steps) - alone, logits
