"""Maps made of the attention of a transformer: what `attention-rollout`, `gradient-rollout` and `legrad` share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.activation_map import enlarged
from xai_cli.methods.contract import CLASSLESS, Attribution, Evidence, Method, Needs
from xai_cli.methods.propagation import forward_gap

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.attention_path import AttentionPath
    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class AttentionMap(Method):
    """A map on the grid of patches, enlarged bilinearly to the model's input."""

    family: ClassVar[str] = "cam"

    def needs(self, classifier: Classifier) -> Needs:
        _ = classifier.attention  # refuses a model that has none
        return Needs()

    @abstractmethod
    def tokens(self, evidence: Evidence, rows: Tensor, path: AttentionPath) -> tuple[Tensor, Tensor]:
        """What the map says of each token of the pictures `rows` `(n,)` of the batch, `(n, N)`, nowhere negative; and
        the class scores `(n, K)` of the pass that showed it.
        """

    def attribute(self, evidence: Evidence) -> Attribution:
        import torch

        path, grids, gaps = evidence.classifier.attention, [], []
        for rows, real in evidence.parts():
            tokens, logits = self.tokens(evidence, rows, path)
            grids.append(path.grid(tokens.detach()[:real]))
            gaps.append({name: gap[:real] for name, gap in forward_gap(evidence, logits, rows).items()})
        checks = {name: torch.cat([each[name] for each in gaps]) for name in gaps[0]}
        notes = () if self.class_specific else (CLASSLESS,)
        return Attribution(
            enlarged(torch.cat(grids), evidence), signed=False, checks=checks, layer=path.told, notes=notes
        )


def attention_of(classifier: Classifier, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Class scores `(n, K)` of one pass, with its graph, and the attention `(n, H, Q, K)` of each link of the path."""
    from xai_cli.classifiers.attention_path import attended
    from xai_cli.operators.attention import AttentionMaps

    # Not in half precision: attention is seen where layers are written out, and their squares would overflow.
    rules = AttentionMaps(classifier.canonical, len(inputs))
    pixels = inputs.detach().to(classifier.canonical_dtype).requires_grad_()
    logits = attended(classifier.canonical, pixels, rules)
    return logits, [each.weights for each in rules.met]


def gradients_of(evidence: Evidence, logits: Tensor, rows: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of the score of each row of `logits` with respect to each of `weights`, whose first axes are those
    of the pictures `rows`, once or several times.

    Raises ValueError if it is exactly zero for a picture.
    """
    import torch

    scores = evidence.scores(logits, rows.repeat(len(logits) // len(rows)))
    gradients = evidence.classifier.gradient(scores, weights)
    moved = torch.cat([each.flatten(1).any(1) for each in gradients]).unflatten(0, (-1, len(rows))).any(0)
    if not moved.all():
        raise ValueError(
            "the score does not depend on the attention of the model, its gradient there is exactly zero; choose "
            "another target"
        )
    return gradients
