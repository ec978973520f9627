"""Methods that hide parts of the picture and look at the score, forwards only: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.baselines import read_picture
from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.fills import FillKind, fill_of
from xai_cli.methods.masking import Fill, Masking, Score, Visible
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
        Literal["float32", "bfloat16"],
        Option("bfloat16 is faster where the processor knows it; a picture whose scores it ranks otherwise than "
               "float32 is computed in float32."),
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
        if self.precision == "bfloat16":
            import torch

            classifier.in_dtype(torch.bfloat16)
        return Needs(logits=True)

    def attribute(self, evidence: Evidence) -> Attribution:
        return evidence.common(self.name, lambda: self.explain(evidence))[evidence.rank]

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
    ) -> tuple[Masking, dict[str, Tensor]]:
        """How pictures are hidden and scored as the options say, and the check of that, if there is one.

        There are `counts[b]` samples of each picture; where these depend on the picture, passes are sized by what is
        `usual`. `fill` may be another than that of the options.
        """
        fill = fill or fill_of(self.fill, self.fill_image, evidence)
        rows = evidence.rows_per_pass(max(usual or max(counts), 1))
        masking = Masking(evidence, visible, fill, counts, rows, self.score)
        if self.precision == "float32":
            return masking, {}
        masking, agreement = masking.in_bfloat16()
        return masking, {"bfloat16_agreement": agreement}
