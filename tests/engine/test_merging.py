"""The manifests of shards become one manifest, or nothing changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from xai_cli.engine.merging import merge_manifests
from xai_cli.outputs.manifest import InUse, ManifestWriter, manifest_name, read_records


def write(out: Path, shard: tuple[int, int] | None, *rows: tuple[str, int]) -> Path:
    path = out / manifest_name(shard)
    with ManifestWriter(path) as manifest:
        for key, number in rows:
            manifest.append([{"key": key, "number": number}, {"key": key, "number": -number}])
        if shard is not None:
            manifest.finish(len(rows))
    return path


def merged(out: Path) -> list[tuple[str, int]]:
    return [(record[0]["key"], record[0]["number"]) for record in read_records(out / "manifest.jsonl")]


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_shards_are_joined_in_order_and_removed(tmp_path: Path) -> None:
    for shard in range(10, 0, -1):
        write(tmp_path, (shard, 10), (f"{shard}.jpg", shard))
    assert merge_manifests(tmp_path) == 10
    assert merged(tmp_path) == [(f"{shard}.jpg", shard) for shard in range(1, 11)]
    assert names(tmp_path) == ["manifest.jsonl"]
    assert merge_manifests(tmp_path) == 0


def test_a_later_round_of_some_shards_is_joined_to_what_there_is(tmp_path: Path) -> None:
    for shard in (1, 2):
        write(tmp_path, (shard, 2), (f"{shard}.jpg", shard))
    merge_manifests(tmp_path)
    write(tmp_path, (2, 2), ("2.jpg", 3))
    assert merge_manifests(tmp_path) == 1
    assert merged(tmp_path) == [("1.jpg", 1), ("2.jpg", 3)]


def test_only_records_that_count_are_kept_and_those_of_an_earlier_manifest_come_first(tmp_path: Path) -> None:
    write(tmp_path, None, ("kept\udce9", 1), ("outdated", 2))
    with write(tmp_path, (1, 2), ("outdated", 3), ("twice", 4)).open("ab") as file:
        file.write(b'{"schema":1,"key":"torn"')
    write(tmp_path, (1, 2), ("twice", 5))
    write(tmp_path, (2, 2))
    merge_manifests(tmp_path)
    assert merged(tmp_path) == [("kept\udce9", 1), ("outdated", 3), ("twice", 5)]
    assert (tmp_path / "manifest.jsonl").read_bytes().count(b"\n") == 6


def test_a_row_is_kept_byte_by_byte(tmp_path: Path) -> None:
    *rows, note = write(tmp_path, (1, 1), ("a", 1), ("caf\udce9 猫\n", 2)).read_bytes().splitlines(keepends=True)
    merge_manifests(tmp_path)
    assert (tmp_path / "manifest.jsonl").read_bytes() == b"".join(rows)
    assert note == b'{"schema":1,"finished":{"pictures":2}}\n'


def test_a_shard_that_is_not_finished_is_named_and_nothing_changes(tmp_path: Path) -> None:
    write(tmp_path, (1, 2), ("a", 1))
    shard = write(tmp_path, (2, 2), ("b", 2))
    with ManifestWriter(shard) as manifest:
        manifest.append([{"key": "c"}])
    before = names(tmp_path)
    with pytest.raises(ValueError, match=r"found unfinished manifest-2-of-2\.jsonl; run these again"):
        merge_manifests(tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    ("shards", "sentence"),
    [
        ([(1, 3), (3, 3)], "all 3 shards .* none named manifest-2-of-3.jsonl; run"),
        ([(1, 2), (1, 4)], "shards of one run .* shards of 2 and of 4"),
        ([(1, 10**9)], "none named manifest-0000000002-of-1000000000.jsonl, manifest-0000000003-of-1000000000.jsonl"),
        ([(3, 2)], "none named manifest-1-of-2.jsonl, manifest-2-of-2.jsonl"),
    ],
)
def test_missing_shards_are_named_and_nothing_changes(
    tmp_path: Path, shards: list[tuple[int, int]], sentence: str
) -> None:
    for shard in shards:
        write(tmp_path, shard, ("a", 1))
    before = names(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        merge_manifests(tmp_path)
    assert names(tmp_path) == before


@pytest.mark.parametrize("used", [(2, 2), None])
def test_manifests_in_use_are_left_alone(tmp_path: Path, used: tuple[int, int] | None) -> None:
    for shard in (None, (1, 2), (2, 2)):
        write(tmp_path, shard, (str(shard), 1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with ManifestWriter(tmp_path / manifest_name(used)), pytest.raises(InUse):
        merge_manifests(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_shards_stay_locked_until_they_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, replace = write(tmp_path, (1, 1), ("a", 1)), os.replace

    def watched(*arguments: Path) -> None:
        with pytest.raises(InUse), ManifestWriter(shard):
            pass
        replace(*arguments)

    monkeypatch.setattr(os, "replace", watched)
    assert merge_manifests(tmp_path) == 1


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, None, ("a", 1))
    write(tmp_path, (1, 1), ("b", 2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        merge_manifests(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
