from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xai_cli.outputs.manifest import (
    SCHEMA,
    InUse,
    ManifestWriter,
    latest_records,
    manifest_name,
    manifests,
    read_records,
    row_line,
    shard_of,
)

PATH = "manifest.jsonl"
BIRD = [{"key": "bird.jpg", "method": "ig"}, {"key": "bird.jpg", "method": "lrp"}]
CAT = [{"key": "cat.jpg", "method": "ig"}, {"key": "cat.jpg", "method": "lrp"}]
LAST_ROW = len(row_line({"schema": SCHEMA, **CAT[1], "part": [2, 2]}))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*records: list[dict[str, Any]], path: str = PATH) -> None:
    with ManifestWriter(Path(path)) as manifest:
        for record in records:
            manifest.append(record)


def keys(path: str = PATH) -> list[str]:
    return [record[0]["key"] for record in read_records(Path(path))]


def test_a_record_stands_in_the_file_at_once_and_comes_back_as_it_was_appended() -> None:
    path = Path("new/folder", PATH)
    with ManifestWriter(path) as manifest:
        appended = manifest.append([{"key": "a.jpg", "checks": {"degenerate": False}}, {"key": "a.jpg"}])
        assert path.read_bytes() == (
            b'{"schema":1,"key":"a.jpg","checks":{"degenerate":false},"part":[1,2]}\n'
            b'{"schema":1,"key":"a.jpg","part":[2,2]}\n'
        )
        assert list(read_records(path)) == [appended]
    assert [row["part"] for row in appended] == [[1, 2], [2, 2]]


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "two\nlines", "\u2028", "<img>", "猫.jpg", '"\\', "\x1b[31m"])
def test_any_name_is_one_ascii_line(name: str) -> None:
    write([{"key": name}])
    data = Path(PATH).read_bytes()
    assert data.isascii()
    assert data.count(b"\n") == 1
    assert keys() == [name]
    assert [record[0]["key"] for record in latest_records([Path(PATH)])] == [name]


# What a death leaves


@pytest.mark.parametrize("missing", range(1, LAST_ROW + 3))
def test_a_record_counts_when_its_last_byte_is_there_and_the_next_one_is_whole(missing: int) -> None:
    """Cut at every byte of the last row, and into the row before it."""
    write(BIRD, CAT)
    data = Path(PATH).read_bytes()
    Path(PATH).write_bytes(data[:-missing])
    # Without its end of line alone a row is still all there.
    left = ["bird.jpg", "cat.jpg"] if missing == 1 else ["bird.jpg"]
    assert keys() == left
    write(CAT)
    assert keys() == [*left, "cat.jpg"]
    (counting,) = (record for record in latest_records([Path(PATH)]) if record[0]["key"] == "cat.jpg")
    assert [row["method"] for row in counting] == ["ig", "lrp"]


@pytest.mark.parametrize(
    "torn", [b"\0\0\0", b"\n", b"  ", b"17", b"[]", b'{"key": "caf\xc3', b'{"key":"a"}', b'{"key":"a","part":[1]}',
             b'{"key":"a","part":[0,0]}', b'{"key":"a","part":["1","1"]}', b'{"part":[1,1]}']
)  # fmt: skip
def test_what_is_no_row_costs_only_itself(torn: bytes) -> None:
    write(BIRD)
    with Path(PATH).open("ab") as file:
        file.write(torn)
    assert keys() == ["bird.jpg"]
    write(CAT)
    assert keys() == ["bird.jpg", "cat.jpg"]


def test_rows_of_two_attempts_never_make_one_record() -> None:
    first, second = (row_line({**row, "part": [number, 2]}) for number, row in enumerate(CAT, 1))
    for lines in ((second,), (first, "torn\n", second), (first, row_line({"key": "b", "part": [2, 2]})),
                  (second, first), (first, first, "\n", second)):  # fmt: skip
        Path(PATH).write_text("".join(lines))
        assert keys() == [], lines
    Path(PATH).write_text(first + first + second)
    assert keys() == ["cat.jpg"]


