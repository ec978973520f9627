"""Explain image classifiers: folders of pictures in, signed attribution arrays and heatmaps out.

from xai_cli import attribute, find_method, load_classifier

classifier = load_classifier("builtin/scenes-cnn")
inputs = classifier.read(["sample_images/boat_1.jpg"])
attribution = attribute(classifier, inputs, find_method("ig")())
attribution.relevance, attribution.checks["completeness_gap"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xai_cli.classifiers.loading import load_classifier
    from xai_cli.engine.plain_pass import attribute
    from xai_cli.methods import METHODS, find_method

_PLACES = {
    "METHODS": "xai_cli.methods",
    "attribute": "xai_cli.engine.plain_pass",
    "find_method": "xai_cli.methods",
    "load_classifier": "xai_cli.classifiers.loading",
}

__all__ = ["METHODS", "attribute", "find_method", "load_classifier"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `xai --help` need not wait for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)
