from __future__ import annotations

import pytest
import torch

from xai_cli.methods.path import Node, Path, worst


def node(place: float, score: float, slope: float) -> Node:
    return Node(place, score, torch.full((1, 2), slope / 2), slope)


def test_each_node_stands_for_what_lies_nearest_to_it():
    path = Path(0.0, 1.0)
    for place, slope in ((0.8, 10.0), (0.2, 2.0), (0.4, 4.0)):
        path.add(node(place, 0.0, slope))
    assert path.integral().tolist() == [[pytest.approx((0.3 * 2 + 0.3 * 4 + 0.4 * 10) / 2)] * 2]


def test_the_errors_of_the_parts_add_up_to_what_the_integral_misses():
    # f(a) = a^2 has the slope 2a, which trapezoids get right everywhere but at the two ends.
    path = Path(0.0, 1.0)
    for place in (0.25, 0.75):
        path.add(node(place, place**2, 2 * place))
    errors, middles = zip(*path.parts(), strict=True)
    assert errors == pytest.approx((0.0625, 0.0, 0.0625))
    assert middles == (0.125, 0.5, 0.875)


def test_a_quarter_of_the_parts_the_worst_of_all_paths_are_halved():
    flat, steep = Path(0.0, 0.0), Path(0.0, 8.0)
    for place in (0.25, 0.5, 0.75):
        flat.add(node(place, 0.0, 0.0))
        steep.add(node(place, 0.0 if place < 0.6 else 1.0, 0.0))
    # Of eight parts the two with the changes 7 and 1 that no slope tells of.
    assert worst([flat, steep], most=100) == [(1, 0.875), (1, 0.625)]
    assert worst([flat, steep], most=7) == [(1, 0.875)]
    assert worst([flat, steep], most=6) == []
