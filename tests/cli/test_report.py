"""What a run says: results on standard output in the form that was asked for, all else on standard error."""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import run_xai

from xai_cli.cli.report import Report, ShellOptions, say, say_undrawn
from xai_cli.engine.ledger import State
from xai_cli.outputs.manifest import Row, read_records

TURNED = "ca\x1b[31mt\u202e\n.png"
BYTES = "caf\udce9.png"


class Stream(io.StringIO):
    """A stream that may be a terminal, and keeps count of how often it was flushed."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self.terminal, self.flushed = terminal, 0

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        self.flushed += 1


def ok(
    key: str = "cat.png", method: str = "ig", *, gap: float = 0.0, batch: int = 8, samples: int = 8, drawn: bool = True
) -> Row:
    files = {"npy": f"{method}/{key}.npy"} | ({"png": f"{method}/{key}.png"} if drawn else {})
    row = {"key": key, "method": method, "status": "ok", "files": files, "checks": {"completeness_gap": gap}}
    return {
        **row,
        "warnings": ["transparent parts were laid on white"],
        "batch": {"pictures": batch, "samples": samples},
    }


def failed(key: str = "dog.png", method: str | None = None) -> Row:
    of_one = {} if method is None else {"method": method, "target": {"index": 1}}
    return {"key": key, **of_one, "status": "error", "stage": "decode", "type": "Truncated", "message": "it is cut"}


def report(*, strict: bool = False, terminal: bool = False, **options: Any) -> tuple[Report, Stream]:
    stream = Stream(terminal=terminal)
    return Report(ShellOptions(**options), Path("out"), strict, 8, stream), stream


def shown(*records: list[Row], strict: bool = False, terminal: bool = False, **options: Any) -> str:
    """What these records bring on standard output."""
    shower, stream = report(strict=strict, terminal=terminal, **options)
    assert shower.show(iter(records)) == len(records)
    return stream.getvalue()


# Standard output


def test_the_path_of_each_map_is_printed_and_nothing_of_what_failed() -> None:
    assert shown([ok(), ok(method="lrp")], [failed()], [ok("b.png", drawn=False), failed("b.png", "lrp")]) == (
        "out/ig/cat.png.png\nout/lrp/cat.png.png\nout/ig/b.png.npy\n"
    )


def test_a_map_with_a_failed_check_is_a_result_but_not_in_a_strict_run() -> None:
    assert shown([ok(gap=0.06)]) == "out/ig/cat.png.png\n"
    assert shown([ok(gap=0.06), ok(method="lrp")], strict=True) == "out/lrp/cat.png.png\n"


@pytest.mark.parametrize("strict", [False, True])
def test_as_json_every_row_is_a_line(strict: bool) -> None:
    records = [[ok(TURNED, gap=0.06), failed(TURNED, "lrp")], [failed(BYTES)]]
    printed = shown(*records, json=True, strict=strict, terminal=True)
    assert printed.isascii()
    assert [json.loads(line) for line in printed.splitlines()] == [row for record in records for row in record]


def test_what_is_drawn_later_is_shown_then() -> None:
    records = [[ok(), ok(method="lrp", drawn=False), failed(method="gradcam")], [ok("b.png")]]
    for options in ({}, {"json": True}):
        shower, stream = report(**options)
        assert shower.show_drawn(iter(records)) == 2
        lines = stream.getvalue().splitlines()
        paths = [f"out/{json.loads(line)['files']['png']}" for line in lines] if options else lines
        assert paths == ["out/ig/cat.png.png", "out/ig/b.png.png"]


def test_paths_may_end_with_nul_and_come_at_once_then_too() -> None:
    shower, stream = report(print0=True)
    shower.show([[ok(), ok(method="lrp")]])
    assert stream.getvalue() == "out/ig/cat.png.png\0out/lrp/cat.png.png\0"
    assert stream.flushed == 2


def test_a_name_commands_no_terminal_and_is_itself_in_a_pipe() -> None:
    assert shown([ok(TURNED)], print0=True) == f"out/ig/{TURNED}.png\0"
    assert shown([ok(BYTES)]) == f"out/ig/{BYTES}.png\n"
    assert shown([ok(TURNED)], [ok(BYTES)], terminal=True) == (
        "out/ig/ca\\x1b[31mt\\u202e\\n.png.png\nout/ig/caf\\udce9.png.png\n"
    )


def test_the_plan_has_a_line_for_each_picture() -> None:
    plan = [("/photos/a.png", ["out/ig/a.png.npy", "out/ig/a.png.png"]), (f"/photos/{TURNED}", [])]
    for options, terminal, expected in (
        ({}, True, "/photos/a.png\tout/ig/a.png.npy\tout/ig/a.png.png\n/photos/ca\\x1b[31mt\\u202e\\n.png\n"),
        ({"print0": True}, False, f"/photos/a.png\tout/ig/a.png.npy\tout/ig/a.png.png\0/photos/{TURNED}\0"),
    ):
        shower, stream = report(terminal=terminal, **options)
        shower.plan(iter(plan))
        assert stream.getvalue() == expected
    shower, stream = report(json=True)
    shower.plan(iter(plan))
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"path": path, "files": files} for path, files in plan
    ]


def test_a_reader_that_has_gone_is_told_apart_from_a_full_disk() -> None:
    class Broken(Stream):
        error: OSError

        def write(self, text: str) -> int:
            raise self.error

    shower = Report(ShellOptions(), Path("out"), False, 8, Broken())
    Broken.error = BrokenPipeError(32, "Broken pipe")
    with pytest.raises(BrokenPipeError):
        shower.show([[ok()]])
    Broken.error = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left on device: 'standard output'"):
        shower.show([[ok()]])


# Standard error


def test_failures_are_told_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    shown([failed()], [ok("b.png"), failed("b.png", "lrp"), failed("b.png", "gradcam")], [failed(TURNED)])
    assert capsys.readouterr().err.splitlines() == [
        "xai: dog.png: it is cut (decode: Truncated)",
        "xai: b.png: lrp: it is cut (decode: Truncated); gradcam: it is cut (decode: Truncated)",
        "xai: ca\\x1b[31mt\\u202e\\n.png: it is cut (decode: Truncated)",
    ]


def test_a_strict_run_tells_of_failed_checks_and_of_no_harmless_warning(capsys: pytest.CaptureFixture[str]) -> None:
    shown([ok(gap=0.06)], [ok("b.png")], strict=True)
    assert capsys.readouterr().err.splitlines() == [
        "xai: cat.png: ig: completeness_gap 0.06: the map does not add up to the change of the score that it explains"
    ]


@pytest.mark.parametrize(("count", "lines"), [(9, 9), (10, 10), (11, 11), (40, 11)])
def test_ten_failures_are_told_and_then_where_the_others_stand(
    count: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(*([failed(f"{number}.png")] for number in range(count)))
    told = capsys.readouterr().err.splitlines()
    assert len(told) == lines
    more = "xai: more pictures fail; 'xai errors out' lists them all"
    assert told[9:] == ["xai: 9.png: it is cut (decode: Truncated)", more][: max(0, lines - 9)]


def test_smaller_batches_are_told_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    shown(*([ok(batch=batch)] for batch in (8, 8, 4, 4, 4, 1, 1)), [failed()])
    assert capsys.readouterr().err.splitlines()[:-1] == [
        "xai: out of memory: going on with 4 pictures at a time",
        "xai: out of memory: going on with 1 picture at a time",
    ]


def test_fewer_samples_than_at_the_beginning_are_told_too(capsys: pytest.CaptureFixture[str]) -> None:
    shown(*([ok(samples=samples), ok(method="lrp", samples=samples)] for samples in (6, 6, 3, 3, 1)))
    assert capsys.readouterr().err.splitlines() == [
        "xai: out of memory: going on with 3 samples at a time",
        "xai: out of memory: going on with 1 sample at a time",
    ]


def test_maps_that_could_not_be_drawn_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for maps in range(3):
        say_undrawn(maps)
    assert capsys.readouterr().err.splitlines() == [
        "xai: 1 map could not be drawn; the warnings in the manifest say why",
        "xai: 2 maps could not be drawn; the warnings in the manifest say why",
    ]


def test_a_quiet_run_says_nothing_but_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown([ok(batch=1)], [failed()], quiet=True) == "out/ig/cat.png.png\n"
    shower, _ = report(quiet=True)
    shower.note("harmless")
    assert shower.summary(Counter({State.DONE: 2}), 2) == 0
    assert shower.summary(Counter({State.DONE: 2, State.FAILED: 1}), 3) == 1
    assert capsys.readouterr().err.splitlines() == [
        "xai: dog.png: it is cut (decode: Truncated)",
        "xai: 2 of 3 pictures explained in out, 1 failed: see 'xai errors out'",
    ]


SUMMARIES = [
    ({State.DONE: 3}, 3, False, 0, "3 of 3 pictures explained in out"),
    ({State.DONE: 3}, 0, False, 0, "3 of 3 pictures explained in out, 0 taken up now"),
    ({State.DONE: 3, State.DOUBTFUL: 2}, 5, False, 0, "5 of 5 pictures explained in out"),
    ({State.DONE: 3, State.DOUBTFUL: 2}, 5, True, 2,
     "5 of 5 pictures explained in out, 2 with a check beyond its bound"),
    ({State.DONE: 3, State.FAILED: 1, State.TRANSIENT: 1}, 5, True, 2,
     "3 of 5 pictures explained in out, 2 failed: see 'xai errors out'"),
]  # fmt: skip


@pytest.mark.parametrize(("counts", "new", "strict", "bad", "sentence"), SUMMARIES)
def test_the_summary_counts_every_picture_once(
    counts: dict[State, int], new: int, strict: bool, bad: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shower, stream = report(strict=strict)
    assert shower.summary(Counter(counts), new) == bad
    assert capsys.readouterr().err == f"xai: {sentence}\n"
    assert stream.getvalue() == ""


# Progress


def terminal(monkeypatch: pytest.MonkeyPatch, kind: str = "xterm") -> Stream:
    """Standard error, on a terminal from here on."""
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", kind)
    return stream


def test_away_from_a_terminal_a_line_says_every_ten_seconds_how_it_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0, 4, 9.9, 10, 12, 20.1])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    shown(*([ok()] for _ in range(5)))
    assert capsys.readouterr().err.splitlines() == [
        "xai: 3 pictures, 0.3 per second",
        "xai: 5 pictures, 0.249 per second",
    ]
    clock = iter([0, 15])
    shown([ok()])
    assert capsys.readouterr().err == "xai: 1 picture, 0.0667 per second\n"
    clock = iter(range(0, 90, 11))
    shown(*([ok()] for _ in range(5)), quiet=True)
    assert capsys.readouterr().err == ""


def screen(text: str) -> list[str]:
    """The lines that a terminal shows in the end."""
    lines = []
    for line in text.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_on_a_terminal_a_bar_counts_and_stands_in_nobody_s_way(monkeypatch: pytest.MonkeyPatch) -> None:
    both = terminal(monkeypatch)
    Report(ShellOptions(), Path("out"), False, 8, both).show(iter([[ok()], [failed()], [ok("b.png")]]))
    lines = screen(both.getvalue())
    assert lines[:3] == ["out/ig/cat.png.png", "xai: dog.png: it is cut (decode: Truncated)", "out/ig/b.png.png"]
    assert lines[3].startswith("3picture [")
    assert lines[4:] == [""]


def test_the_bar_is_not_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    assert shown([ok()]) == "out/ig/cat.png.png\n"
    assert "1picture [" in stderr.getvalue()


@pytest.mark.parametrize("case", ["nothing to show", "quiet", "dumb"])
def test_there_is_no_bar_where_it_would_be_of_no_use(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    stderr = terminal(monkeypatch, "dumb" if case == "dumb" else "xterm")
    shown(*([] if case == "nothing to show" else [[ok()]]), quiet=case == "quiet")
    assert stderr.getvalue() == ""


def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(ValueError(f"no {TURNED}"))
    assert capsys.readouterr().err == "xai: no ca\\x1b[31mt\\u202e\\n.png\n"


# How it ends


FAIL_ON = [
    ("any", 0, 9, False), ("any", 1, 9, True), ("none", 9, 9, False), ("0", 0, 9, False), ("0", 1, 9, True),
    ("1", 1, 9, True), ("2", 1, 9, False), ("2", 2, 9, True), ("10", 9, 9, False),
    ("50%", 4, 9, False), ("50%", 5, 10, True), ("50%", 4, 8, True), ("12.5%", 1, 8, True), ("12.6%", 1, 8, False),
    ("100%", 8, 9, False), ("100%", 9, 9, True), ("0%", 0, 9, False), ("0%", 1, 9, True), ("10%", 10, 99, True),
]  # fmt: skip


@pytest.mark.parametrize(("fail_on", "bad", "total", "fails"), FAIL_ON)
def test_from_how_many_failed_pictures_on_a_run_has_failed(fail_on: str, bad: int, total: int, fails: bool) -> None:
    assert ShellOptions(fail_on=fail_on).fails(bad, total) is fails


@pytest.mark.parametrize("fail_on", ["", "some", "-1", "1.5", "%", "5 %", "nan%", "5%\n", "1e3", " 5"])
def test_what_is_no_such_bound_is_refused(fail_on: str) -> None:
    with pytest.raises(ValueError, match="--fail-on expects none, any, a number or a share such as 5%, found"):
        ShellOptions(fail_on=fail_on)


def test_json_has_no_paths_to_end() -> None:
    with pytest.raises(ValueError, match="--print0 ends paths, and --json prints none"):
        ShellOptions(json=True, print0=True)


@pytest.fixture
def explain(pictures: Path, net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Explains three good pictures and two broken ones; what is done already is not done again."""
    monkeypatch.chdir(tmp_path)
    return lambda *options: run_xai("saliency", "pictures", "--model", "small_net.py:make", "-o", "out", *options)


def test_the_lines_of_a_run_are_the_rows_of_its_manifest_and_its_end_is_told_by_the_exit_code(explain: Any) -> None:
    answer = explain("--json")
    rows = [row for record in read_records(Path("out/manifest.jsonl")) for row in record]
    assert [json.loads(line) for line in answer.paths] == rows
    assert len(rows) == 5
    assert answer.code == 3
    codes = {bound: explain("--fail-on", bound).code for bound in ("any", "none", "2", "3", "40%", "41%")}
    assert codes == {"any": 3, "none": 0, "2": 3, "3": 0, "40%": 3, "41%": 0}
    assert explain("--retry-errors", "--print0", "--quiet").paths == []
