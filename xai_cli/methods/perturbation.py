"""Methods that hide parts of the picture and look at the score, forwards only: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.baselines import read_picture
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.fills import FillKind, fill_of
from xai_cli.methods.masking import Fill, Masking, Precision, Score, Visible
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class Perturbation(Method):
    """What the score does when parts of the picture are hidden; of any function, for all targets in the same passes."""

    family: ClassVar[str] = "perturbation"
    by_gradient: ClassVar[bool] = False

    fill: FillKind = "mean"
    fill_image: Annotated[Path | None, Option("The picture of --fill image.")] = None
    score: Annotated[
        Score,
        Option("What is looked at of the target: its logit, its probability, or its logit less the largest other."),
    ] = "logit"
    precision: Annotated[
        Precision,
        Option("bfloat16 is faster where the processor knows it; a picture whose maps it ranks otherwise than float32, "
               "tried on some samples, is computed in float32."),
    ] = "float32"  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fill == "image" and self.fill_image is None:
            raise ValueError("--fill image expects --fill-image, found none; add --fill-image PATH")
        if self.fill != "image" and self.fill_image is not None:
            raise ValueError(f"--fill-image expects --fill image, found --fill {self.fill}; add --fill image")

    def needs(self, classifier: Classifier) -> Needs:
        if self.fill_image is not None:
            read_picture(self.fill_image, classifier, "--fill-image")
        if self.score != "logit" and len(classifier.labels) == 1:
            raise ValueError(f"--score {self.score} expects two classes or more, found 1; take --score logit")
        if self.precision == "bfloat16":
            import torch

            if classifier.dtype != torch.float32:
                found = str(classifier.dtype).removeprefix("torch.")
                raise ValueError(f"--precision bfloat16 expects --dtype float32, found {found}; leave out --precision")
            classifier.in_dtype(torch.bfloat16)
        return Needs()

    def attribute(self, evidence: Evidence) -> Attribution:
        return evidence.common(self, lambda: self.explain(evidence))[evidence.rank]

    @abstractmethod
    def explain(self, evidence: Evidence) -> list[Attribution]:
        """The maps of the batch, for each of its targets."""

    def masking(
        self,
        evidence: Evidence,
        visible: Visible,
        counts: Sequence[int],
        *,
        usual: int | None = None,
        fill: Fill | None = None,
    ) -> Masking:
        """How pictures are hidden and scored as the options say.

        There are `counts[b]` samples of each picture; where these depend on the picture, passes are sized by what is
        `usual`. `fill` may be another than that of the options.
        """
        fill = fill or fill_of(self.fill, self.fill_image, evidence)
        rows = evidence.rows_per_pass(max(usual or max(counts), 1))
        return Masking(evidence, visible, fill, counts, rows, self.score, self.precision)


def losses(masking: Masking) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What the score of each picture loses in each of its samples, `(S_b, T)`, and checks of that `{name: (B,)}`.

    Masks are truth values: a pixel is seen or hidden.
    """
    import torch

    every = [torch.arange(count) for count in masking.counts]
    agreement = None
    if masking.precision == "bfloat16":  # a quarter of them, spread evenly, settles whether it does
        tried = [each[::4] if len(each) > 8 else each for each in every]
        masking, _, agreement = masking.settled(tried, lambda _, scores: scores.T)
    counts = torch.tensor(masking.counts, device=masking.evidence.inputs.device)

    def visible(rows: Tensor, samples: Tensor) -> Tensor:
        whole = samples == counts[rows]
        return masking.visible(rows, samples.where(~whole, 0)) | whole[:, None, None, None]

    # The picture itself is one sample more, in passes like those of the others.
    scores = replace(masking, visible=visible).of(range(len(every)), [torch.arange(len(each) + 1) for each in every])
    checks = {} if agreement is None else {"bfloat16_agreement": agreement}
    return [each[-1] - each[:-1] for each in scores], checks
