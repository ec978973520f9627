"""How far a map can be trusted: the invariants measured on every picture, and the bounds they should keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from xai_cli.methods import METHODS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# A map above a bound is still written; its row says so, and `--strict` counts it as a failure.
BOUNDS: dict[str, tuple[float, str]] = {
    "completeness_gap": (0.05, "the map does not add up to the change of the score that it explains"),
    "root_gap": (0.05, "the score at the root point is not zero, so the map explains only the change from there"),
    "account_gap": (
        1e-3,
        "pixels and what kept relevance from them do not add up to the score; the model computes "
        "something that the rules do not see",
    ),
    "forward_gap": (1e-2, "the model's scores change under the rules, so the map explains another function"),
    "class_changed": (
        0.5,
        "the model takes most of the noisy copies for something else; give less --noise",
    ),
    "degenerate": (0.0, "the map is the same everywhere and shows nothing"),
}


def is_degenerate(relevance: NDArray[np.float32]) -> bool:
    """True for a map that has one value everywhere."""
    return bool(relevance.min() == relevance.max())


def warnings(method: str, checks: Mapping[str, float | None]) -> list[str]:
    """One sentence for each check that lies above its bound, or is no number: NaN, None in a manifest row."""
    own = METHODS[method].bounds if method in METHODS else {}
    measured = {name: math.nan if value is None else value for name, value in checks.items()}
    return [
        f"{name} {measured[name]:.3g}: {meaning}"
        for name, (bound, meaning) in BOUNDS.items()
        # Written so that NaN counts as broken.
        if name in measured and not measured[name] <= own.get(name, bound)
    ]
