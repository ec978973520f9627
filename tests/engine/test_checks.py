"""A check beyond its bound, or that is no number, is told in one sentence."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from xai_cli.engine.checks import is_degenerate, warnings


@pytest.mark.parametrize(
    ("name", "good", "bad", "meaning"),
    [
        ("completeness_gap", 0.05, 0.051, "does not add up"),
        ("spread", 1.0, 1.01, "what is chance in the map is more than what is not; take more samples"),
        ("r2", 0.3, 0.29, "the linear model does not describe the scores"),
        ("score_kept", 0.5, 0.49, "the region keeps less than half of the score"),
        ("area_gap", 0.25, 0.26, "the region has not the area asked for"),
        ("last_gain", 0.25, 0.26, "had not come to its end; give more --steps"),
        ("single_segment", 0.0, 1.0, "nothing to compare it with"),
        ("degenerate", False, True, "is the same everywhere"),
    ],
)
def test_a_check_is_told_of_beyond_its_bound(name: str, good: float, bad: float, meaning: str) -> None:
    assert not warnings("saliency", {name: good})
    for value in (bad, nan, None):
        (told,) = warnings("saliency", {name: value})
        assert told.startswith(f"{name} {nan if value is None else value:.3g}: ")
        assert meaning in told


def test_without_end_lies_beyond_every_bound_but_that_of_what_should_be_large() -> None:
    assert len(warnings("saliency", {"spread": inf, "r2": -inf})) == 2
    assert not warnings("saliency", {"spread": -inf, "r2": inf})


def test_a_method_may_have_a_bound_of_its_own_and_one_that_is_no_longer_there_has_the_usual() -> None:
    told = [len(warnings(method, {"completeness_gap": 0.02})) for method in ("ig", "saliency", "a method of old")]
    assert told == [1, 0, 0]


def test_what_has_no_bound_is_not_told() -> None:
    assert not warnings("saliency", {"unbounded": 1e9, "more": None})


@pytest.mark.parametrize(("values", "expected"), [([2, 2, 2], True), ([2, 2, 2.1], False)])
def test_a_map_is_degenerate_if_it_has_one_value(values: list[float], expected: bool) -> None:
    assert is_degenerate(np.array([values], np.float32)) is expected
