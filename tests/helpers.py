"""The one comparison of arrays, which says where it failed most, and the command line as a function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from typer.testing import CliRunner

from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.overview import write_overview
from xai_cli.engine.request import Request, describe_found
from xai_cli.engine.run_folder import RunFolder
from xai_cli.engine.stopping import Stop
from xai_cli.images.sources import ImageRef
from xai_cli.methods.contract import Method
from xai_cli.outputs.manifest import Row

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier


def assert_close(actual: ArrayLike, expected: ArrayLike, *, rtol: float, atol: float) -> None:
    """Fails unless shapes agree and `|actual - expected| <= atol + rtol |expected|` everywhere, NaN only beside NaN.

    The message gives the index where the bound is missed most, both values there, and their ratio.
    """
    found, wanted = (
        np.asarray(getattr(each, "detach", lambda each=each: each)(), np.float64) for each in (actual, expected)
    )
    assert found.shape == wanted.shape, f"shape {found.shape}, expected {wanted.shape}"
    with np.errstate(invalid="ignore", divide="ignore"):
        same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
        excess = np.where(same, 0.0, np.abs(found - wanted) - (atol + rtol * np.abs(wanted)))
        excess = np.where(np.isnan(excess), np.inf, excess)
        if not (excess > 0).any():
            return
        worst = np.unravel_index(excess.argmax(), excess.shape)
        ratio = found[worst] / wanted[worst]
    raise AssertionError(
        f"{np.count_nonzero(excess > 0)} of {excess.size} values differ, most at [{', '.join(map(str, worst))}]: "
        f"found {found[worst]:.9g}, expected {wanted[worst]:.9g}, ratio {ratio:.6g}"
    )


def explained(
    images: Iterable[ImageRef],
    classifier: Classifier,
    methods: Sequence[Method],
    run: RunOptions,
    drawing: DrawingOptions | None = None,
    inputs: InputOptions | None = None,
) -> list[Row]:
    """The rows of a run from Python, in the order of the pictures; its folder is complete."""
    from xai_cli.engine.explain import Stations, explain

    drawing, inputs = drawing or DrawingOptions(), inputs or InputOptions()
    request = Request.of([], methods, [run, drawing, inputs])
    with RunFolder(run.out, request, retry_errors=run.retry_errors) as folder:
        stations = Stations.of(classifier, methods, inputs, run, drawing)
        folder.begin(describe_found(classifier, methods))
        owed = folder.owed(images, front=drawing.overview)
        rows = [row for record in explain(owed, stations, folder, run, Stop()) for row in record]
        write_overview(run.out, folder.settle(), [method.name for method in methods], inputs, drawing)
    return rows


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code, the lines on standard output, and all it said on standard error."""

    code: int
    paths: list[str]
    said: str


def run_xai(*arguments: object, stdin: str | bytes = "") -> Answer:
    """Runs `xai` with these arguments in this process. An exception that would end it with a traceback is raised."""
    from xai_cli.cli.main import app

    result = CliRunner().invoke(app, [*map(str, arguments)], prog_name="xai", input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout.splitlines(), unboxed(result.stderr))


def unboxed(text: str) -> str:
    """The words of a message on one line, without the box that Typer draws around usage errors."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "╭─╮│╰╯"), " ")).split())
