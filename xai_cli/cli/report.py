"""What a run says while it goes: results on standard output, progress and failures on standard error."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, TextIO

from xai_cli.engine.checks import warnings
from xai_cli.engine.ledger import State
from xai_cli.options import Option, Options
from xai_cli.outputs.manifest import Row, row_line
from xai_cli.sentences import printable

_SHOWN_FAILURES = 10
_SECONDS_BETWEEN = 10


@dataclass(frozen=True)
class ShellOptions(Options):
    """What the command says, and how it ends."""

    panel: ClassVar[str] = "Shell"

    json: Annotated[bool, Option("Print each finished row as a JSON object instead of its file's path.")] = False
    print0: Annotated[bool, Option("End printed paths with NUL instead of a new line.")] = False
    quiet: Annotated[bool, Option("Say nothing but errors.", short="q")] = False
    dry_run: Annotated[
        bool, Option("Print what would be explained, and where the maps of its first target would go.")
    ] = False
    fail_on: Annotated[str, Option("From how many failed pictures on the exit code is 3: none, any, a number, or a "
                                   "share such as 5%.")] = "any"  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"none|any|\d+|\d+(\.\d+)?%", self.fail_on):
            raise ValueError(f"--fail-on expects none, any, a number or a share such as 5%, found {self.fail_on!r}")
        if self.fail_on.endswith("%") and float(self.fail_on[:-1]) > 100:
            raise ValueError(f"--fail-on expects a share of at most 100%, found {self.fail_on!r}")
        if self.json and self.print0:
            raise ValueError("--print0 ends paths, and --json prints none; give one of them")

    def fails(self, failed: int, total: int) -> bool:
        """Whether so many failed pictures make the run a failed one."""
        if not failed or self.fail_on == "none":
            return False
        if self.fail_on.endswith("%"):
            return 100 * failed >= float(self.fail_on[:-1]) * total
        return failed >= (1 if self.fail_on == "any" else int(self.fail_on))


@dataclass(frozen=True)
class Report:
    """Shows the records of a run that writes to `out`; paths and rows go to `stdout`."""

    options: ShellOptions
    out: Path
    strict: bool
    batch_size: int
    stdout: TextIO

    def show(self, records: Iterable[list[Row]]) -> int:
        """Shows all records as they come; returns how many there were."""
        failures = pictures = 0
        # Of samples the engine may take fewer than asked for from the start, without being short of memory.
        smallest = {"pictures": self.batch_size}
        for record in self._progress(records):
            pictures += 1
            self._print(record)
            failed = [
                f"{row['method']}: {why}" if "method" in row else why for row in record if (why := self._failure(row))
            ]
            failures += bool(failed)
            if failed and failures <= _SHOWN_FAILURES:
                say(f"{record[0]['key']}: {'; '.join(failed)}")
            if failed and failures == _SHOWN_FAILURES + 1:
                say(f"more pictures fail; 'xai errors {self.out}' lists them all")
            self._note_smaller(record, smallest)
        return pictures

    def show_drawn(self, records: Iterable[list[Row]]) -> int:
        """Shows the pictures of records whose maps were shown before; returns how many records there were."""
        pictures = 0
        for record in self._progress(records):
            pictures += 1
            self._print([row for row in record if "png" in row.get("files", ())])
        return pictures

    def _note_smaller(self, record: list[Row], smallest: dict[str, int]) -> None:
        """Says of what fewer are computed at once than before, and notes in `smallest` how many."""
        for batch in (row["batch"] for row in record if "batch" in row):
            for kind, count in batch.items():
                if count < smallest.setdefault(kind, count):
                    smallest[kind] = count
                    self.note(f"out of memory: going on with {counted(count, kind)} at a time")

    def note(self, message: str) -> None:
        """Says what is no error."""
        if not self.options.quiet:
            say(message)

    def plan(self, images: Iterable[tuple[str, list[str]]]) -> None:
        """Prints which file would become which others."""
        for path, results in images:
            if self.options.json:
                self._write(row_line({"path": path, "files": results}))
            else:
                self._write("\t".join(map(self._shown, (path, *results))) + self._end)

    def summary(self, counts: Counter[State], new: int) -> int:
        """Says how the run ended; returns how many pictures failed."""
        total, explained = counts.total(), counts[State.DONE] + counts[State.DOUBTFUL]
        doubtful = counts[State.DOUBTFUL] if self.strict else 0
        failed = counts[State.FAILED] + counts[State.TRANSIENT]
        sentence = f"{explained} of {total} pictures explained in {self.out}"
        sentence += f", {new} taken up now" if new < total else ""
        sentence += f", {failed} failed: see 'xai errors {self.out}'" if failed else ""
        sentence += f", {doubtful} with a check beyond its bound" if doubtful else ""
        if failed or doubtful:
            say(sentence)
        else:
            self.note(sentence)
        return failed + doubtful

    def _print(self, record: list[Row]) -> None:
        for row in record:
            if self.options.json:
                self._write(row_line(row))
            elif row["status"] == "ok" and self._failure(row) is None:
                self._write(self._shown(f"{self.out}/{row['files'].get('png', row['files']['npy'])}") + self._end)

    def _write(self, text: str) -> None:
        try:
            with _without_bar() if self.stdout.isatty() else nullcontext():
                self.stdout.write(text)
                if self.options.print0:
                    self.stdout.flush()  # the stream is only flushed at line ends by itself
        except BrokenPipeError:
            raise
        except OSError as error:  # which would look like one of the run's folder
            raise OSError(error.errno, error.strerror, "standard output") from error

    def _shown(self, path: str) -> str:
        return printable(path) if self.stdout.isatty() else path

    @property
    def _end(self) -> str:
        return "\0" if self.options.print0 else "\n"

    @property
    def _bar(self) -> bool:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not self.options.quiet

    def _progress(self, records: Iterable[list[Row]]) -> Iterator[list[Row]]:
        """The same records, with a bar on a terminal, else with a line every ten seconds."""
        if self._bar:
            from tqdm import tqdm

            records = iter(records)
            # Where there is nothing to show there is no bar either.
            for first in records:
                yield from tqdm(chain([first], records), unit="picture")
            return
        start = told = time.monotonic()
        for number, record in enumerate(records, 1):
            yield record
            now = time.monotonic()
            if now - told >= _SECONDS_BETWEEN:
                told = now
                self.note(f"{counted(number, 'pictures')}, {number / (now - start):.3g} per second")

    def _failure(self, row: Row) -> str | None:
        if row["status"] == "error":
            return f"{row['message']} ({row['stage']}: {row['type']})"
        # The row's own warnings also tell of harmless things, such as a transparent picture.
        return ("; ".join(warnings(row["method"], row["checks"])) or None) if self.strict else None


def say(message: Any) -> None:
    """One line on standard error; whatever stands in it, it commands no terminal."""
    with _without_bar():
        print(f"xai: {printable(str(message))}", file=sys.stderr)


def say_undrawn(maps: int) -> None:
    """Says how many maps could not be drawn, if there are any."""
    if maps:
        say(f"{counted(maps, 'maps')} could not be drawn; the warnings in the manifest say why")


def counted(count: int, things: str) -> str:
    """So many things, of which one is singular: `1 map`, `2 maps`."""
    return f"{count} {things.removesuffix('s') if count == 1 else things}"


def _without_bar() -> AbstractContextManager[None]:
    """Inside, no bar stands on the terminal's last line."""
    # Who has not imported tqdm has no bar.
    tqdm = sys.modules.get("tqdm")
    return tqdm.tqdm.external_write_mode(file=sys.stderr) if tqdm else nullcontext()
