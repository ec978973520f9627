"""A run that is told to stop: by signals, and by a standard output that nobody reads."""

from __future__ import annotations

import os
import signal
import time

import pytest
from faults.desk import COMMAND, PICTURES, Desk

from xai_cli.engine.stopping import Interrupted, Stop

_ENDINGS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def wait_until_explaining(desk: Desk) -> None:
    before = len(desk.records())
    desk.until(lambda: len(desk.records()) > before)


def test_each_signal_ends_the_run_gently_and_the_same_command_goes_on(desk: Desk) -> None:
    for number, code in _ENDINGS.items():
        process = desk.start(SLOW=0.1)
        wait_until_explaining(desk)
        process.signal(number)
        ended = process.end(within=20)
        assert ended.code == code, ended.said
        assert f"stopped by {number.name}; the same command" in ended.said
        assert "goes on with the rest" in ended.said
        assert "Traceback" not in ended.said
        desk.assert_no_partial_file()
        desk.assert_verified()  # so that whatever has files has its rows too
        assert not list(desk.out.rglob(".*"))
    assert len(desk.records()) < PICTURES
    assert desk.run().code == 0
    desk.assert_complete()


def test_the_second_signal_ends_the_run_at_once(desk: Desk) -> None:
    process = desk.start_held()
    process.signal(signal.SIGTERM)
    with pytest.raises(TimeoutError):
        process.end(within=0.3)
    process.signal(signal.SIGINT)
    # Without this it would wait for ever.
    assert process.end(within=20).code == 130
    desk.assert_no_partial_file()
    assert (desk.out / ".in-flight.jsonl").exists()  # as after any death


def test_a_signal_that_python_makes_another_error_of_is_still_one() -> None:
    def interrupted(self: object, owner: type, name: str) -> None:
        signal.raise_signal(signal.SIGTERM)

    field = type("Field", (), {"__set_name__": interrupted})
    with pytest.raises(Interrupted), Stop():
        type("Imported", (), {"name": field()})


@pytest.mark.parametrize("given", ["", "pictures/a/0.png\n"])
def test_a_list_that_says_nothing_more_does_not_keep_a_run_from_ending(desk: Desk, given: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, given.encode())
    process = desk.start(command=("explain", "-", *COMMAND[2:]), streams=(reading, "stdout", "stderr"))
    os.close(reading)
    if given:
        desk.until(lambda: (desk.out / "run.json").exists())
    else:
        time.sleep(0.5)
    process.signal(signal.SIGINT)
    ended = process.end(within=20)
    os.close(writing)
    assert ended.code == 130, ended.said
    assert "Traceback" not in ended.said


def test_signals_that_were_ignored_from_the_start_stay_so_and_a_stopped_run_continues(desk: Desk) -> None:
    process = desk.start(SLOW=0.1, ignored=(signal.SIGHUP, signal.SIGINT))  # as nohup, and & in a script, do
    wait_until_explaining(desk)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGSTOP):
        process.signal(number)
    time.sleep(0.1)
    done = len(desk.records())
    time.sleep(0.3)
    assert len(desk.records()) == done < PICTURES
    process.signal(signal.SIGCONT)
    ended = process.end()
    assert (ended.code, "stopped" in ended.said) == (0, False)
    desk.assert_complete()


@pytest.mark.parametrize("option", [(), ("--json",), ("--print0",)])
def test_a_reader_that_has_enough_ends_the_run_quietly(desk: Desk, option: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    process = desk.start(*option, streams=(os.devnull, writing, "stderr"), SLOW=0.1)
    os.close(writing)
    assert os.read(reading, 1)
    os.close(reading)
    ended = process.end(within=20)
    assert ended.code == 141
    assert "rror" not in ended.said
    assert "Traceback" not in ended.said
    assert 0 < len(desk.records()) < PICTURES
    desk.assert_no_partial_file()
    assert desk.run().code == 0
    desk.assert_complete()


def test_a_full_standard_output_is_told_as_such(desk: Desk) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    ended = desk.start(streams=(os.devnull, full, "stderr")).end()
    os.close(full)
    assert ended.code == 5
    assert "Traceback" not in ended.said
    assert "No space left on device: 'standard output'" in ended.said
    assert desk.run().code == 0
    desk.assert_complete()
