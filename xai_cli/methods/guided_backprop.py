"""Guided backprop: the gradient along paths on which the signal and its gradient are both positive everywhere.

    R = max_c |g_c|,    g_x = max(g_y, 0) * 1[x > 0]    at every ReLU y = max(x, 0)

with g the gradient of the score everywhere else. Rectifiers other than ReLU get the generalised gate
g_x = max(g_y, 0) * max(f'(x), 0), which is not of the paper: `rule` names it. A rectifier is what the net calls,
as a module, a function, a method, in place, or as `clamp(min=0)`; one made of products and comparisons is none. The map
is sharp because the gate favours edges of the picture; it depends on the class much less than the gradient does
(Adebayo et al. 2018, arXiv:1810.03292).

Springenberg, Dosovitskiy, Brox, Riedmiller: Striving for Simplicity: The All Convolutional Net, 2014 (arXiv:1412.6806).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xai_cli.methods.gated import GatedMethod

if TYPE_CHECKING:
    from xai_cli.operators.guided import Gates


@dataclass(frozen=True)
class GuidedBackprop(GatedMethod):
    """Gradient through positive signals with positive gradients only, largest over the channels (Springenberg 2014)."""

    name: ClassVar[str] = "guided-backprop"

    def gates(self) -> Gates:
        from xai_cli.operators.guided import Guided

        return Guided()
