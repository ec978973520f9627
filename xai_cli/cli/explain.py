"""What `xai explain` and every method's subcommand do: a run from the command line, with its messages and exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from xai_cli.classifiers.options import ModelOptions
from xai_cli.cli.config import build
from xai_cli.cli.report import Report, ShellOptions, counted, say, say_undrawn
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.methods import find_method
from xai_cli.methods.contract import Method
from xai_cli.sentences import printable

if TYPE_CHECKING:
    from xai_cli.engine.run import Run

_GOES_ON = "the same command (without --overwrite) goes on with the rest"
FAILED, USAGE, SOME_FAILED, NO_INPUT, NO_OUTPUT = 1, 2, 3, 4, 5


def explain(
    context: typer.Context,
    methods: Sequence[Method],
    images: list[str] | None,
    model: ModelOptions,
    run: RunOptions,
    drawing: DrawingOptions,
    inputs: InputOptions,
    shell: ShellOptions,
) -> None:
    """Explains the pictures that have not been explained yet, and ends the command with the exit code of all."""
    _check(images, inputs, run)
    report = Report(shell, run.out, run.strict, run.batch_size, sys.stdout)
    if context.get_parameter_source("model").name == "DEFAULT" and not shell.dry_run:  # type: ignore[union-attr]
        report.note(f"no --model given: using {model.model}, which knows ten drawn objects; for photographs give for "
                    "instance --model timm/resnet50")  # fmt: skip
    # A model, or the library that loads it, may print; standard output is for results alone.
    with redirect_stdout(sys.stderr):
        from xai_cli.engine.run import Run

        asked = Run(images or [], methods, model, run, drawing, inputs, report.note)
        code = _plan(asked, report) if shell.dry_run else _run(asked, report)
    raise typer.Exit(code)


def _plan(run: Run, report: Report) -> int:
    """Prints what would be done."""
    with _faults_told():
        report.plan(run.plan())
        if run.undrawn[0]:
            report.note(f"{counted(run.undrawn[0], 'maps')} yet to be drawn")
    return 0 if run.listed else _no_input()


def _run(run: Run, report: Report) -> int:
    """Explains what is owed and shows it; returns the exit code of the whole run."""
    from xai_cli.engine.stopping import Interrupted, Stop

    try:
        with Stop() as stop, _faults_told(), run.folder() as folder:
            # Closed at once, whatever ends the showing: nothing more is written then.
            with closing(run.records(folder, stop)) as records:
                new = report.show(records)
            if not run.listed:
                return _no_input()
            with closing(run.drawn(folder, stop)) as drawn:
                drawings = report.show_drawn(drawn)
            maps, pictures = run.undrawn
            say_undrawn(maps)
            counts = run.finish(folder, new=new + drawings > 0)
            failed = report.summary(counts, new) + pictures
            return SOME_FAILED if report.options.fails(failed, counts.total()) else 0
    except Interrupted as end:
        say(f"stopped by {signal.Signals(end.number).name}; {_GOES_ON}")
        return 128 + end.number


def chosen_methods(context: typer.Context, names: Sequence[str]) -> list[Method]:
    """The methods called `names`, each once, with the options that the configuration's sections give them."""
    if not names:
        raise typer.BadParameter("expected at least one method, found none; see 'xai methods'")
    sections = context.meta.get("sections", {})
    methods = []
    for name in dict.fromkeys(names):
        try:
            methods.append(build(find_method(name), sections.get(name, {})))
        except LookupError as error:
            raise typer.BadParameter(str(error)) from error
    return methods  # type: ignore[return-value]  # find_method gives methods only


def _check(images: list[str] | None, inputs: InputOptions, run: RunOptions) -> None:
    if not images and inputs.files_from is None:
        raise typer.BadParameter("expected pictures or folders, found none; give some, or a list with --files-from")
    # Found out later, in the middle of a run, it would look like a fault of the disk.
    if inputs.files_from not in (None, "-") and not Path(inputs.files_from).exists():
        shown = printable(str(inputs.files_from))
        raise typer.BadParameter(f"--files-from expects a list of names, found nothing at {shown}")
    if inputs.null and inputs.files_from is None and "-" not in (images or []):
        raise typer.BadParameter("--null says how a list ends its names, found no list; give - or --files-from")
    if run.overwrite and inputs.shard:
        raise typer.BadParameter("--overwrite would remove the other shards' work; remove the folder, or give another")


def _no_input() -> int:
    say("no picture found; give files, folders that hold pictures, or a list with --files-from")
    return NO_INPUT


@contextmanager
def _faults_told() -> Iterator[None]:
    """What goes wrong becomes one sentence: 2 for a mistake or another run, 5 for the disk, 1 for the model."""
    from xai_cli.engine.outcomes import HopelessError
    from xai_cli.engine.run import Mistake
    from xai_cli.engine.run_folder import AccountingError, Refused

    try:
        yield
    except BrokenPipeError:
        raise
    except (Refused, Mistake) as error:
        _fail(error, USAGE)
    except OSError as error:
        _fail(f"{error}; what is done is kept, {_GOES_ON}", NO_OUTPUT)
    except (HopelessError, AccountingError) as error:
        _fail(error, FAILED)


def _fail(error: Exception | str, code: int) -> NoReturn:
    say(f"error: {error}")
    raise typer.Exit(code) from (error if isinstance(error, Exception) else None)
