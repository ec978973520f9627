"""A run that lacks what it needs: room on the disk, files, memory, streams."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.desk import COMMAND, Desk
from helpers import run_xai
from PIL import Image

from xai_cli.engine import writing
from xai_cli.outputs.manifest import latest_records, manifests

Mount = Callable[[str], None]


@pytest.fixture
def mount(desk: Desk) -> Iterator[Mount]:
    """Puts a disk of its own where the run's folder will be; called again, it changes the disk's options."""
    desk.out.mkdir()

    def mounted(options: str) -> None:
        more = "remount," if os.path.ismount(desk.out) else ""
        command = ["mount", "-t", "tmpfs", "-o", more + options, "xai-test", str(desk.out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

    if os.geteuid():
        pytest.skip("only root may mount a disk")
    yield mounted
    subprocess.run(["umount", "--lazy", str(desk.out)], capture_output=True, check=False)


def write_errors(desk: Desk) -> list[str]:
    return [
        row["stage"] for record in latest_records(manifests(desk.out)) for row in record if row["status"] == "error"
    ]


@pytest.mark.parametrize("kilobytes", [200, 24])
def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(desk: Desk, mount: Mount, kilobytes: int) -> None:
    mount(f"size={kilobytes}k")
    ended = desk.run()
    assert ended.code == 5, ended.said
    assert "goes on with the rest" in ended.said
    assert "Traceback" not in ended.said
    assert set(write_errors(desk)) <= {"write"}
    assert len(write_errors(desk)) <= 4  # of two pictures, each with two methods
    desk.assert_no_partial_file()
    mount("size=2m")
    ended = desk.run()
    assert ended.code == 0, ended.said
    desk.assert_complete(once=False)


def test_a_disk_without_inodes_ends_the_run_and_with_some_it_goes_on(desk: Desk, mount: Mount) -> None:
    mount("size=2m,nr_inodes=20")
    ended = desk.run()
    assert (ended.code, "No space left on device" in ended.said) == (5, True), ended.said
    assert set(write_errors(desk)) == {"write"}
    desk.assert_no_partial_file()
    mount("size=2m,nr_inodes=400")
    assert desk.run().code == 0
    desk.assert_complete(once=False)


def test_a_disk_that_cannot_be_written_is_told_at_once(desk: Desk, mount: Mount) -> None:
    mount("size=2m,ro")
    ended = desk.run()
    assert (ended.code, "Traceback" in ended.said) == (5, False)
    assert "Read-only file system" in ended.said
    mount("size=2m,rw")
    assert desk.run().code == 0
    desk.assert_complete()


@pytest.mark.parametrize("size", [6000, 1200])
def test_a_limit_on_the_size_of_files_loses_no_file(desk: Desk, size: int) -> None:
    ended = desk.run(limits={"RLIMIT_FSIZE": size})
    assert (ended.code, "Traceback" in ended.said) == (5, False), ended.said
    desk.assert_no_partial_file()
    assert desk.run().code == 0
    desk.assert_complete(once=False)


def test_sixty_four_open_files_are_enough(desk: Desk) -> None:
    ended = desk.run(limits={"RLIMIT_NOFILE": 64})
    assert ended.code == 0, ended.said
    desk.assert_complete()


@pytest.mark.parametrize("closed", [{0}, {1}, {2}, {1, 2}, {0, 1, 2}])
def test_closed_streams_leave_their_numbers_to_no_file(desk: Desk, closed: set[int]) -> None:
    streams = [None if number in closed else name for number, name in enumerate((os.devnull, "stdout", "stderr"))]
    ended = desk.run(streams=streams)
    assert ended.code == 0, ended.said
    assert (b"xai" in ended.printed, "Traceback" in ended.said) == (False, False)
    desk.assert_complete()


def test_memory_is_bounded_by_the_budget_and_not_by_the_threads(desk: Desk) -> None:
    photos = desk.folder / "photos"
    photos.mkdir()
    Image.new("L", (3000, 2000), 90).save(photos / "0.png", compress_level=1)
    for number in range(1, 16):
        (photos / f"{number}.png").write_bytes((photos / "0.png").read_bytes())
    command = ("gradcam", "photos", "--model", "net.py:make", "--picture-size", "64", "--workers", "8", "--out")
    more = {}
    for megabytes in (100, 100_000):
        ended = desk.run("--memory", megabytes, command=(*command, f"out-{megabytes}"))
        assert ended.code == 0, ended.said
        more[megabytes] = ended.kilobytes - desk.reference.kilobytes  # type: ignore[union-attr]
    assert more[100] < 150_000
    assert more[100_000] > 1.5 * more[100], more


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_no_more_ends_the_run_whatever_it_says(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.chdir(desk.folder)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_atomically", refuse)
        answer = run_xai(*COMMAND)
    assert answer.code == 5
    assert f"error: [Errno {number}] {os.strerror(number)}" in answer.said
    assert write_errors(desk) == ["write"] * 4  # of two pictures, each with two methods
    assert desk.run().code == 0
    desk.assert_complete(once=False)


def test_a_file_in_the_place_of_the_folder_is_left_alone(desk: Desk) -> None:
    desk.out.write_text("a file")
    ended = desk.run()
    assert (ended.code, desk.out.read_text()) == (5, "a file")
    assert "expects a folder, found the file out" in ended.said
