"""What is done with a finished run: verify its files, list its errors, join the manifests of its shards."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from xai_cli.cli.report import say, say_undrawn
from xai_cli.engine.merging import merge_manifests as merge
from xai_cli.engine.verify import read_plan
from xai_cli.engine.verify import verify as findings
from xai_cli.outputs.manifest import InUse, Row, is_sound, latest_records, manifest_name, manifests, row_line
from xai_cli.sentences import printable

USAGE, WRONG, NO_OUTPUT = 2, 3, 5

_Out = Annotated[Path, typer.Argument(help="The folder of the run.", show_default=False)]
_T = TypeVar("_T")


def verify(
    out: _Out, as_json: Annotated[bool, typer.Option("--json", help="One JSON object per finding.")] = False
) -> None:
    """Check every file of a run against its manifest; print what is wrong."""
    counts: Counter[str] = Counter()
    for finding in _read(findings(out, counts)):
        counts["findings"] += 1
        if as_json:
            print(json.dumps(asdict(finding)))
        else:
            print(f"{printable(finding.path)}\t{printable(finding.problem)}")
    say(_summary(counts))
    raise typer.Exit(WRONG if counts["findings"] else 0)


def errors(
    out: _Out,
    null: Annotated[bool, typer.Option("--null", "-0", help="End names with NUL, for 'xargs -0'.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per error instead of names.")] = False,
) -> None:
    """Print the pictures that failed, each once, one per line."""
    end = "\0" if null else "\n"
    left_out = 0
    for path, rows in _read(_failed(out)):
        if as_json:
            sys.stdout.writelines(map(row_line, rows))
        elif sys.stdout.isatty():
            sys.stdout.write(printable(path) + end)
        elif end in path:
            left_out += 1
        else:
            # A name is bytes; whatever the encoding of the stream, it must come out as it stands on the disk.
            sys.stdout.buffer.write(os.fsencode(path + end))
    if left_out:
        say(f"error: {left_out} names hold a new line and are not printed; ask for all with -0")
        raise typer.Exit(USAGE)


def merge_manifests(out: _Out) -> None:
    """Join the manifests of a run's shards into one, draw what waited for all of them, and print its path."""
    try:
        read_plan(out)
        shards = merge(out)
        undrawn = _draw(out, new=shards > 0)
    except (InUse, LookupError, ValueError) as error:
        _fail(error, USAGE)
    except OSError as error:
        _fail(error, NO_OUTPUT)
    merged = out / manifest_name()
    if not shards:
        say("no manifests of shards are left to be joined")
    if merged.exists():
        print(merged)
    if undrawn:
        say_undrawn(undrawn)
        raise typer.Exit(WRONG)


def _draw(out: Path, *, new: bool) -> int:
    """Draws the maps with one scale for all shards, and with `new` records, or if it is missing, the overview.

    Returns how many maps could not be drawn.
    """
    from xai_cli.engine.drawing import draw_again
    from xai_cli.engine.overview import overview_again
    from xai_cli.engine.stopping import Interrupted, Stop

    try:
        with Stop() as stop:
            drawn, undrawn = draw_again(out, stop)
            if new or drawn or not (out / "overview.png").exists():
                overview_again(out)
            return undrawn
    except Interrupted as end:
        say(f"stopped by {signal.Signals(end.number).name}; the same command goes on with the rest")
        raise typer.Exit(128 + end.number) from None


def _failed(out: Path) -> Iterator[tuple[str, list[Row]]]:
    """The pictures that failed, with the rows that say so."""
    read_plan(out)
    for record in filter(is_sound, latest_records(manifests(out))):
        rows = [row for row in record if row["status"] == "error"]
        # A picture that was there and has gone since is nobody's error any more.
        if rows and (rows[0]["source"] is None or os.path.lexists(rows[0]["path"])):
            yield rows[0]["path"], rows


def _summary(counts: Counter[str]) -> str:
    others = counts["findings"] - counts["wrong"]
    if counts["wrong"]:
        sentence = (
            f"{counts['wrong']} of {counts['files']} files are not as the manifest says; "
            "delete them and run the same command again to make them anew"
        )
    else:
        sentence = f"{counts['files']} files of {counts['pictures']} pictures are as the manifest says"
    return sentence + (f"; {others} other findings" if others else "")


def _read(items: Iterator[_T]) -> Iterator[_T]:
    """The same items; a folder that is none of a run, or cannot be read, ends the command."""
    try:
        yield from items
    except (LookupError, OSError) as error:
        _fail(error, USAGE)


def _fail(error: Exception, code: int) -> NoReturn:
    say(f"error: {error}")
    raise typer.Exit(code) from error
