"""What `xai explain` and every method's subcommand do: a run from the command line, with its messages and exit code."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from xai_cli.classifiers.options import ModelOptions
from xai_cli.cli.config import build
from xai_cli.cli.report import Report, ShellOptions, say
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.methods import find_method
from xai_cli.methods.contract import Method
from xai_cli.sentences import printable

if TYPE_CHECKING:
    from xai_cli.engine.explain import Stations
    from xai_cli.engine.run_folder import RunFolder
    from xai_cli.engine.stopping import Stop
    from xai_cli.images.sources import ImageRef

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
    command = _Command(images or [], methods, model, run, drawing, inputs, report)
    # A model, or the library that loads it, may print; standard output is for results alone.
    with redirect_stdout(sys.stderr):
        code = command.plan() if shell.dry_run else command.run()
    raise typer.Exit(code)


@dataclass
class _Command:
    """A run from the command line, from its folder to its exit code; `listed` counts what was found, of all shards."""

    images: list[str]
    methods: Sequence[Method]
    model: ModelOptions
    options: RunOptions
    drawing: DrawingOptions
    inputs: InputOptions
    report: Report
    listed: int = 0

    def plan(self) -> int:
        """Prints what would be done."""
        from xai_cli.outputs.files import output_path

        kinds = ["npy"] if self.drawing.render == "none" else ["npy", "png"]
        with _faults_told():
            folder = self._folder()
            folder.look()
            names = [(method.name, kind) for method in self.methods for kind in kinds]
            self.report.plan(
                (
                    str(image.path),
                    [f"{self.options.out}/{output_path(method, image.key, '', kind)}" for method, kind in names],
                )
                for image in self._owed(folder)
            )
            return 0 if self.listed else _no_input()

    def run(self) -> int:
        """Explains what is owed, and returns the exit code."""
        from xai_cli.engine.stopping import Interrupted, Stop

        try:
            with Stop() as stop, _faults_told(), self._folder() as folder:
                tried = self.report.show(self._trial(folder))
                owed = stop.waiting(self._owed(folder))
                first = next(owed, None)
                if not self.listed:
                    return _no_input()
                done = tried
                # A shard without pictures is begun as well: its manifest is missed where shards are joined.
                if first is not None or not folder.begun:
                    done += self._explain(itertools.chain([first] if first else [], owed), folder, stop)
                if done or not folder.finished or self._overview_is_missing():
                    self._finish(folder)
                counts = folder.account.counts()
                failed = self.report.summary(counts, done)
                return SOME_FAILED if self.report.options.fails(failed, counts.total()) else 0
        except Interrupted as end:
            say(f"stopped by {signal.Signals(end.number).name}; {_GOES_ON}")
            return 128 + end.number

    def _folder(self) -> RunFolder:
        from xai_cli.engine.request import Request
        from xai_cli.engine.run_folder import RunFolder

        part = self.inputs.part
        given = [self.model, self.options, self.drawing, self.inputs]
        with _mistakes_told():
            request = Request.of(self.images, self.methods, given, shards=part[1] if part else 1)
        options = self.options
        return RunFolder(
            options.out, request, shard=part, overwrite=options.overwrite, retry_errors=options.retry_errors
        )

    def _owed(self, folder: RunFolder) -> Iterator[ImageRef]:
        """The pictures that are asked for and not done."""
        # Those at the front are for the overview, on which a few may be missing because they failed.
        front = 4 * self.drawing.overview
        asked = self.inputs.select(self._found())
        return folder.owed(asked, front=front)

    def _found(self) -> Iterator[ImageRef]:
        """All pictures; a fault of their list is told apart from one of the output."""
        from xai_cli.images.sources import find_images

        inputs = self.inputs
        try:
            for image in find_images(
                self.images, files_from=inputs.files_from, null=inputs.null, skip=self.options.out
            ):
                self.listed += 1
                yield image
        except (OSError, ValueError) as error:
            raise _ListError(str(error)) from error

    def _trial(self, folder: RunFolder) -> Iterator[list[dict[str, object]]]:
        """The records of pictures on which an earlier process may have died."""
        if not folder.suspects:
            return
        from xai_cli.engine.trial import try_alone

        self.report.note(f"an earlier run died here: {len(folder.suspects)} pictures that it had begun are tried alone")
        job = self.model, self.methods, self.inputs, self.options, self.drawing
        for image, rows, found in try_alone(list(folder.suspects), job):
            folder.begin(found)
            record = folder.commit(rows)
            folder.cleared(image, record)
            yield record

    def _explain(self, owed: Iterator[ImageRef], folder: RunFolder, stop: Stop) -> int:
        from xai_cli.engine.explain import explain
        from xai_cli.engine.memory import share_one_heap

        share_one_heap()
        with _mistakes_told():
            stations = self._stations(folder)
        # Closed at once, whatever ends the showing: nothing more is written then.
        with closing(explain(owed, stations, folder, self.options, stop)) as records:
            return self.report.show(stop.made_gently(records))

    def _stations(self, folder: RunFolder) -> Stations:
        """The model, loaded, and the folder begun."""
        from xai_cli.classifiers.loading import load_classifier
        from xai_cli.engine.explain import Stations
        from xai_cli.engine.request import describe_found

        classifier = load_classifier(**vars(self.model))
        for note in classifier.notes:
            self.report.note(note)
        proven = folder.ledger.proven
        stations = Stations.of(classifier, self.methods, self.inputs, self.options, self.drawing, proven=proven)
        found = describe_found(classifier, self.methods)
        for method, layers in found["layers"].items():
            for layer in layers:
                self.report.note(f"{method} looks at layer {layer}; choose another with --layer")
        with _faults_told():
            for change in folder.begin(found):
                self.report.note(f"since this run began: {change}; maps may differ in their last digits")
        # Those that could not be tried alone are explained like any other.
        folder.suspects.clear()
        if not folder.locked:
            self.report.note(f"{self.options.out} cannot be locked: start no second run in it")
        return stations

    def _finish(self, folder: RunFolder) -> None:
        """The account of all pictures, and the contact sheet."""
        records = folder.settle()
        if self.inputs.part is None and self.drawing.overview:
            from xai_cli.engine.overview import write_overview

            names = [method.name for method in self.methods]
            write_overview(self.options.out, records, names, self.inputs, self.drawing)

    def _overview_is_missing(self) -> bool:
        return (
            self.inputs.part is None and self.drawing.overview > 0 and not (self.options.out / "overview.png").exists()
        )


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


class _ListError(Exception):
    """The list of pictures cannot be read on."""


def _no_input() -> int:
    say("no picture found; give files, folders that hold pictures, or a list with --files-from")
    return NO_INPUT


@contextmanager
def _mistakes_told() -> Iterator[None]:
    """What a user asked for and cannot have becomes one sentence and exit code 2."""
    try:
        yield
    except (LookupError, ValueError, OSError) as error:
        if isinstance(error, KeyError | IndexError):
            raise  # a mistake of ours
        _fail(error, USAGE)


@contextmanager
def _faults_told() -> Iterator[None]:
    """What goes wrong in a run's folder becomes one sentence: 2 for another run, 5 for the disk, 1 for the model."""
    from xai_cli.engine.outcomes import HopelessError
    from xai_cli.engine.run_folder import AccountingError, Refused

    try:
        yield
    except BrokenPipeError:
        raise
    except (Refused, _ListError) as error:
        _fail(error, USAGE)
    except OSError as error:
        _fail(f"{error}; what is done is kept, {_GOES_ON}", NO_OUTPUT)
    except (HopelessError, AccountingError) as error:
        _fail(error, FAILED)


def _fail(error: Exception | str, code: int) -> NoReturn:
    say(f"error: {error}")
    raise typer.Exit(code) from (error if isinstance(error, Exception) else None)
