"""What `xai layers` and `xai check` do: a model is looked at, and nothing is written."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn

import typer

from xai_cli.classifiers.options import ModelOptions
from xai_cli.cli.explain import chosen_methods
from xai_cli.cli.report import say
from xai_cli.methods import METHODS
from xai_cli.options import Option, Options
from xai_cli.outputs.manifest import row_line
from xai_cli.sentences import printable

if TYPE_CHECKING:
    from xai_cli.classifiers.classifier import Classifier
    from xai_cli.classifiers.layer_list import Layer
    from xai_cli.classifiers.layers import FeatureLayer
    from xai_cli.engine.check import Case, Verdict

FAILED, USAGE, WANTING = 1, 2, 3
_GRIDS = {"channels-first": "grid", "channels-last": "channels-last grid", "tokens": "tokens"}


@dataclass(frozen=True)
class LayersOptions(Options):
    """What is listed, and how."""

    panel: ClassVar[str] = "List"

    operators: Annotated[
        bool,
        Option("List the operators instead, and what propagation methods make of each: plain (needs no rule), step (it "
               "jumps), its kinds of rules, or refused."),
    ] = False  # fmt: skip
    json: Annotated[bool, Option("Print one JSON object per line.")] = False


@dataclass(frozen=True)
class CheckOptions(Options):
    """What methods are checked on, and how it is told."""

    panel: ClassVar[str] = "Check"

    image: Annotated[Path | None, Option("Picture to check on; without it, the model's example input, noise.")] = None
    target: Annotated[str, Option("predicted, a class by index or name, or A-vs-B.")] = "predicted"
    json: Annotated[bool, Option("Print one JSON object per method.")] = False


def layers(context: typer.Context, model: ModelOptions, options: LayersOptions) -> None:
    """List the layers of a model's forward pass, in its order.

    One line each: name, type, shape of the output for one picture, how a grid of positions is read from it, and which
    one gradcam chooses by itself. Those with a grid can be given as --layer; a grid that no score depends on is not
    shown. A layer whose batch norm is folded in gives the norm's output, and refers to it.
    """
    stdout = sys.stdout
    # A model, or the library that loads it, may print; standard output is for results alone.
    with redirect_stdout(sys.stderr):
        classifier = _loaded(model)
        rows, cells, remarks = _operators(classifier) if options.operators else _layers(classifier)
    stdout.writelines(map(row_line, rows) if options.json else _aligned(cells))
    for remark in remarks:
        say(remark)


def check(context: typer.Context, model: ModelOptions, options: CheckOptions, *, method: list[str]) -> None:
    """Try methods on one picture: which does the model support, and what do the maps keep?

    A method is supported if its map keeps every invariant that is measured, degraded if there is a map with a warning,
    refused if there is none. Measured are the method's own checks and, for all: degenerate (the map is the same
    everywhere), repeatable (difference of two maps of the same picture), batch_gap (difference when another picture is
    beside it; both relative to the largest value), equals_gradient (propagation methods: the plain gradient gives the
    same map), model_untouched.

    Exit code 0 if each --method is supported, else 3. Without --method all are tried, scorecam and ablationcam on 16
    channels, and one that says itself that it does not fit the model is no failure.
    """
    methods = chosen_methods(context, method) if method else [each(**each.trial) for each in METHODS.values()]
    stdout, width = sys.stdout, max(len(each.name) for each in methods)
    counts: Counter[str] = Counter()
    with redirect_stdout(sys.stderr):
        classifier = _loaded(model)
        from xai_cli.engine.check import verdicts

        case = _case(classifier, options)
        if not options.json:
            stdout.write(f"{'method':<{width}}  {'status':<9}  seconds  found\n")
        for verdict in verdicts(case, methods):
            stdout.write(_json_line(verdict, case, options) if options.json else _table_lines(verdict, width))
            stdout.flush()
            counts[verdict.status] += 1
            counts["wanting"] += verdict.status != "supported" and (bool(method) or not verdict.foreseen)
    say(", ".join(f"{counts[status]} {status}" for status in ("supported", "degraded", "refused")))
    raise typer.Exit(WANTING if counts["wanting"] else 0)


# Rows for machines, cells for people, and what is to be said of all.
Listing = tuple[list[dict[str, Any]], list[tuple[str, ...]], list[str]]


def _layers(classifier: Classifier) -> Listing:
    from xai_cli.classifiers.layer_list import list_layers

    found = list_layers(classifier)
    chosen = next((layer.name for layer in found if layer.chosen), None)
    remark = f"gradcam looks at {chosen}" if chosen else "gradcam finds no layer by itself"
    return [*map(_layer_row, found)], [*map(_layer_cells, found)], [f"{len(found)} layers; {remark}"]


def _layer_row(layer: Layer) -> dict[str, Any]:
    row = asdict(layer)
    if layer.grid:
        del row["grid"]["order"]  # thousands of numbers, of Hiera's early layers
    return row


def _layer_cells(layer: Layer) -> tuple[str, ...]:
    shape = "-" if layer.shape is None else "x".join(map(str, layer.shape))
    grid = f"see {layer.norm}" if layer.norm else _grid_told(layer.grid)
    return layer.name, layer.type, shape, grid, "<- gradcam" if layer.chosen else ""


def _grid_told(grid: FeatureLayer | None) -> str:
    if grid is None:
        return ""
    told = f"{_GRIDS[grid.layout]} {grid.height}x{grid.width}" + (f" + {grid.prefix}" if grid.prefix else "")
    return told if grid.order is None else f"{told}, reordered"


def _operators(classifier: Classifier) -> Listing:
    from xai_cli.operators.composites import default_composite
    from xai_cli.operators.plan import PLAIN, REFUSED, STEP

    try:
        plan = classifier.plan
    except ValueError as error:
        _fail(error, FAILED)
    kinds = Counter(step.treatment if step.treatment in (PLAIN, STEP, REFUSED) else "ruled" for step in plan.steps)
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in (PLAIN, STEP, "ruled", REFUSED))
    composite = f"{'with --allow-unruled, ' if plan.refused else ''}lrp takes the composite {default_composite(plan)}"
    cells: list[tuple[str, ...]] = [
        (step.layer or "(model)", step.operator, step.treatment.replace(REFUSED, "REFUSED"), str(step.calls))
        for step in plan.steps
    ]
    return [*map(asdict, plan.steps)], cells, [composite, f"{len(plan.steps)} operators: {counts}"]


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """One line per row, its cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield printable("  ".join(cells).rstrip()) + "\n"


