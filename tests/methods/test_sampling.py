from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from xai_cli.methods.sampling import Estimate, sampled

ONES = torch.ones(1)


def estimate(values, errors, sizes=(1, 1)):
    return Estimate(torch.tensor([values]), torch.tensor([errors]), torch.tensor(sizes))


class TestSpread:
    def test_is_the_length_of_the_error_over_that_of_the_map_pixel_by_pixel(self):
        assert float(estimate([3.0, 4.0], [0.5, 0.0]).spread) == pytest.approx(0.1)
        assert float(estimate([3.0, 4.0], [0.5, 0.0], [4, 1]).spread) == pytest.approx(1 / 52**0.5)

    def test_is_of_each_target(self):
        both = Estimate(torch.tensor([[2.0], [4.0]]), torch.ones(2, 1), torch.tensor([7]))
        assert both.spread.tolist() == [0.5, 0.25]

    def test_of_zeros_that_are_certain_is_zero_and_of_zeros_that_are_not_infinite(self):
        assert float(estimate([0.0, 0.0], [0.0, 0.0]).spread) == 0
        assert float(estimate([0.0, 0.0], [0.0, 1.0]).spread) == float("inf")
        assert float(estimate([1.0, 0.0], [0.0, float("inf")]).spread) == float("inf")


class Counted:
    """A masking of which sample s of picture b has the score 1000 b + s, and that knows what it was asked for."""

    def __init__(self, *counts):
        self.counts, self.asked = counts, []
        self.evidence = SimpleNamespace(inputs=torch.zeros(len(counts), 3, 2, 2), everyone=[None])

    def of(self, rows, samples):
        self.asked.append({row: each.tolist() for row, each in zip(rows, samples, strict=True)})
        return [(1000.0 * row + each)[:, None] for row, each in zip(rows, samples, strict=True)]

    def settled(self, tried, maps):
        return self, self.of(range(len(tried)), tried), None


def by_count(needed):
    """Estimates that are certain of picture b after `needed[b]` samples, and check what scores they are given."""

    def made(rows, scores):
        assert [each[:, 0].tolist() for each in scores] == [
            [1000.0 * row + sample for sample in range(len(each))] for row, each in zip(rows, scores, strict=True)
        ]
        return [
            Estimate(ONES[None], ONES[None] * (1.0 if len(each) < needed[row] else 0.1), ONES)
            for row, each in zip(rows, scores, strict=True)
        ]

    return made


def test_without_a_tolerance_each_picture_gets_all_its_samples():
    masking = Counted(7, 3, 0)
    found = sampled(masking, 0, [2, 2, 2], by_count([0, 0, 0]))
    assert [each.samples for each in found] == [7, 3, 0]
    assert masking.asked == [{0: [0, 1], 1: [0, 1], 2: []}, {0: [*range(2, 7)], 1: [2], 2: []}]


def test_with_a_tolerance_each_picture_stops_once_its_spread_is_small_enough():
    masking = Counted(1000, 1000, 25)
    found = sampled(masking, 0.5, [10, 10, 10], by_count([35, 10, 10_000]))
    assert [each.samples for each in found] == [40, 10, 25]
    assert [sorted(each) for each in masking.asked[2:]] == [[0, 2], [0, 2], [0]]
    assert [float(each.spread) for each in found] == pytest.approx([0.1, 0.1, 1])


def test_it_looks_after_the_first_blocks_and_rounds_grow_by_a_quarter():
    masking = Counted(10_000)
    looks = []

    def seen(rows, scores):
        looks.append(len(scores[0]) // 10)
        return by_count([100])(rows, scores)

    sampled(masking, 0.5, [10], seen)
    assert looks == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    looks.clear()
    assert sampled(masking, 0.5, [10], seen, first=4)[0].samples == 100
    assert looks == [4, 5, 6, 7, 8, 10]


def test_ends_come_before_the_blocks():
    masking = Counted(32, 2)
    found = sampled(masking, 0.5, [10, 0], by_count([13, 0]), ends=2)
    assert [each.samples for each in found] == [22, 2]
    assert masking.asked[0] == {0: [*range(12)], 1: [0, 1]}


def test_a_picture_takes_its_own_blocks_as_it_would_alone():
    needed, blocks = [35, 35], [4, 10]
    together = sampled(Counted(100, 100), 0.5, blocks, by_count(needed))
    assert [each.samples for each in together] == [36 + 4, 40]
    assert sampled(Counted(100), 0.5, blocks[:1], by_count(needed[:1]))[0].samples == 40


def test_a_spread_that_is_no_number_is_not_small_enough():
    nothing = Estimate(ONES[None], ONES[None] * torch.nan, ONES)
    assert sampled(Counted(30), 0.5, [10], lambda rows, scores: [nothing for _ in rows])[0].samples == 30


def test_how_well_bfloat16_agrees_is_told_of_each_picture_and_tried_on_the_first_blocks():
    class Tried(Counted):
        def settled(self, tried, maps):
            self.tried = [len(each) for each in tried]
            maps(1, self.of([1], tried[1:])[0])
            return self, self.of([0, 1], tried), torch.tensor([0.5, 1.0])

    masking = Tried(30, 3)
    found = sampled(masking, 0, [5, 5], by_count([0, 0]), first=2)
    assert masking.tried == [10, 3]
    assert [each.checks["bfloat16_agreement"].tolist() for each in found] == [[0.5], [1.0]]


def test_what_is_not_random_has_no_spread():
    assert Estimate(ONES[None], None, ONES).spread.tolist() == [0]
