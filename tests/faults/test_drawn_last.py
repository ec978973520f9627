"""A run with one colour scale that dies, or is stopped, or finds the disk full, while its maps are being drawn."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faults.desk import COMMAND, PICTURES, Desk, Process
from helpers import run_xai
from PIL import Image

SCALED = (*COMMAND, "--scale", "run")


@pytest.fixture(scope="module")
def drawn(warm: str, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A run with one scale that nothing disturbed, of pictures that take some time to draw."""
    desk = Desk(tmp_path_factory.mktemp("drawn"), warm).furnish()
    noise = np.random.default_rng(1)
    for path in (desk.folder / "pictures").rglob("*.png"):
        Image.fromarray(noise.integers(0, 256, (700, 600, 3), dtype=np.uint8)).save(path, compress_level=1)
    ended = desk.run(command=SCALED)
    assert ended.code == 0, ended.said
    return desk


@pytest.fixture
def desk(warm: str, drawn: Desk, tmp_path: Path) -> Iterator[Desk]:
    """The same pictures and the net, not explained yet."""
    desk = Desk(tmp_path, warm, drawn).furnish()
    shutil.copytree(drawn.folder / "pictures", desk.folder / "pictures", dirs_exist_ok=True)
    yield desk
    desk.stop_all()


def pictures(desk: Desk) -> int:
    """How many rows name a picture."""
    return sum("png" in row["files"] for record in desk.records() for row in record)


def start_until_drawn(desk: Desk, more: int) -> Process:
    """The run begun, up to so many pictures more."""
    enough = pictures(desk) + more
    process = desk.start(command=SCALED)
    desk.until(lambda: pictures(desk) >= enough)
    return process


def test_killed_at_any_time_the_same_command_finishes_the_drawing(desk: Desk) -> None:
    for more in (1, 7, 13):
        process = start_until_drawn(desk, more)
        assert process.kill().code == -9
        desk.assert_no_partial_file()
    assert pictures(desk) < 2 * PICTURES
    ended = desk.run(command=SCALED)
    assert ended.code == 0, ended.said
    desk.assert_complete(once=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_every_picture_with_its_row(desk: Desk, number: signal.Signals) -> None:
    process = start_until_drawn(desk, 3)
    process.signal(number)
    ended = process.end(within=20)
    assert ended.code == 128 + number, ended.said
    assert "goes on with the rest" in ended.said
    desk.assert_no_partial_file()
    assert_only_undrawn(desk)
    assert desk.run(command=SCALED).code == 0
    desk.assert_complete(once=False)


def test_killed_while_all_is_drawn_again_at_another_limit(desk: Desk) -> None:
    """The pictures of one folder first: those of the other change the limits."""
    (desk.folder / "pictures/b").rename(desk.folder / "b")
    assert desk.run(command=SCALED).code == 0
    (desk.folder / "b").rename(desk.folder / "pictures/b")
    process = start_until_drawn(desk, 4)
    assert process.kill().code == -9
    ended = desk.run(command=SCALED)
    assert ended.code == 0, ended.said
    desk.assert_complete(once=False)


def test_a_disk_that_takes_no_picture_ends_the_run_and_with_room_it_goes_on(desk: Desk) -> None:
    ended = desk.run(command=SCALED, limits={"RLIMIT_FSIZE": 200_000})
    assert (ended.code, "Traceback" in ended.said) == (5, False), ended.said
    assert "goes on with the rest" in ended.said
    assert pictures(desk) == 0
    assert_only_undrawn(desk)
    assert desk.run(command=SCALED).code == 0
    desk.assert_complete(once=False)


def assert_only_undrawn(desk: Desk) -> None:
    """Nothing is wrong with any file, but some pictures are still owed."""
    answer = run_xai("verify", desk.out)
    assert answer.code == 3, answer.said
    assert answer.paths
    assert all("not drawn yet" in line for line in answer.paths), answer.paths
