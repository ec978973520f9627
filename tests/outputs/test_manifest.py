from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from xai_cli.outputs.manifest import SCHEMA, ManifestWriter, latest_rows, read_manifest


def write(path: Path, *rows: dict[str, object]) -> None:
    with ManifestWriter(path) as manifest:
        for row in rows:
            manifest.append(row)


def test_rows_come_back_and_stand_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run" / "manifest.jsonl"
    with ManifestWriter(path) as manifest:
        manifest.append({"key": "a.jpg", "checks": {"degenerate": False}})
        assert path.read_bytes() == b'{"schema":1,"key":"a.jpg","checks":{"degenerate":false}}\n'
        manifest.append({"key": "b.jpg"})
    assert list(read_manifest(path)) == [
        {"schema": SCHEMA, "key": "a.jpg", "checks": {"degenerate": False}},
        {"schema": SCHEMA, "key": "b.jpg"},
    ]


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "two\nlines", "\u2028", "<img>", "猫.jpg", '"\\', "\x1b[31m"])
def test_any_name_is_one_ascii_line(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m", {"key": name})
    data = (tmp_path / "m").read_bytes()
    assert data.isascii()
    assert data.count(b"\n") == 1
    assert next(read_manifest(tmp_path / "m"))["key"] == name


@pytest.mark.parametrize("torn", [b'{"schema":1,"key":"b', b'{"key": "caf\xc3', b"\0\0\0", b"\n", b"  ", b"17"])
def test_a_torn_line_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "m"
    write(path, {"key": "a"})
    with path.open("ab") as file:
        file.write(torn)
    assert [row["key"] for row in read_manifest(path)] == ["a"]
    write(path, {"key": "b"})
    assert [row["key"] for row in read_manifest(path)] == ["a", "b"]


def test_a_row_cut_by_a_full_disk_is_an_error_and_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "m", os.write
    with ManifestWriter(path) as manifest:
        manifest.append({"key": "a"})
        monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:9]))
        with pytest.raises(OSError, match="last row is torn"):
            manifest.append({"key": "b"})
        monkeypatch.setattr(os, "write", whole)
        manifest.append({"key": "c"})
    assert [row["key"] for row in read_manifest(path)] == ["a", "c"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_is_strict(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(tmp_path / "m", {"key": "a", "logit": value})
    assert (tmp_path / "m").read_bytes() == b""


def test_a_symlink_in_the_place_of_the_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="m"):
        write(tmp_path / "m", {"key": "a"})
    assert not (tmp_path / "elsewhere").exists()


def test_the_last_row_of_a_key_method_and_target_counts(tmp_path: Path) -> None:
    cat, dog = {"index": 281}, {"index": 207}
    write(
        tmp_path / "m",
        {"key": "a", "method": "lrp", "target": cat, "n": 0},
        {"key": "a", "method": "lrp", "target": dog, "n": 1},
        {"key": "a", "method": "ig", "target": cat, "n": 2},
        {"key": "b", "method": "lrp", "target": cat, "n": 3},
        {"key": "a", "method": "lrp", "target": cat, "n": 4},
    )
    assert [row["n"] for row in latest_rows(tmp_path / "m")] == [1, 2, 3, 4]


def test_a_failure_without_a_target_is_outdated_by_a_later_success(tmp_path: Path) -> None:
    write(
        tmp_path / "m",
        {"key": "a", "status": "error", "stage": "decode"},
        {"key": "b", "status": "error", "stage": "decode"},
        {"key": "c", "method": "lrp", "status": "error", "target": None},
        {"key": "a", "method": "lrp", "target": {"index": 1}, "status": "ok"},
        {"key": "c", "method": "lrp", "target": {"index": 1}, "status": "ok"},
    )
    assert json.dumps([[row["key"], row["status"]] for row in latest_rows(tmp_path / "m")]) == json.dumps(
        [["b", "error"], ["a", "ok"], ["c", "ok"]]
    )
