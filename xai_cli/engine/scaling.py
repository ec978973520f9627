"""Which value of a map gets the strongest colour: one of its own, one that the maps of its method share, a given one.

Only pictures depend on it; arrays are raw. In a manifest row `scale` says how the map was drawn: `by` (`image`, `run`,
`fixed`), the `percentile` that was taken, the `limit` that got the strongest colour, and `clipped`, the share of the
pixels beyond it. A map of zeros has no colour, and by image no limit. By run, `own` is the limit that the map would
have by image; `limit` is null until the map is drawn.

The percentile is one of pixels. Of a map with one value per segment it is always 100: a small segment with the largest
value would else be drawn like the next ones.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from xai_cli.engine.options import DrawingOptions
from xai_cli.heatmaps import colour_limit
from xai_cli.outputs.manifest import Row


def scale_of(relevance: NDArray[np.float32], drawing: DrawingOptions, *, segmented: bool = False) -> Row | None:
    """The `scale` of the row of a new map; None if no picture depends on it."""
    by = drawing.scale.partition(":")[0]
    if drawing.render == "none" and by != "run":  # by run, the contact sheet will depend on all of them
        return None
    if by == "fixed":
        return {"by": by, "percentile": None, **at_limit(relevance, drawing.fixed)}
    percentile = 100.0 if segmented else drawing.percentile
    own = _short(colour_limit(relevance, percentile)) if relevance.any() else None
    if by == "run":
        return {"by": by, "percentile": percentile, "own": own, "limit": None, "clipped": None}
    return {"by": by, "percentile": percentile, **at_limit(relevance, own)}


def at_limit(relevance: NDArray[np.float32], limit: float | None) -> Row:
    """The part of a `scale` that tells what a limit does to a map."""
    beyond = 0 if limit is None else np.count_nonzero(np.abs(relevance) > limit)
    return {"limit": limit, "clipped": round(beyond / relevance.size, 6)}


def shared_limits(drawing: DrawingOptions, methods: Sequence[str], records: Iterable[list[Row]]) -> dict[str, float]:
    """The limit of each method whose pictures share one; without it, each map has its own.

    `records` are the sound ones that count in the run's manifests.

    By run it is the `percentile`, by nearest rank, of the own limits of all maps of the method. In a small run (97: up
    to 33 maps) that is the largest of them, and no map is clipped more than by image. In a large one a few extreme
    maps, as gradients near the border between two classes may be, do not leave all others pale. It is the limit of one
    of the maps and depends on no order, hence the same however the run came about; finding it takes 4 bytes per map.
    """
    if drawing.fixed is not None:
        return dict.fromkeys(methods, drawing.fixed)
    if drawing.scale != "run":
        return {}
    own: defaultdict[str, array[float]] = defaultdict(lambda: array("f"))
    for row in chain.from_iterable(records):
        if limit := (row.get("scale") or {}).get("own"):
            own[row["method"]].append(limit)
    return {
        method: _short(float(np.percentile(np.frombuffer(limits, "f"), drawing.percentile, method="inverted_cdf")))
        for method, limits in own.items()
    }


def _short(limit: float) -> float:
    """The number with the fewest digits that is the same float32, in which maps are drawn."""
    return float(str(np.float32(limit)))
