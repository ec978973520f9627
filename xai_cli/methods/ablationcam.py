"""Ablation-CAM: the feature maps of a late layer, weighted by how far the score falls without each of them.

    R = ReLU( sum_k (y - y_k) A_k )

with A the `(B, K, H, W)` activation of the layer, y the score, and y_k the score when channel k is zero at all
positions (prefix tokens keep theirs: they have no place in the map). No gradient takes part, so saturation does not
hide a channel; channels that stand in for each other are hidden, because without one the other is still there. Half
precision loses falls that are small beside the score.

The paper divides the weights of a picture by its y, which is left out here: a score has no natural zero, as a number
added to all class scores changes nothing of what the model says, and where y is negative or near zero the division
would turn the map over or blow it up. Where y is positive, the paper's map is this one divided by y.

A picture takes as many passes as the layer has channels that are not zero everywhere, and one more; but where the model
allows it, the layers up to this one run once for all rows of a pass. With N `channels` the sum is over the N alone
whose activation has the largest variance over positions.

Desai, Ramaswamy: Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free Localization, 2020
(doi:10.1109/WACV45572.2020.9093360).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.channel_map import ChannelMap
from xai_cli.methods.contract import Evidence, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.classifiers.layers import FeatureLayer


@dataclass(frozen=True)
class AblationCam(ChannelMap):
    """Feature maps of a late layer weighted by the fall of the score without each of them (Desai 2020)."""

    name: ClassVar[str] = "ablationcam"

    def needs(self, classifier: Classifier) -> Needs:
        needs = super().needs(classifier)
        for layer in needs.activations:
            if (calls := _calls(classifier, layer)) > 1:
                raise ValueError(
                    f"ablationcam expects a layer that is called once, {layer!r} is called {calls} times; choose the "
                    "layer around it"
                )
        return needs

    def weights(self, evidence: Evidence, layer: FeatureLayer, activation: Tensor) -> Tensor:
        """How far the score falls without each channel."""
        import torch

        order, counts = self.ranked(activation, activation.flatten(2).any(dim=2))
        shared = _front_is_shared(evidence.classifier, layer)
        falls = torch.zeros_like(activation[:, :, 0, 0])
        for row, (channels, count) in enumerate(zip(order, counts.tolist(), strict=True)):
            scores = _ablated_scores(evidence, row, layer, channels[:count], shared=shared)
            falls[row, channels[:count]] = (scores[0] - scores[1:]).to(falls)
        return falls


def _ablated_scores(evidence: Evidence, row: int, layer: FeatureLayer, channels: Tensor, *, shared: bool) -> Tensor:
    """The score of one picture as it is, then without each of the channels, `(1 + N,)`.

    The first has its place among the others, because differences are small and rounding depends on the shape.
    """
    import torch

    picture = replace(evidence, inputs=evidence.inputs[row : row + 1])
    scores = []
    for rows, samples, real in picture.chunks(1 + len(channels)):
        inputs = picture.inputs if shared else picture.inputs[rows]
        with torch.no_grad():
            make = partial(_ablated, layer, channels, samples)
            logits = evidence.classifier.logits_with(inputs, layer.name, make)
        scores.append(evidence.scores(logits, row + rows)[:real])
    return torch.cat(scores)


def _ablated(layer: FeatureLayer, channels: Tensor, samples: Tensor, output: Tensor) -> Tensor:
    """The layer's output for one picture, once for each sample: whole for sample 0, for s > 0 without channel s - 1."""
    import torch

    rows = output.expand(len(samples), *output.shape[1:]).clone()
    cut = samples.nonzero()[:, 0]
    lost = channels[samples[cut] - 1]
    if layer.layout == "channels-first":
        rows[cut, lost] = 0
    elif layer.order is not None:
        places = layer.prefix + torch.tensor(layer.order, device=rows.device)
        rows[cut[:, None], places, lost[:, None]] = 0
    else:
        rows[cut, layer.prefix :, ..., lost] = 0
    return rows


def _calls(classifier: Classifier, layer: str) -> int:
    """How often a pass calls the layer."""
    import torch

    calls = []

    def seen(output: Tensor) -> Tensor:
        calls.append(layer)
        return output

    with torch.no_grad():
        classifier.logits_with(classifier.example(), layer, seen)
    return len(calls)


def _front_is_shared(classifier: Classifier, layer: FeatureLayer) -> bool:
    """True if the layers up to this one need see a picture but once for many rows behind it: tried on the example.

    It is so where nothing goes around the layer, or what does is added to each row.
    """
    import torch

    def logits(rows: int) -> Tensor:
        inputs = classifier.example().expand(rows, -1, -1, -1)
        # Two rows as different as can be, so that a mix of them would be seen.
        return classifier.logits_with(inputs, layer.name, lambda output: torch.stack([output[0], -output[0]]))

    with torch.no_grad():
        whole = logits(2)
        try:
            once = logits(1)
        except Exception:  # noqa: BLE001  # whatever a model makes of rows it did not expect, it takes whole ones
            return False
    # Half precision rounds by the shape; a wrong row would be wrong altogether.
    close = max(1e-2, torch.finfo(classifier.dtype).eps ** 0.5) * whole.abs().max()
    return once.shape == whole.shape and bool((once - whole).abs().max() <= close)
