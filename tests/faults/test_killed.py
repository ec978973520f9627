"""A process that dies in the middle of its work, and the next one that goes on."""

from __future__ import annotations

import random
import signal
import time

import pytest
from faults.desk import PICTURES, Desk
from PIL import Image


def test_killed_at_any_time_the_same_command_finishes_the_run(desk: Desk) -> None:
    chance = random.Random(3)
    for more in (0, 1, 4, 6):
        enough = len(desk.records()) + more
        process = desk.start(SLOW=0.1)
        # Past the loading of the model, in which there is nothing to lose.
        desk.until(lambda: (desk.out / ".in-flight.jsonl").exists() and len(desk.records()) >= enough)  # noqa: B023
        time.sleep(chance.uniform(0, 0.2))
        assert process.kill().code == -9
        desk.assert_no_partial_file()
    assert len(desk.records()) < PICTURES
    ended = desk.run()
    assert ended.code == 0, ended.said
    desk.assert_complete()


@pytest.mark.parametrize(("end", "key"), [(signal.SIGKILL, "a/4.png"), (signal.SIGSEGV, "b/9.png")])
def test_a_picture_that_kills_the_process_costs_two_processes_and_its_own_row(
    desk: Desk, end: signal.Signals, key: str
) -> None:
    Image.new("RGB", (20, 24), "white").save(desk.folder / "pictures" / key)
    assert desk.run(DEADLY=end.name).code == -end
    desk.assert_no_partial_file()
    second = desk.run(DEADLY=end.name)
    assert second.code == 3, second.said
    assert f"{key}: two processes died while they worked on it, the last with {end.name}" in second.said
    assert desk.errors() == {key: "Crashed"}
    desk.assert_complete(except_for=[key])
    manifest = (desk.out / "manifest.jsonl").read_bytes()
    third = desk.run(DEADLY=end.name)
    assert (third.code, third.printed) == (3, b"")
    assert (desk.out / "manifest.jsonl").read_bytes() == manifest
