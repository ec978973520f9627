"""How far a map can be trusted: the invariants measured on every picture, and the bounds they should keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import ge, le
from typing import TYPE_CHECKING

from xai_cli.methods import METHODS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# How a check lies to its bound, the bound, and what it means if it does not. Such a map is still written; its row says
# so, and `--strict` counts it as a failure.
BOUNDS: dict[str, tuple[Callable[[float, float], bool], float, str]] = {
    "completeness_gap": (le, 0.05, "the map does not add up to the change of the score that it explains"),
    "root_gap": (le, 0.05, "the score at the root point is not zero, so the map explains only the change from there"),
    "account_gap": (
        le,
        1e-3,
        "pixels and what kept relevance from them do not add up to the score; the model computes "
        "something that the rules do not see",
    ),
    "forward_gap": (le, 1e-2, "the model's scores change under the rules, so the map explains another function"),
    "class_changed": (le, 0.5, "the model takes most of the noisy copies for something else; give less --noise"),
    "spread": (le, 1.0, "what is chance in the map is more than what is not; take more samples"),
    "r2": (ge, 0.3, "the linear model does not describe the scores; its weights say little"),
    "score_kept": (ge, 0.5, "the region keeps less than half of the score; give a larger --areas or more --steps"),
    "last_gain": (le, 0.25, "the search for the region had not come to its end; give more --steps"),
    "area_gap": (le, 0.25, "the region has not the area asked for; give a larger --areas or a smaller --radius"),
    "single_segment": (le, 0.0, "the picture is one segment, and there is nothing to compare it with"),
    "degenerate": (le, 0.0, "the map is the same everywhere and shows nothing"),
}


def is_degenerate(relevance: NDArray[np.float32]) -> bool:
    """True for a map that has one value everywhere."""
    return bool(relevance.min() == relevance.max())


def warnings(method: str, checks: Mapping[str, float | None]) -> list[str]:
    """One sentence for each check that lies beyond its bound, or is no number: NaN, None in a manifest row."""
    own = METHODS[method].bounds if method in METHODS else {}
    measured = {name: math.nan if value is None else value for name, value in checks.items()}
    return [
        f"{name} {measured[name]:.3g}: {meaning}"
        for name, (keeps, bound, meaning) in BOUNDS.items()
        # Written so that NaN counts as broken.
        if name in measured and not keeps(measured[name], own.get(name, bound))
    ]
