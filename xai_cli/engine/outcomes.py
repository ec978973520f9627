"""What can become of a picture on its way through a run: loaded, explained, or failed with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xai_cli.images.geometry import Geometry


@dataclass(frozen=True)
class Failed:
    """A picture that gave no map: the stage, the kind of fault, one sentence."""

    key: str
    stage: str
    type: str
    message: str

    def as_row(self) -> dict[str, Any]:
        """The manifest row of the picture."""
        return {"key": self.key, "status": "error", "stage": self.stage, "type": self.type, "message": self.message}


@dataclass(frozen=True)
class Loaded:
    """A picture as the model sees it `(h, w, C)`, as a person sees it `(H, W, 3)`, and how the two lie on each
    other.
    """

    key: str
    pixels: NDArray[np.uint8]
    photo: NDArray[np.uint8]
    geometry: Geometry
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Map:
    """One map of a picture: `relevance` `(h, w)` by one method for one target, and what was measured of it."""

    method: str
    target: Mapping[str, Any]
    rank: int
    relevance: NDArray[np.float32]
    signed: bool
    checks: Mapping[str, float]
    layer: str | None
    seconds: float


@dataclass(frozen=True)
class Explained:
    """A picture with all its maps; `number` counts the explained pictures of a run from zero."""

    number: int
    picture: Loaded
    top: list[list[float]]
    maps: list[Map]


Outcome = Failed | Explained