def _case(classifier: Classifier, options: CheckOptions) -> Case:
    """The picture to check on, which is told."""
    from xai_cli.engine.check import Case
    from xai_cli.engine.outcomes import HopelessError
    from xai_cli.images.decode import Broken

    try:
        with _mistakes_told():
            case = Case.of(classifier, options.image, options.target)
    except Broken as broken:
        _fail(f"--image expects a picture, found {options.image}: {broken}", USAGE)
    except HopelessError as error:
        _fail(error, FAILED)
    shown = options.image or "the model's example input, which is noise (--image takes a picture)"
    say(f"checked on {shown}; explained: {_target_told(case)}")
    return case


def _target_told(case: Case) -> str:
    target, labels = case.targets[0], case.classifier.labels
    versus = "" if target.against is None else f" against class {target.against} ({labels[target.against]})"
    return f"class {target.index} ({labels[target.index]}){versus}, {target.how}"


def _json_line(verdict: Verdict, case: Case, options: CheckOptions) -> str:
    target = case.targets[0]
    about = {
        "model": case.classifier.name,
        "image": None if options.image is None else str(options.image),
        "target": {**asdict(target), "name": case.classifier.labels[target.index]},
    }
    return row_line({**about, **verdict.as_row()})


def _table_lines(verdict: Verdict, width: int) -> str:
    """A line of the table, and one below it for each warning."""
    seconds = "-" if verdict.seconds is None else f"{verdict.seconds:.3f}"
    begin = f"{verdict.method:<{width}}  {verdict.status:<9}  {seconds:>7}  "
    chosen = [f"{kind} {name}" for kind, name in (("layer", verdict.layer), ("rule", verdict.rule)) if name]
    # A truth that should worry anyone is among the warnings.
    numbers = [f"{name} {value:.2g}" for name, value in verdict.checks.items() if not isinstance(value, bool)]
    found = [verdict.reason or ", ".join(chosen + numbers), *verdict.warnings]
    return begin + ("\n" + " " * len(begin)).join(map(printable, found)) + "\n"


def _loaded(model: ModelOptions) -> Classifier:
    """The model, with what is to be known of it told."""
    from xai_cli.classifiers.loading import load_classifier

    with _mistakes_told():
        classifier = load_classifier(**vars(model))
    for note in classifier.notes:
        say(note)
    return classifier


@contextmanager
def _mistakes_told() -> Iterator[None]:
    """What a user asked for and cannot have becomes one sentence."""
    try:
        yield
    except (LookupError, ValueError, OSError) as error:
        if isinstance(error, KeyError | IndexError):
            raise  # a mistake of ours
        _fail(error, USAGE)


def _fail(error: Exception | str, code: int) -> NoReturn:
    say(f"error: {error}")
    raise typer.Exit(code) from (error if isinstance(error, Exception) else None)
