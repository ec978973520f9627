"""SmoothGrad: the gradient of the score averaged over noisy copies of the picture.

    smoothgrad: R = |mean_s g_s|          g_s = df/dx (x + n_s),    n_s ~ Normal(0, (noise * (max x - min x))^2)
    squared:    R = mean_s g_s^2
    vargrad:    R = mean_s (g_s - mean_s g_s)^2

each per colour channel, of which the largest counts (`--reduce`). The mean is the gradient of the score blurred by the
noise, without the jumps between neighbouring points; the variance, equal to squared less the square of the mean, shows
where the gradient depends on the noise, and is zero for a linear score, whatever the weights.

Two things are measured on every picture. `class_changed` is the share of its copies that the model gives another class
than the picture (known unless nobody asked for the picture's own scores): near 1, the noise hides the picture, the map
explains the noise, and less of it is better. `spread` = |standard error of the mean| / |mean| says how much of the mean
is chance: the means of two seeds have a cosine of about 1 - spread^2, and four times the samples halve it as long as it
is small.

Smilkov et al.: SmoothGrad: Removing Noise by Adding Noise, 2017 (arXiv:1706.03825); squared: Hooker et al.: A Benchmark
for Interpretability Methods in Deep Neural Networks, 2018 (arXiv:1806.10758); VarGrad: Adebayo et al.: Local
Explanation Methods for Deep Neural Networks Lack Sensitivity to Parameter Values, 2018 (arXiv:1810.03307).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from xai_cli.methods.contract import Attribution, Evidence, Method, Needs
from xai_cli.methods.reduction import Reduce, reduced
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier


@dataclass(frozen=True)
class SmoothGrad(Method):
    """Gradient of the score averaged over noisy copies of the picture (Smilkov 2017)."""

    name: ClassVar[str] = "smoothgrad"
    family: ClassVar[str] = "gradient"

    # The paper finds little change beyond 50 samples, and good maps at 10 to 20 % of noise; of these the least, because
    # at 15 % nets took most of the copies for something else.
    samples: Annotated[int, Option("Noisy copies, and gradients, per picture.", min=2)] = 25
    noise: Annotated[
        float,
        Option("Standard deviation of the noise, as share of the picture's range from smallest to largest.", min=0),
    ] = 0.1
    kind: Annotated[
        Literal["smoothgrad", "squared", "vargrad"],
        Option("What is shown of the copies' gradients: their mean, the mean of their squares, or their variance."),
    ] = "smoothgrad"
    reduce: Reduce = "max"

    def needs(self, classifier: Classifier) -> Needs:
        return Needs()

    def attribute(self, evidence: Evidence) -> Attribution:
        mean, variance, classes = self._moments(evidence)
        shown = {"smoothgrad": mean, "squared": mean.square() + variance, "vargrad": variance}[self.kind]
        signed = self.reduce == "sum" and self.kind == "smoothgrad"
        checks = {}
        if evidence.logits is not None:
            checks["class_changed"] = (classes != evidence.logits.argmax(dim=1, keepdim=True)).float().mean(dim=1)
        if self.kind == "smoothgrad":
            checks["spread"] = self._spread(mean, variance)
        return Attribution(reduced(shown, self.reduce), signed=signed, checks=checks)

    def _moments(self, evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance `(B, C, h, w)` of the gradient over the noisy copies, and the copies' classes `(B, S)`."""
        import torch

        inputs, classes = evidence.inputs, []
        deviation = self.noise * (inputs.amax(dim=(1, 2, 3), keepdim=True) - inputs.amin(dim=(1, 2, 3), keepdim=True))
        # Sums of what differs from the first copy's gradient, because sums of the whole would cancel in the variance.
        first, total, squares = (torch.zeros_like(inputs) for _ in range(3))
        for rows, samples, real in evidence.chunks(self.samples):
            points = inputs[rows] + deviation[rows] * evidence.drawn(torch.randn, rows, samples)
            logits, gradient = evidence.logits_and_gradient(points, rows)
            gradient = gradient[:real]
            classes.append(logits[:real].argmax(dim=1))
            rows, starts = rows[:real], samples[:real] == 0
            first[rows[starts]] = gradient[starts]
            moved = gradient - first[rows]
            total.index_add_(0, rows, moved)
            squares.index_add_(0, rows, moved.square())
        moved = total / self.samples
        variance = (squares / self.samples - moved.square()).clamp_min(0)
        return first + moved, variance, torch.cat(classes).unflatten(0, (-1, self.samples))

    def _spread(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Length `(B,)` of the standard error of the mean over that of the mean."""
        import torch

        error = (variance.flatten(1).sum(dim=1) / (self.samples - 1)).sqrt()
        # A gradient that is zero everywhere has no error: 0 / 0 is a spread of 0.
        return torch.where(error == 0, 0, error / mean.flatten(1).norm(dim=1))
