"""A run in surroundings that are not what programs like: no home, odd terminals, names in other alphabets."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import threading
from contextlib import suppress

import pytest
from faults.desk import COMMAND, PICTURES, Desk

_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;]*.|.)?", re.DOTALL)


class Terminal:
    """A terminal, and all that has been written to it."""

    def __init__(self) -> None:
        self.shown = b""
        self._ours, self.theirs = pty.openpty()
        settings = termios.tcgetattr(self.theirs)
        settings[1] &= ~termios.OPOST  # new lines as they are written
        termios.tcsetattr(self.theirs, termios.TCSANOW, settings)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # all that wrote to it have ended
            while data := os.read(self._ours, 4096):
                self.shown += data

    def closed(self) -> bytes:
        """What was written, when nobody writes any more."""
        os.close(self.theirs)
        self._reader.join()
        os.close(self._ours)
        return self.shown


def test_a_bare_environment_is_enough_and_names_are_bytes(desk: Desk) -> None:
    names = [b"caf\xc3\xa9.png", b"caf\xe9.png", "鳥.png".encode()]
    folder = os.fsencode(desk.folder / "pictures/a")
    for number, name in zip((0, 2, 4), names, strict=True):
        os.rename(os.path.join(folder, b"%d.png" % number), os.path.join(folder, name))
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TMPDIR": "/missing", "TERM": "dumb", "COLUMNS": "0"}
    command = [sys.executable, "-O", "-m", "xai_cli", *COMMAND]
    done = subprocess.run(command, cwd=desk.folder, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert all(b"out/gradcam/a/" + name + b".png\n" in done.stdout for name in names)
    assert len(desk.records()) == PICTURES
    desk.assert_verified()


@pytest.mark.parametrize(
    "environment", [{"HOME": "/proc/1"}, {"TERM": "dumb", "COLUMNS": 0}, {"COLUMNS": "x", "LINES": 0}]
)
def test_homes_that_cannot_be_written_and_odd_widths_do_not_matter(desk: Desk, environment: dict[str, object]) -> None:
    terminal = Terminal()
    ended = desk.run(streams=(terminal.theirs, "stdout", terminal.theirs), **environment)
    shown = terminal.closed()
    assert (ended.code, b"Traceback" in shown) == (0, False), shown
    desk.assert_complete()


def test_on_a_terminal_no_name_commands_it_and_no_colour_is_kept(desk: Desk) -> None:
    (desk.folder / "pictures/a/0.png").rename(desk.folder / "pictures/a/\x1b[31m0.png")
    (desk.folder / "pictures/a/\x1b]0;title\x07.png").write_bytes(b"no picture")
    terminal = Terminal()
    how = {"streams": [terminal.theirs] * 3, "TERM": "xterm", "NO_COLOR": "1"}
    assert desk.run(**how).code == 3
    for option in ("--files-from", "--config"):
        assert desk.run(option, "\x1b[31mx", **how).code == 2
    shown = terminal.closed()
    assert rb"out/gradcam/a/\x1b[31m0.png.png" in shown
    # Typer sets words of its usage errors in bold and faint letters, which are no colours.
    assert set(_ESCAPES.findall(shown)) <= {b"\x1b[0m", b"\x1b[1m", b"\x1b[2m", b"\x1b[1;2m"}


@pytest.mark.parametrize("stderr", ["/dev/full", "reader gone", "terminal gone"])
def test_a_run_goes_on_when_nobody_hears_what_it_says(desk: Desk, stderr: str) -> None:
    (desk.folder / "pictures/a/x.png").write_bytes(b"no picture")
    if stderr == "/dev/full":
        stream = os.open(stderr, os.O_WRONLY)
    elif stderr == "reader gone":
        reading, stream = os.pipe()
        os.close(reading)
    else:
        master, stream = pty.openpty()
        os.close(master)
    ended = desk.run(streams=(os.devnull, "stdout", stream))
    os.close(stream)
    assert ended.code == 3
    assert ended.printed.count(b"\n") == 2 * PICTURES
    assert desk.errors() == {"a/x.png": "NotAnImage"}
    desk.assert_verified()
