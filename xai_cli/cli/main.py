"""The command `xai` and its subcommands.

Exit codes: 0 all well; 1 the run failed; 2 usage or configuration; 3 finished, but some pictures failed or could not be
drawn (or, with --strict, some map failed a check; of `check`, some method did not pass); 4 no picture found; 5 the
output cannot be written; 129, 130, 143 ended by SIGHUP, SIGINT, SIGTERM; 141 standard output closed.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from xai_cli.classifiers.names import LIBRARIES, model_names
from xai_cli.classifiers.options import ModelOptions
from xai_cli.cli.command import add_command
from xai_cli.cli.completion import complete_method
from xai_cli.cli.explain import explain
from xai_cli.cli.fisher import FileOptions, combine_fishers, fisher
from xai_cli.cli.look import CheckOptions, LayersOptions, check, layers
from xai_cli.cli.merge_fisher import MergedFile, merge_fisher
from xai_cli.cli.report import ShellOptions
from xai_cli.cli.runs import errors, merge_manifests, verify
from xai_cli.cli.scenes import finetune_scenes
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.merging.merge_options import MergeOptions
from xai_cli.merging.options import FisherOptions
from xai_cli.methods import METHODS, summary
from xai_cli.methods.contract import Method
from xai_cli.sentences import reason

app = typer.Typer(
    help="Explain image classifiers: folders of pictures in, raw attribution arrays and heatmaps out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PARTS = (ModelOptions, RunOptions, DrawingOptions, InputOptions, ShellOptions)
_IMAGES = Parameter(
    "images",
    Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Argument(help="Pictures, folders (searched recursively), patterns, or - for a list on stdin."),
    ],
)
_METHOD = Parameter(
    "method",
    Parameter.KEYWORD_ONLY,
    default=["saliency", "gradcam", "lrp"],
    annotation=Annotated[
        list[str],
        typer.Option(
            "--method", "-m", help="A method of 'xai methods'; repeat for several.", autocompletion=complete_method
        ),
    ],
)


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    _fill_closed_streams()
    stdout = sys.stdout = _kept_stdout()
    sys.stderr = _deaf_stderr()
    # What Pillow thinks of a file's metadata does not say of which file.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    code: object = 0
    try:
        app()
    except SystemExit as end:
        # Typer calls a reader that has gone a failure like any other.
        code = 141 if isinstance(end.__context__, BrokenPipeError) else end.code
    except KeyboardInterrupt:  # before Typer listens
        code = 130
    except OSError as error:
        code = _not_written(error)
    try:
        stdout.flush()
    except BrokenPipeError:
        code = 141
    except OSError as error:
        code = code or _not_written(error)
    # What could not be written is still in the stream, and Python would complain again when it flushes it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
    # Python takes a moment to end, and would answer an impatient Ctrl-C with a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)  # type: ignore[arg-type]  # what SystemExit carried


def _not_written(error: OSError) -> int:
    print(f"xai: error: standard output cannot be written: {reason(error)}", file=sys.stderr)
    return 5


def _fill_closed_streams() -> None:
    """Opens nothing in the place of streams that our caller closed: a file of ours would get their number, and with it
    whatever a library prints.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  # for good


def _kept_stdout() -> TextIO:
    """Standard output for us alone: whatever else writes to its descriptor, a library in C say, goes to stderr."""
    # File names are bytes; those that are no text must come out as they came in.
    # Line by line, so that whoever reads has each path as soon as its files are in place.
    encoding = sys.getfilesystemencoding()
    kept = os.fdopen(os.dup(1), "w", buffering=1, encoding=encoding, errors="surrogateescape")
    os.dup2(2, 1)
    return kept


def _deaf_stderr() -> TextIO:
    """Standard error, on which writing never fails: a terminal that has been closed is no reason to end a run."""
    raw = io.BufferedWriter(_Deaf(2, "w", closefd=False))
    return io.TextIOWrapper(raw, sys.stderr.encoding, sys.stderr.errors, line_buffering=True)


class _Deaf(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"xai {installed('xai-cli')}")
        raise typer.Exit


@app.command("methods", rich_help_panel="Look around")
def _methods() -> None:
    """List the methods, one line each."""
    for name, method in METHODS.items():
        typer.echo(f"{name}\t{method.family}\t{summary(method)}")


@app.command("models", rich_help_panel="Look around")
def _models(
    library: Annotated[Literal["builtin", "timm", "torchvision", "all"], typer.Argument(help="Whose models.")] = "all",
    pattern: Annotated[str, typer.Argument(help="Only names that match, for instance 'resnet*'.")] = "*",
) -> None:
    """List the models of a library, as --model takes them."""
    for each in LIBRARIES if library == "all" else (library,):
        for name in model_names(each):
            if fnmatch(name, pattern):
                typer.echo(f"{each}/{name}")


def _add_method(method: type[Method]) -> None:
    def run(context: typer.Context, *parts: object, images: list[str] | None) -> None:
        explain(context, parts[:1], images, *parts[1:])  # type: ignore[arg-type]

    add_command(
        app,
        method.name,
        run,
        (method, *_PARTS),
        extra=(_IMAGES,),
        sections=METHODS,
        help=method.__doc__ or "",
        panel="Methods",
    )


def _add_explain() -> None:
    from xai_cli.cli.explain import chosen_methods

    def run(context: typer.Context, *parts: object, images: list[str] | None, method: list[str]) -> None:
        explain(context, chosen_methods(context, method), images, *parts)  # type: ignore[arg-type]

    add_command(
        app, "explain", run, _PARTS, extra=(_IMAGES, _METHOD), sections=METHODS,
        help="Explain pictures by several methods at once; they share reading, the forward pass and the target.",
        panel="Explain",
    )  # fmt: skip


def _help(command: Callable[..., None]) -> str:
    """The paragraphs of a command's docstring, each on one line, because Typer keeps where lines end."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.__doc__ or "").split("\n\n"))


def _add_look() -> None:
    add_command(
        app, "layers", layers, (ModelOptions, LayersOptions), positional=("model",), sections={},
        help=_help(layers), panel="Look around",
    )  # fmt: skip
    add_command(
        app, "check", check, (ModelOptions, CheckOptions), extra=(_METHOD.replace(default=[]),), positional=("model",),
        sections=METHODS, help=_help(check), panel="Look around",
    )  # fmt: skip


def _add_merging() -> None:
    checkpoints = Annotated[list[Path] | None, typer.Argument(help="Checkpoints of one model, .safetensors or .pt.")]
    add_command(
        app, "fisher", fisher, (ModelOptions, FisherOptions, FileOptions), positional=("model",), sections={},
        help=_help(fisher), panel="Merge",
    )  # fmt: skip
    app.command("combine-fishers", rich_help_panel="Merge", help=_help(combine_fishers))(combine_fishers)
    add_command(
        app, "merge-fisher", merge_fisher, (MergeOptions, FisherOptions, MergedFile, ModelOptions), sections={},
        extra=(Parameter("checkpoints", Parameter.KEYWORD_ONLY, default=None, annotation=checkpoints),),
        help=_help(merge_fisher), panel="Merge",
    )  # fmt: skip
    app.command("finetune-scenes", rich_help_panel="Merge", help=_help(finetune_scenes))(finetune_scenes)


_add_explain()
for _method in METHODS.values():
    _add_method(_method)
for _command in (verify, errors, merge_manifests):
    app.command(_command.__name__.replace("_", "-"), rich_help_panel="After a run")(_command)
_add_look()
_add_merging()
