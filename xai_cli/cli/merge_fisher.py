"""What `xai merge-fisher` does: checkpoints of one architecture become one, and what it is worth is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from xai_cli.classifiers.options import ModelOptions
from xai_cli.cli.effects import refuse_idle
from xai_cli.cli.fisher import SOME_FAILED, checked_out, faults_told, shown, stoppable
from xai_cli.cli.report import say
from xai_cli.merging.effects import idle_in_merge
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions
from xai_cli.options import Option, Options
from xai_cli.sentences import printable

if TYPE_CHECKING:
    from xai_cli.merging.provenance import Row


@dataclass(frozen=True)
class MergedFile(Options):
    """What is written, and what is printed."""

    panel: ClassVar[str] = "Files"

    out: Annotated[Path | None, Option("The file to write, .safetensors.", short="o")] = None
    overwrite: Annotated[bool, Option("Make the file again, if it is there.")] = False
    json: Annotated[
        bool,
        Option(
            "Print JSON instead of the file's path: an object for each evaluated model, then the "
            "merge's path, coefficients and shares of floored entries."
        ),
    ] = False


def merge_fisher(
    context: typer.Context,
    merge: MergeOptions,
    fisher: FisherOptions,
    files: MergedFile,
    model: ModelOptions,
    *,
    checkpoints: list[Path] | None,
) -> None:
    """Merge fine-tuned checkpoints of one model into one, each parameter weighted by its Fisher information.

    Fishers are given (--fisher, made by 'xai fisher') or estimated on pictures (--data). With --eval, the accuracies of
    every input, of the plain mean and of the merge are told; --grid or --random search for the best coefficients.
    Printed is the path of the file, whose header tells what it was made of.

    Exit code 3 if some pictures could not be read, 4 if there is none.
    """
    if model.checkpoint is not None:
        raise typer.BadParameter("--checkpoint is for one model; name the checkpoints to merge one after the other")
    refuse_idle(context, idle_in_merge(merge, fisher))
    stdout = sys.stdout
    with redirect_stdout(sys.stderr), stoppable() as stop, faults_told():
        from xai_cli.merging.dry_run import dry_run_lines
        from xai_cli.merging.inputs import open_inputs
        from xai_cli.merging.job import Job

        inputs = open_inputs(checkpoints or [], model, merge)
        for note in inputs.notes:
            say(f"note: {note}")
        if merge.dry_run:
            stdout.writelines(f"{line}\n" for line in dry_run_lines(inputs, merge, fisher, files.out))
            return
        out = checked_out(files.out)
        job = Job(inputs, merge, fisher, out, overwrite=files.overwrite, progress=shown(stop), tell=say)
        found = job.run()
        for line in _table(found.evaluation):
            say(line)
        if files.json:
            last = {"path": str(out), "coefficients": found.coefficients, "floored": found.floored}
            stdout.writelines(json.dumps(row) + "\n" for row in (*found.evaluation, last))
        else:
            print(printable(str(out)) if stdout.isatty() else out, file=stdout)
    raise typer.Exit(SOME_FAILED if found.left_out else 0)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """A line for every model, its accuracies on all tasks below their names."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["accuracy"]))
    names = [_named(row) for row in rows]
    width = max(map(len, names), default=0)
    if rows:
        yield "  ".join([" " * width, *(printable(task) for task in tasks), "mean"])
    for row, name in zip(rows, names, strict=True):
        numbers = {**row["accuracy"], "mean": row["mean"]}
        cells = [_share(numbers.get(task)).rjust(len(printable(task))) for task in (*tasks, "mean")]
        yield "  ".join([name.ljust(width), *cells])


def _named(row: Row) -> str:
    if row["coefficients"] is None:
        return printable(row["name"])
    return f"{row['name']} ({', '.join(f'{each:.3g}' for each in row['coefficients'])})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