def test_a_record_cut_by_a_full_disk_is_an_error_and_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    with ManifestWriter(Path(PATH)) as manifest:
        manifest.append(BIRD)
        monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:9]))
        with pytest.raises(OSError, match=r"last row is torn; free some space and resume.*manifest\.jsonl"):
            manifest.append(CAT)
        monkeypatch.setattr(os, "write", whole)
        manifest.append([{"key": "c"}])
    assert keys() == ["bird.jpg", "c"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_is_strict(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write([{"key": "a"}, {"key": "a", "logit": value}])
    assert Path(PATH).read_bytes() == b""


# Which record counts


def test_the_last_record_of_a_picture_counts_also_across_shards() -> None:
    shards = [manifest_name((number, 2)) for number in (1, 2)]
    write([{"key": "a", "n": 0}, {"key": "a", "n": 0}], [{"key": "b", "n": 1}], path=shards[0])
    write([{"key": "c", "n": 2}], [{"key": "a", "n": 3}], [{"key": "c", "n": 4}], path=shards[1])
    counting = latest_records([Path(shard) for shard in shards])
    assert [[row["n"] for row in record] for record in counting] == [[1], [3], [4]]


def test_names_say_which_shard_it_is() -> None:
    assert manifest_name() == "manifest.jsonl"
    assert manifest_name((3, 16)) == "manifest-03-of-16.jsonl"
    assert manifest_name((3, 9)) == "manifest-3-of-9.jsonl"
    assert shard_of(Path("out/manifest-03-of-16.jsonl")) == (3, 16)
    assert shard_of(Path("manifest.jsonl")) is None


def test_the_manifests_of_a_folder_are_the_whole_ones_and_then_the_shards_in_order() -> None:
    expected = ["manifest.jsonl", *(manifest_name((number, 12)) for number in (1, 2, 9, 10, 12))]
    for name in [*reversed(expected), "manifest-old.jsonl", "manifest-x-of-2.jsonl", "manifest.jsonl.bak"]:
        Path(name).touch()
    assert [path.name for path in manifests(Path())] == expected
    assert manifests(Path("nowhere")) == []


# One writer


def locked_elsewhere(path: str) -> Iterator[str]:
    """What another process says that opens the manifest, and holds it until it is killed."""
    code = (
        "import sys; from pathlib import Path; from xai_cli.outputs.manifest import *\n"
        f"try:\n    with ManifestWriter(Path({path!r})): print('open', flush=True); sys.stdin.read()\n"
        "except InUse as error: print(error)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_second_writer_is_refused_until_the_first_one_closes() -> None:
    with ManifestWriter(Path(PATH)) as manifest:
        assert manifest.locked
        manifest.append(BIRD)
        with pytest.raises(InUse, match="another run is writing it"), ManifestWriter(Path(PATH)):
            pass
        assert "another run is writing it: 'manifest.jsonl'" in next(locked_elsewhere(PATH))
        manifest.append(CAT)
    assert not manifest.is_open
    write([{"key": "c"}])
    assert keys() == ["bird.jpg", "cat.jpg", "c"]


def test_a_writer_in_another_process_is_respected_and_its_death_frees_the_manifest() -> None:
    other = locked_elsewhere(PATH)
    assert next(other) == "open"
    with pytest.raises(InUse):
        write(CAT)
    other.close()
    write(CAT)
    assert keys() == ["cat.jpg"]


def test_a_file_system_without_locks_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_lock)
    with ManifestWriter(Path(PATH)) as manifest:
        assert not manifest.locked
        manifest.append(CAT)
    assert keys() == ["cat.jpg"]


def test_a_symlink_in_the_place_of_the_manifest_is_refused() -> None:
    Path(PATH).symlink_to("elsewhere")
    with pytest.raises(OSError, match=PATH):
        write(CAT)
    assert not Path("elsewhere").exists()


def test_clearing_leaves_an_empty_manifest_that_can_be_appended_to() -> None:
    with ManifestWriter(Path(PATH)) as manifest:
        manifest.append(BIRD)
        manifest.clear()
        assert Path(PATH).read_bytes() == b""
        manifest.append(CAT)
    assert keys() == ["cat.jpg"]
    assert json.loads(Path(PATH).read_text().splitlines()[0])["part"] == [1, 2]
