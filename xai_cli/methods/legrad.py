"""LeGrad: which patches the score would have every layer attend to more.

    R = mean over layers l, heads and query tokens of ReLU( dS_l / dA_l )

with A_l the attention of layer l and S_l the explained score of the tokens after layer l, given straight to what comes
after the last layer (norm, pooling, head): what the score would be if the model ended there. Of a model that reads its
class token S_l is therefore of that token alone, where the authors' code for CLIP scores the mean of all tokens after
layer l. Shown are the columns of A_l that belong to patches. If attention pools the tokens in the end, A_l is that
attention, over the tokens after layer l. The paper takes all layers, the authors' code the last two, as is done here:
gradients of the first layers are the largest and say least. Neither values nor sizes of attention are in the map;
evidence against the class is cut off.

Bousselham et al.: LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity, 2024
(arXiv:2404.03214).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.attention import AttentionMap, gradients_of
from xai_cli.methods.contract import Evidence, Needs
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.attention_path import AttentionPath
    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class LeGrad(AttentionMap):
    """Gradient of the score that each layer would give, with respect to its attention (Bousselham 2024)."""

    name: ClassVar[str] = "legrad"

    layers: Annotated[
        int | None,
        Option("How many of the last layers to take, two if not given. The first weigh most in the mean and see least.",
               min=1),
    ] = None  # fmt: skip

    def needs(self, classifier: Classifier) -> Needs:
        path = classifier.attention
        if not path.blocks:
            raise ValueError(
                "legrad expects layers with one attention each that take all tokens to as many, which some attention "
                "of this model is not in; take gradient-rollout"
            )
        if self.layers is not None and self.layers > len(path.blocks):
            raise ValueError(f"--layers expects at most {len(path.blocks)} for this model, found {self.layers}")
        if path.unread:
            raise ValueError(
                "legrad gives the tokens of all layers to the head as if they were pictures, which that of this model "
                f"does not take ({path.unread}); take gradient-rollout"
            )
        return Needs()

    def tokens(self, evidence: Evidence, rows: Tensor, path: AttentionPath) -> tuple[Tensor, Tensor]:
        """The positive gradient of each layer's own score, the mean over layers, heads and queries."""
        import torch

        from xai_cli.classifiers.attention_path import layer_scores

        count = self.layers or min(2, len(path.blocks))
        inputs = evidence.inputs[rows].to(evidence.classifier.canonical_dtype)
        logits, weights = layer_scores(evidence.classifier.canonical, inputs, path.blocks, count)
        gradients = gradients_of(evidence, logits, rows, weights)
        wanted = torch.cat([gradient.relu().mean((1, 2)) for gradient in gradients])
        # The last layer's own score is the model's.
        return wanted.unflatten(0, (count, -1)).mean(0), logits[-len(rows) :]
