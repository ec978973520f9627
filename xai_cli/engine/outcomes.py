"""What can become of a picture on its way through a run: loaded, explained, or failed with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xai_cli.images.geometry import Geometry
from xai_cli.images.sources import ImageRef


class HopelessError(RuntimeError):
    """Every picture so far failed in the model or in a method: the run is wrong, not the pictures."""


class DeviceLostError(HopelessError):
    """The device failed, and nothing works on it any more in this process; some picture may be the reason."""


@dataclass(frozen=True)
class Failed:
    """A picture that gave no map, or not that of one `method` for one `target`: the stage, the kind of fault, one
    sentence. A `transient` fault may be gone at the next attempt.
    """

    image: ImageRef
    stage: str
    type: str
    message: str
    transient: bool = False
    method: str | None = None
    target: Mapping[str, Any] | None = None

    def as_row(self) -> dict[str, Any]:
        """The manifest row."""
        of_one = {} if self.method is None else {"method": self.method, "target": self.target}
        return {
            **about(self.image),
            **of_one,
            "status": "error",
            "stage": self.stage,
            "type": self.type,
            "message": self.message,
            "transient": self.transient,
        }


@dataclass(frozen=True)
class Loaded:
    """A picture as the model sees it `(h, w, C)`, as a person sees it `(H, W, 3)`, and how the two lie on each
    other.
    """

    image: ImageRef
    pixels: NDArray[np.uint8]
    photo: NDArray[np.uint8]
    geometry: Geometry
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Map:
    """One map of a picture: `relevance` `(h, w)` by one method for one target, and what was measured of it.

    `batch` says how much was computed at once: in another shape a map differs in its last digits. `segments` is what
    the method says of each segment, if the map has one value per segment: `{name: one value per segment}`.
    """

    method: str
    target: Mapping[str, Any]
    rank: int
    relevance: NDArray[np.float32]
    signed: bool
    checks: Mapping[str, float]
    layer: str | None
    rule: str | None
    notes: tuple[str, ...]
    batch: Mapping[str, int]
    seconds: float
    segments: Mapping[str, list[Any]] | None = None


@dataclass(frozen=True)
class Explained:
    """A picture with all its maps, and what failed among them."""

    picture: Loaded
    top: list[list[float]]
    maps: list[Map | Failed]


Outcome = Failed | Explained


def about(image: ImageRef) -> dict[str, Any]:
    """What every row says of its picture: key, path, and by which size and time a changed file is told."""
    source = None if image.stamp is None else dict(zip(("bytes", "mtime_ns"), image.stamp, strict=True))
    return {"key": image.key, "path": str(image.path), "source": source}
