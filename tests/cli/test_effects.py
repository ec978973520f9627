"""Options without effect are refused, typed or in a file, and those with an effect are not."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers import unboxed
from typer.testing import CliRunner

from xai_cli.classifiers.options import ModelOptions
from xai_cli.cli.command import add_command
from xai_cli.cli.effects import refuse_idle
from xai_cli.cli.merge_fisher import MergedFile
from xai_cli.merging.effects import idle_in_fisher, idle_in_merge
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions


def said(*arguments: object) -> str:
    """What `merge` or `fisher` with these arguments says; they do nothing but refuse."""
    app = typer.Typer()

    def merge(context: typer.Context, merge: MergeOptions, fisher: FisherOptions, *rest: object) -> None:
        refuse_idle(context, idle_in_merge(merge, fisher))

    def fisher(context: typer.Context, options: FisherOptions, *rest: object) -> None:
        refuse_idle(context, idle_in_fisher(options))

    shared: dict[str, Any] = {"sections": {}, "help": "", "panel": ""}
    add_command(app, "merge", merge, (MergeOptions, FisherOptions, MergedFile, ModelOptions), **shared)
    add_command(app, "fisher", fisher, (FisherOptions, ModelOptions), **shared)
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 2 * bool(result.stderr), result.exception
    return unboxed(result.stderr)


@pytest.mark.parametrize(("command", "flag", "why"), [
    ("fisher --no-fold", "--no-fold", "on a Fisher, which is computed in float32"),
    ("fisher --dtype float16", "--dtype", "on a Fisher, which"),
    ("fisher --compile", "--compile", "on a Fisher, which"),
    ("fisher --estimator expected --probes 1", "--probes", "with --estimator expected, which draws nothing"),
    ("fisher --estimator empirical --seed 0", "--seed", "with --estimator empirical, which draws nothing"),
    ("fisher --labels x", "--labels", "without --estimator empirical"),
    ("merge --method average --floor 0.1", "--floor", "with --method average"),
    ("merge --method average --normalize l2", "--normalize", "with --method average"),
    ("merge --method average --estimator eig --probes 2", "--estimator", "with --method average"),
    ("merge --method average -n 7", "--count", "with --method average, which reads no pictures"),
    ("merge --method average --regmean-scale 1", "--regmean-scale", "without --method regmean"),
    ("merge --method regmean --data d --params x", "--params", "with --method regmean"),
    ("merge --method regmean --data d --estimator sampled", "--estimator", "with --method regmean"),
    ("merge --data d --regmean-scale 1", "--regmean-scale", "without --method regmean"),
    ("merge --fisher f --estimator sampled", "--estimator", "with --fisher, since nothing is estimated"),
    ("merge --fisher f -n 3", "--count", "with --fisher, since"),
    ("merge --fisher f --seed 1", "--seed", "without --random, since nothing is drawn"),
    ("merge --data d --estimator expected --seed 1", "--seed", "with --estimator expected, which draws nothing"),
    ("merge --data d --estimator expected --random 3 --eval e --probes 1", "--probes", "with --estimator expected"),
    ("merge --fisher f --batch-size 3", "--batch-size", "without --data, --eval or --recalibrate-bn, since no picture"),
    ("merge --fisher f --crop-mode squash", "--crop-mode", "without --data, --eval or"),
    ("merge --fisher f --class-names x --labels y", "--labels", "with --class-names"),
    ("merge --fisher f --random-weights", "--random-weights", "on a merge, which takes the checkpoints' own weights"),
    ("merge --fisher f --dtype float32", "--dtype", "on a merge, which takes"),
    ("merge --dry-run --json", "--json", "with --dry-run"),
])  # fmt: skip
def test_what_changes_nothing_is_refused(command: str, flag: str, why: str) -> None:
    assert f"{flag} has no effect {why}" in said(*command.split())
    assert "; leave it out" in said(*command.split())


@pytest.mark.parametrize("command", [
    "fisher --estimator importance --probes 3 --seed 1 -n 7 --params x --batch-size 2 --device cpu --crop-mode squash",
    "fisher --probes 3 --seed 1", "fisher --estimator empirical --labels x",
    "merge --data d --probes 3 --seed 1 -n 7 --params x --batch-size 2 --floor 0.1 --normalize trace --labels x",
    "merge --method regmean --data d -n 7 --regmean-scale 0.5", "merge --method average --coefficients 1,2",
    "merge --method average --random 3 --seed 1 --eval e --batch-size 3 --crop-mode squash",
    "merge --data d --estimator expected --random 3 --seed 1 --eval e", "merge --fisher f --class-names x --dry-run",
])  # fmt: skip
def test_what_changes_something_is_not(command: str) -> None:
    assert said(*command.split()) == ""


def test_a_file_of_options_is_no_better(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("method: average\nfloor: 0.1\n")
    assert "--floor has no effect with --method average; leave it out" in said("merge", "--config", path)
    path.write_text("fold: false\n")
    assert "--no-fold has no effect on a Fisher" in said("fisher", "--config", path)
    path.write_text("method: average\n")
    assert said("merge", "--config", path) == ""


def test_the_tables_name_options_that_there_are() -> None:
    known = {field.name for part in (MergeOptions, FisherOptions, MergedFile, ModelOptions) for field in fields(part)}
    merges = [MergeOptions(**given) for given in ({"method": "average"}, {"fisher": ["f"], "class_names": ["c"]},
                                                 {"data": ["d"]}, {"dry_run": True})]  # type: ignore[arg-type]  # fmt: skip
    for options in (FisherOptions(), FisherOptions(estimator="expected")):
        for idle in (idle_in_fisher(options), *(idle_in_merge(merge, options) for merge in merges)):
            assert {name for names in idle.values() for name in names} <= known
