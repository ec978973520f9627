"""Candidates, the best of them, the table, and an interrupted search."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from helpers import assert_close

from xai_cli.merging.search import Trial, begun, best, dirichlet, grid, search, write_table


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (2, [(0.5, 0.5), (1, 0), (0, 1)]),
        (3, [(0.5, 0.5), (1, 0), (0, 1)]),
        (5, [(0.5, 0.5), (1, 0), (0.75, 0.25), (0.25, 0.75), (0, 1)]),
    ],
)
def test_a_grid_goes_from_one_model_to_the_other_after_equal_coefficients(
    count: int, expected: list[tuple[float, float]]
) -> None:
    assert grid(count) == expected


def test_a_grid_of_eleven_has_eleven_candidates_that_sum_to_one() -> None:
    candidates = grid(11)
    assert len(candidates) == 11
    assert_close([sum(each) for each in candidates], [1] * 11, rtol=0, atol=0)


def test_a_grid_of_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 steps or more, from \(1, 0\) to \(0, 1\), found 1; give --grid 11"):
        grid(1)


def test_draws_are_those_of_their_seed_and_begin_alike() -> None:
    drawn = dirichlet(5, 3, seed=7)
    assert drawn[0] == (1 / 3, 1 / 3, 1 / 3)
    assert len(drawn) == 6
    assert drawn == dirichlet(9, 3, seed=7)[:6]
    assert set(drawn[1:]).isdisjoint(dirichlet(5, 3, seed=8)[1:])
    # The same on every machine: a table of last year stays comparable.
    assert_close(drawn[1], [0.24345661, 0.10173304, 0.65481035], rtol=0, atol=1e-8)


def test_draws_are_flat() -> None:
    # Each coefficient of a flat Dirichlet of three has mean 1/3 and variance 1/18, whose error here is 0.002.
    drawn = [each[0] for each in dirichlet(4000, 3, seed=0)[1:]]
    mean = sum(drawn) / 4000
    assert_close(mean, 1 / 3, rtol=0, atol=4 * (1 / 18 / 4000) ** 0.5)
    assert_close(sum((each - mean) ** 2 for each in drawn) / 4000, 1 / 18, rtol=0, atol=0.005)


def test_the_best_has_the_largest_mean_and_equal_coefficients_win_ties() -> None:
    trials = search(grid(3), lambda c: {"day": c[0], "night": c[1]})
    assert [trial.mean for trial in trials] == [0.5, 0.5, 0.5]
    assert best(trials).coefficients == (0.5, 0.5)
    assert best([*trials, Trial((0.2, 0.8), {"day": 0.1, "night": 1.0})]).coefficients == (0.2, 0.8)


def test_the_table_has_a_line_per_candidate(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [Trial((0.25, 0.75), {"day, sunny": 0.1, "night": 0.3})])
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["coefficient_1", "coefficient_2", "accuracy_day, sunny", "accuracy_night", "mean"],
        ["0.25", "0.75", "0.1", "0.3", "0.2"],
    ]


def test_an_interrupted_search_scores_only_what_is_missing(tmp_path: Path) -> None:
    scored: list[tuple[float, ...]] = []

    def score(candidate: tuple[float, ...]) -> dict[str, float]:
        if len(scored) == 4:
            raise KeyboardInterrupt
        scored.append(candidate)
        return {"day": candidate[0] / 3}

    candidates, partial = dirichlet(6, 2, seed=1), tmp_path / "search.partial"
    with pytest.raises(KeyboardInterrupt):
        search(candidates, score, partial=partial, request="a")
    assert (begun(partial, "a"), begun(partial, "b"), begun(tmp_path / "no", "a")) == (True, False, False)
    rest: list[tuple[float, ...]] = []
    trials = search(candidates, lambda c: rest.append(c) or {"day": c[0] / 3}, partial=partial, request="a")
    assert rest == candidates[4:]
    assert trials == search(candidates, lambda c: {"day": c[0] / 3})


@pytest.mark.parametrize("content", [b'{"request": "other", "trials": [[[1.0], {"day": 0}]]}', b'{"requ', b"[]"])
def test_what_another_search_left_is_not_taken(tmp_path: Path, content: bytes) -> None:
    partial = tmp_path / "search.partial"
    partial.write_bytes(content)
    assert search([(1.0,)], lambda _: {"day": 1.0}, partial=partial, request="a") == [Trial((1.0,), {"day": 1.0})]
