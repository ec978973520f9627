"""What `xai fisher` and `xai combine-fishers` do: statistics of a model become a file, whose path is printed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, NoReturn

import typer

from xai_cli.classifiers.options import ModelOptions
from xai_cli.cli.report import counted, say
from xai_cli.engine.stopping import Interrupted, Stop
from xai_cli.merging.options import FisherOptions
from xai_cli.options import Option, Options
from xai_cli.sentences import printable, reason

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.merging.pictures import Batch
    from xai_cli.merging.statistics import About

FAILED, USAGE, SOME_FAILED, NO_INPUT, NO_OUTPUT = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class FileOptions(Options):
    """What is read and what is written."""

    panel: ClassVar[str] = "Files"

    data: Annotated[Path | None, Option("Folder of pictures like those that the model was trained on.")] = None
    out: Annotated[Path | None, Option("The file to write, .safetensors.", short="o")] = None
    overwrite: Annotated[bool, Option("Make the file again, if it is there.")] = False


def fisher(context: typer.Context, model: ModelOptions, options: FisherOptions, files: FileOptions) -> None:
    """Estimate the diagonal of a model's Fisher information on a folder of pictures, and write it to a file.

    The file has the names of the model's parameters, float32: of each entry the mean over the pictures of its expected
    squared gradient, each picture's gradient squared by itself. Labels are not needed, but for --estimator empirical.
    Printed is the path of the file. A run that was ended goes on when it is called again.

    Exit code 3 if some pictures could not be read, 4 if there is none.
    """
    if files.data is None:
        raise typer.BadParameter("expected a folder of pictures, found none; give it with --data")
    out = checked_out(files.out, [] if model.checkpoint is None else [model.checkpoint])
    stdout = sys.stdout
    # A model, or the library that loads it, may print; standard output is for results alone.
    with redirect_stdout(sys.stderr), stoppable() as stop, faults_told():
        from xai_cli.merging.fisher import estimate_fisher
        from xai_cli.merging.pictures import labelled
        from xai_cli.outputs.files import alone_at  # brings NumPy

        with alone_at(out):
            classifier = loaded(model)
            pictures = labelled(files.data, classifier.labels, required=options.estimator == "empirical")
            about = estimate_fisher(
                classifier, pictures, options, out,
                progress=shown(stop), tell=say, checkpoint=model.checkpoint, overwrite=files.overwrite,
            )  # fmt: skip
    print(_shown(out), file=stdout)
    say(_summary(about))
    raise typer.Exit(SOME_FAILED if about.skipped else 0)


def combine_fishers(
    fishers: Annotated[list[Path], typer.Argument(help="Files of one model, each from other pictures.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, .safetensors.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make the file again, if it is there.")] = False,
) -> None:
    """Combine Fishers of one model that were estimated on different pictures, and print the path of the file."""
    out = checked_out(out, fishers)
    with stoppable("the same command starts again"), faults_told():
        from xai_cli.merging.statistics import combine, read_statistics
        from xai_cli.outputs.files import alone_at

        with alone_at(out):
            about = combine([read_statistics(path) for path in fishers], out, overwrite=overwrite, tell=say)
    print(_shown(out))
    say(_summary(about))


def loaded(model: ModelOptions) -> Classifier:
    """The model with its own parameters, in float32 whatever it is asked to compute in; what is to be known of it is
    told.
    """
    from xai_cli.classifiers.loading import load_classifier

    classifier = load_classifier(**{**vars(model), "fold": False, "dtype": "float32", "compile": False})
    for note in classifier.notes:
        say(note)
    if model.dtype != "float32":
        say(f"squares of gradients vanish in {model.dtype}: the Fisher is computed in float32")
    return classifier


def checked_out(out: Path | None, inputs: Iterable[Path] = ()) -> Path:
    """The file to write. Raises a usage error if there can be none of that name, or if it is one of the inputs."""
    if out is None or out.suffix != ".safetensors" or out.is_dir():
        found = "none" if out is None else printable(str(out))
        raise typer.BadParameter(f"expected a .safetensors file to write, found {found}; give it with -o")
    if out.exists() and any(path.exists() and out.samefile(path) for path in inputs):
        raise typer.BadParameter(f"-o expects another file than what is read, found {printable(str(out))}; rename it")
    return out


def shown(stop: Stop) -> Callable[[Iterator[Batch], int, int], Iterable[Batch]]:
    """How batches pass: with a bar on a terminal, until the end is asked for, of which none is broken off."""

    def progress(batches: Iterator[Batch], total: int, done: int) -> Iterator[Batch]:
        from tqdm import tqdm

        quiet = not sys.stderr.isatty() or os.environ.get("TERM") == "dumb"
        with stop.gently(), tqdm(total=total, initial=done, unit="picture", disable=quiet) as bar:
            for batch in stop.until(batches):
                yield batch
                bar.update(len(batch[0]))

    return progress


@contextmanager
def stoppable(outlook: str = "the same command goes on from what is done") -> Iterator[Stop]:
    """Inside, a signal ends the command with its exit code, and a sentence that says what comes of it."""
    try:
        with Stop() as stop:
            yield stop
    except Interrupted as end:
        say(f"stopped by {signal.Signals(end.number).name}; {outlook}")
        raise typer.Exit(128 + end.number) from end


@contextmanager
def faults_told() -> Iterator[None]:
    """What goes wrong becomes one sentence: 2 for a mistake, 4 for no picture, 5 for the disk, 1 for the model."""
    from xai_cli.merging.pictures import NoPictures

    try:
        yield
    except BrokenPipeError:
        raise
    except NoPictures as error:
        _fail(error, NO_INPUT)
    except (LookupError, ValueError, FileNotFoundError) as error:
        if isinstance(error, KeyError | IndexError):
            raise  # a mistake of ours
        if isinstance(error, OSError) and error.errno:  # not found by us, but while something was read or written
            _fail_at_disk(error)
        _fail(error, USAGE)
    except OSError as error:
        _fail_at_disk(error)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error.__cause__, Interrupted):
            raise  # a signal while Python imported a module
        advice = "; give a smaller --batch-size" if "memory" in f"{type(error).__name__} {error}".lower() else ""
        _fail(f"the model fails ({type(error).__name__}: {reason(error)}){advice}", FAILED)


def _summary(about: About) -> str:
    made = f", {about.estimator}, {counted(about.probes, 'ways')} back each" if about.estimator else ""
    made += ", BIASED" if about.biased else ""
    lost = f"; {counted(len(about.skipped), 'pictures')} could not be read" if about.skipped else ""
    return f"{about.kind} of {counted(about.n, 'pictures')}{made}{lost}"


def _shown(path: Path) -> str:
    return printable(str(path)) if sys.stdout.isatty() else str(path)


def _fail_at_disk(error: OSError) -> NoReturn:
    _fail(f"{error}; nothing half written is left, and the same command can be given again", NO_OUTPUT)


def _fail(error: Exception | str, code: int) -> NoReturn:
    say(f"error: {error}")
    raise typer.Exit(code) from (error if isinstance(error, Exception) else None)
