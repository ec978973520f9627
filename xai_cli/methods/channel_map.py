"""Feature maps weighted by passes of their own, one per channel: what `scorecam` and `ablationcam` share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from xai_cli.methods.activation_map import LayerMap
from xai_cli.methods.contract import Evidence
from xai_cli.options import Option

if TYPE_CHECKING:
    from torch import Tensor

    from xai_cli.classifiers.layers import FeatureLayer


@dataclass(frozen=True)
class ChannelMap(LayerMap):
    """A sum of the feature maps of a late layer, each weighted by what a pass of its own says of it."""

    by_gradient: ClassVar[bool] = False
    trial: ClassVar[Mapping[str, object]] = {"channels": 16}

    channels: Annotated[
        int | None,
        Option("Look only at so many channels of each layer, those whose activation varies most over the picture; "
               "all if not given. Each takes a pass.", min=1),
    ] = None  # fmt: skip

    @abstractmethod
    def weights(self, evidence: Evidence, layer: FeatureLayer, activation: Tensor) -> Tensor:
        """The weight `(B, K)` of every channel; zero for those that were not looked at."""

    def layer_map(self, evidence: Evidence, layer: FeatureLayer) -> Tensor:
        activation = layer.grid(evidence.activations[layer.name])
        weights = self.weights(evidence, layer, activation)
        return (weights[:, :, None, None] * activation).sum(dim=1)

    def ranked(self, activation: Tensor, useful: Tensor) -> tuple[Tensor, Tensor]:
        """The channels `(B, K)` of each picture in the order they are looked at, and how many are `(B,)`.

        First come those whose activation varies most over the positions; those that are not `useful` `(B, K)` are none.
        """
        spread = activation.flatten(2).var(dim=2, correction=0)
        order = spread.where(useful, -1).argsort(dim=1, descending=True, stable=True)
        return order, useful.sum(dim=1).clamp(max=self.channels or order.shape[1])
