"""A process that dies in the middle of its work, and the next one that goes on."""

from __future__ import annotations

import random
import time

import pytest
from faults.desk import PICTURES, Desk
from PIL import Image


def test_killed_at_any_time_the_same_command_finishes_the_run(desk: Desk) -> None:
    chance = random.Random(3)
    for more in (0, 1, 4, 6):
        enough = len(desk.records()) + more
        process = desk.start(SLOW=0.04)
        # Past the loading of the model, in which there is nothing to lose.
        desk.until(lambda: (desk.out / ".in-flight.jsonl").exists() and len(desk.records()) >= enough)  # noqa: B023
        time.sleep(chance.uniform(0, 0.08))
        assert process.kill().code == -9
        print(len(desk.records()), desk.said())
        desk.assert_no_partial_file()
    assert len(desk.records()) < PICTURES
    ended = desk.run()
    assert ended.code == 0, ended.said
    desk.assert_complete()


@pytest.mark.parametrize("deadly", ["KILL", "SEGV"])
def test_a_picture_that_kills_the_process_costs_two_processes_and_its_own_row(desk: Desk, deadly: str) -> None:
    white = desk.folder / "pictures/a/4.png"
    Image.new("RGB", (20, 24), "white").save(white)
    assert desk.run(DEADLY=deadly).code == -{"KILL": 9, "SEGV": 11}[deadly]
    desk.assert_no_partial_file()
    second = desk.run(DEADLY=deadly)
    assert second.code == 3, second.said
    assert f"SIG{deadly}" in second.said
    assert desk.errors() == {"a/4.png": "Crashed"}
    desk.assert_complete(except_for=["a/4.png"])
    manifest = (desk.out / "manifest.jsonl").read_bytes()
    third = desk.run(DEADLY=deadly)
    assert (third.code, third.printed) == (3, b"")
    assert (desk.out / "manifest.jsonl").read_bytes() == manifest
