"""The journal tells, after a death, which pictures were being worked on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from xai_cli.engine import journal as module
from xai_cli.engine.journal import Journal
from xai_cli.images.sources import ImageRef


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / ".in-flight.jsonl"


def images(*names: str) -> list[ImageRef]:
    return [ImageRef(name, Path("/photos", name), (len(name), 1)) for name in names]


def after_death(path: Path, *begun: ImageRef) -> Journal:
    """The journal as the next process finds it."""
    Journal(path).begin(*begun)
    return Journal(path)


def test_without_a_death_nothing_is_left(path: Path) -> None:
    assert Journal(path).left() == []
    journal = Journal(path)
    journal.begin(*images("a", "b"))
    assert path.exists()
    journal.close()
    journal.close()
    assert not path.exists()
    assert list(path.parent.iterdir()) == []


def test_what_was_begun_is_left_with_its_path_and_stamp(path: Path) -> None:
    begun = [*images("birds/cat.jpg", "two\nlines", os.fsdecode(b"caf\xe9")), ImageRef("gone", Path("/gone"))]
    assert after_death(path, *begun).left() == begun


def test_it_stands_there_before_the_picture_is_read(path: Path) -> None:
    journal = Journal(path)
    for number, image in enumerate(images("a", "b", "c"), 1):
        journal.begin(image)
        assert len(Journal(path).left()) == number


def test_a_torn_line_costs_only_itself(path: Path) -> None:
    after_death(path, *images("a", "b"))
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines()[0]) + 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert Journal(path).left() == images("a")
    path.write_bytes(b'\0\0\n3\n{"key":"x"}\n{"key":"x","path":"x","source":{}}\n{"key":[],"path":"","source":null}\n')
    assert Journal(path).left() == []


def test_a_picture_is_left_once(path: Path) -> None:
    journal = after_death(path, *images("a"))
    journal.begin(*images("a"))
    journal.begin(*images("a"))
    assert journal.left() == images("a")


def test_suspects_that_were_noted_again_survive_another_death(path: Path) -> None:
    suspects = after_death(path, *images("a", "b")).left()
    second = Journal(path)
    second.begin(*suspects)
    second.begin(*images("c"))
    second.end("a")
    third = Journal(path)
    assert third.left() == images("a", "b", "c")  # one that was ended has its record, and may stand here
    third.begin(*images("d"))
    assert Journal(path).left() == images("d")


@pytest.fixture
def rewrites(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The size of each rewriting of the file."""
    sizes: list[int] = []
    whole = module.write_atomically
    monkeypatch.setattr(
        module, "write_atomically", lambda path, data: (sizes.append(data.count(b"\n")), whole(path, data))
    )
    return sizes


def test_a_long_run_keeps_a_short_journal_of_exactly_what_is_in_flight(path: Path, rewrites: list[int]) -> None:
    journal = Journal(path)
    names = [f"{number:05}" for number in range(3500)]
    for number, image in enumerate(images(*names)):
        journal.begin(image)
        assert len(path.read_bytes().splitlines()) < 1100
        if number >= 40:
            journal.end(names[number - 40])
    assert rewrites == [1, 41, 41, 41]
    left = [image.key for image in Journal(path).left()]
    assert left[-40:] == names[-40:]
    assert len(left) < 1100


def test_many_in_flight_do_not_rewrite_it_for_each_picture(path: Path, rewrites: list[int]) -> None:
    journal = Journal(path)
    for number, image in enumerate(images(*map(str, range(6000)))):
        journal.begin(image)
        if number >= 1500:
            journal.end(str(number - 1500))
    assert len(rewrites) < 8
    assert len(path.read_bytes().splitlines()) < 4600


def test_a_link_in_its_place_is_replaced_and_not_followed(path: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"kept")
    path.parent.mkdir()
    path.symlink_to(secret)
    Journal(path).begin(*images("a"))
    assert secret.read_bytes() == b"kept"
    assert Journal(path).left() == images("a")
