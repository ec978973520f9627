"""What `xai explain` and every method's subcommand do: a run from the command line, with its messages and exit code."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer

from xai_cli.classifiers.options import ModelOptions
from xai_cli.cli.config import build
from xai_cli.engine.checks import warnings
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.methods import find_method
from xai_cli.methods.contract import Method

FAILED, USAGE, SOME_FAILED, NO_INPUT, NO_OUTPUT = 1, 2, 3, 4, 5
_SHOWN_FAILURES = 10


def explain(
    context: typer.Context,
    methods: Sequence[Method],
    images: list[str] | None,
    model: ModelOptions,
    run: RunOptions,
    drawing: DrawingOptions,
    inputs: InputOptions,
) -> None:
    """Explains the pictures; prints the path of each map to stdout and everything else to stderr."""
    if not images and inputs.files_from is None:
        raise typer.BadParameter("expected pictures or folders, found none; give some, or a list with --files-from")
    # Found out later, in the middle of a run, it would look like a fault of the disk.
    if inputs.files_from not in (None, "-") and not Path(inputs.files_from).exists():
        raise typer.BadParameter(f"--files-from expects a list of names, found nothing at {inputs.files_from}")
    found = _found(images or [], inputs, run)
    if context.get_parameter_source("model").name == "DEFAULT":  # type: ignore[union-attr]
        _say(f"no --model given: using {model.model}, which knows ten drawn objects; for photographs give for instance "
             "--model timm/resnet50")  # fmt: skip
    # A model, or the library that loads it, may print; standard output is for paths alone.
    paths = sys.stdout
    with redirect_stdout(sys.stderr), _mistakes_told():
        from xai_cli.classifiers.loading import load_classifier
        from xai_cli.engine.explain import explain as engine
        from xai_cli.engine.run_folder import begin_run, describe_run

        classifier = load_classifier(**vars(model))
        for note in classifier.notes:
            _say(note)
        rows = engine(found, classifier, methods, inputs, run, drawing)
        description = describe_run(images or [], classifier, methods, [model, run, drawing, inputs])
        for method, layers in description["layers"].items():
            for layer in layers:
                _say(f"{method} looks at layer {layer}; choose another with --layer")
    with redirect_stdout(sys.stderr), _faults_told():
        begin_run(run.out, description, overwrite=run.overwrite)
        failures = _report(rows, run, paths)
    raise typer.Exit(SOME_FAILED if failures else 0)


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


def _found(images: list[str], inputs: InputOptions, run: RunOptions) -> Iterator[Any]:
    """The pictures of the run; ends the command if there is none, before a model is loaded in vain."""
    from xai_cli.images.sources import find_images

    with _mistakes_told():
        found = find_images(images, files_from=inputs.files_from, null=inputs.null, skip=run.out)
        first = next(found, None)
    if first is None:
        _say("no picture found; give files, folders that hold pictures, or a list with --files-from")
        raise typer.Exit(NO_INPUT)
    return _listed(itertools.chain([first], found))


class _ListError(Exception):
    """The list of pictures cannot be read on."""


def _listed(images: Iterator[Any]) -> Iterator[Any]:
    """The same pictures; a fault of the list is told apart from one of the output."""
    try:
        yield from images
    except (OSError, ValueError) as error:
        raise _ListError(str(error)) from error


def _report(rows: Iterator[dict[str, Any]], run: RunOptions, paths: TextIO) -> int:
    """Shows progress, prints paths to `paths`, tells of failures; returns how many rows failed."""
    from tqdm import tqdm

    done = failures = 0
    for row in tqdm(rows, unit="map", disable=not sys.stderr.isatty()):
        done += 1
        failure = _failure(row, run.strict)
        if failure is None:
            tqdm.write(str(run.out / row["files"].get("png", row["files"]["npy"])), file=paths)
            continue
        failures += 1
        if failures <= _SHOWN_FAILURES:
            tqdm.write(f"xai: {ascii(row['key'])[1:-1]}: {failure}", file=sys.stderr)
    _say(
        f"{done - failures} maps in {run.out}"
        + (f", {failures} failed: see {run.out}/manifest.jsonl" if failures else "")
    )
    return failures


def _failure(row: dict[str, Any], strict: bool) -> str | None:
    if row["status"] == "error":
        return f"{row['message']} ({row['stage']}: {row['type']})"
    # The row's own warnings also tell of harmless things, such as a transparent picture.
    return ("; ".join(warnings(row["checks"])) or None) if strict else None


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
    """What goes wrong during a run becomes one sentence: 2 for a folder in use, 5 for the disk, 1 for the model."""
    from xai_cli.engine.attributing import HopelessError

    try:
        yield
    except BrokenPipeError:
        raise
    except (FileExistsError, _ListError) as error:
        _fail(error, USAGE)
    except OSError as error:
        _fail(error, NO_OUTPUT)
    except HopelessError as error:
        _fail(error, FAILED)


def _fail(error: Exception, code: int) -> NoReturn:
    _say(f"error: {error}")
    raise typer.Exit(code) from error


def _say(message: str) -> None:
    print(f"xai: {message}", file=sys.stderr)
