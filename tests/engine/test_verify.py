"""A run folder that is as its manifest says, and every way in which it is not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xai_cli.engine.options import DrawingOptions
from xai_cli.engine.verify import verify
from xai_cli.outputs.files import array_bytes
from xai_cli.outputs.manifest import ManifestWriter

MAP = np.arange(6, dtype=np.float32).reshape(2, 3)
BIRD = "gradcam/birds/caf\udce9.jpg.npy"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


def ok(out: Path, key: str, method: str = "gradcam", npy: bytes | None = None) -> dict[str, Any]:
    """The row of a map, whose files are written."""
    data = {"npy": array_bytes(MAP) if npy is None else npy, "png": png()}
    files = {kind: f"{method}/{key}.{kind}" for kind in data}
    for kind, content in data.items():
        (out / files[kind]).parent.mkdir(parents=True, exist_ok=True)
        (out / files[kind]).write_bytes(content)
    return {
        "key": key,
        "path": f"/pictures/{key}",
        "source": None,
        "status": "ok",
        "checks": {},
        "method": method,
        "files": files,
        "bytes": {kind: len(content) for kind, content in data.items()},
        "crc32": {kind: f"{zlib.crc32(content):08x}" for kind, content in data.items()},
        "geometry": {"map": [3, 2]},
    }


def error(key: str, **more: Any) -> dict[str, Any]:
    return {"key": key, "path": f"/pictures/{key}", "source": None, "status": "error", **more}


def append(out: Path, *records: list[dict[str, Any]], name: str = "manifest.jsonl") -> None:
    with ManifestWriter(out / name) as manifest:
        for record in records:
            manifest.append(record)


def describe(out: Path, methods: tuple[str, ...] = ("gradcam",), target: str = "predicted") -> None:
    out.mkdir(exist_ok=True)
    run = {"methods": {method: {} for method in methods}, "options": {"target": target}}
    (out / "run.json").write_text(json.dumps(run))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run of two pictures, one with a name that is no text, and of one that is broken."""
    folder = tmp_path / "out"
    describe(folder)
    append(folder, [ok(folder, "a.jpg")], [error("broken.jpg")], [ok(folder, "birds/caf\udce9.jpg")])
    return folder


def found(out: Path) -> list[tuple[str, str]]:
    """The findings, with paths below the folder."""
    return [(f.path.removeprefix(f"{out}/"), f.problem) for f in verify(out, Counter())]


def test_a_whole_run_has_no_findings_and_is_counted(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    assert list(verify(out, counts)) == []
    assert counts == Counter(pictures=2, files=4, wrong=0)
    monkeypatch.chdir(out)
    assert list(verify(Path(), Counter())) == []


def replaced(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "expected 152 bytes, found 0"),
        (lambda path: path.write_bytes(bytes(152)), "its content has changed: expected the CRC-32 "
         f"{zlib.crc32(array_bytes(MAP)):08x}, found {zlib.crc32(bytes(152)):08x}"),
        (linked, "is not a regular file"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a regular file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is not a regular file"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_it_was_written(out: Path, damage: Callable[[Path], None], problem: str) -> None:
    damage(out / BIRD)
    assert found(out) == [(BIRD, problem)]


@pytest.mark.parametrize(
    ("npy", "problem"),
    [
        (array_bytes(MAP.T), "expected float32 of shape (2, 3), found float32 of shape (3, 2)"),
        (array_bytes(np.full((2, 3), np.nan)), "holds numbers that are NaN or infinite"),
        (array_bytes(MAP)[:-1], "is not a whole NPY file of numbers"),
        (b"", "is not a whole NPY file of numbers"),
    ],
)
def test_a_map_that_was_written_wrongly(out: Path, npy: bytes, problem: str) -> None:
    append(out, [ok(out, "a.jpg", npy=npy)])
    assert found(out) == [("gradcam/a.jpg.npy", problem)]


def test_numbers_of_another_type_are_told(out: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, MAP.astype(np.float64))
    append(out, [ok(out, "a.jpg", npy=buffer.getvalue())])
    assert found(out) == [("gradcam/a.jpg.npy", "expected float32 of shape (2, 3), found float64 of shape (2, 3)")]


@pytest.mark.parametrize("data", [b"", png()[:40], png()[:60] + b"\0" + png()[61:], b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_a_picture_that_was_written_wrongly(out: Path, data: bytes) -> None:
    row = ok(out, "a.jpg")
    (out / "gradcam/a.jpg.png").write_bytes(data)
    row["bytes"]["png"], row["crc32"]["png"] = len(data), f"{zlib.crc32(data):08x}"
    append(out, [row])
    assert found(out) == [("gradcam/a.jpg.png", "is not a whole PNG")]


@pytest.mark.parametrize("path", ["../secret.npy", "/etc/passwd", "link/a.npy", "a\0.npy", "loop/a.npy"])
def test_a_path_that_leads_elsewhere_is_never_opened(out: Path, path: str) -> None:
    (out.parent / "secret.npy").write_bytes(array_bytes(MAP))
    (out / "link").symlink_to("/")
    (out / "loop").symlink_to("loop")
    append(out, [{**ok(out, "a.jpg"), "files": {"npy": path}}])
    assert "is no path inside the run folder" in {problem for _, problem in found(out)}


@pytest.mark.parametrize("lost", ["files", "bytes", "crc32", "geometry"])
def test_a_row_that_says_too_little_is_told(out: Path, lost: str) -> None:
    row = ok(out, "a.jpg")
    append(out, [{name: value for name, value in row.items() if name != lost}])
    assert ("/pictures/a.jpg", "its row in the manifest does not say what its files are") in found(out)


def test_results_that_no_record_names_are_found(out: Path) -> None:
    for name in ("gradcam/birds/old.jpg.npy", "gradcam/.0123456789abcdef.tmp", "gradcam/notes.txt", "other/a.png"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()
    (out / "gradcam/linked").symlink_to(out / "other")
    assert sorted(found(out)) == [
        ("gradcam/.0123456789abcdef.tmp", "was left half-written"),
        ("gradcam/birds/old.jpg.npy", "is named by no record that counts"),
    ]


def test_only_the_last_record_of_a_picture_counts(out: Path) -> None:
    append(out, [error("a.jpg")], name="manifest-1-of-2.jsonl")
    stray = "is named by no record that counts"
    assert sorted(found(out)) == [("gradcam/a.jpg.npy", stray), ("gradcam/a.jpg.png", stray)]


def test_a_record_has_as_many_rows_as_were_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    describe(out, methods=("gradcam", "ig"), target="top:2")
    rows = [ok(out, f"{method}{rank}", method) for method in ("gradcam", "ig") for rank in (1, 2)]
    whole = [{**row, "key": "a.jpg"} for row in rows]
    append(out, whole, [error("b.jpg")], [*({**row, "key": "c.jpg"} for row in rows[:3]), error("c.jpg", method="ig")])
    assert found(out) == []
    append(out, [{**row, "key": "d.jpg", "path": "/d.jpg"} for row in rows[:3]], [error("e.jpg")] * 2)
    assert found(out) == [
        ("/d.jpg", "rows in the manifest: expected 4, found 3"),
        ("/pictures/e.jpg", "rows in the manifest: expected 1, found 2"),
    ]


def test_a_map_that_waits_for_the_limit_of_all_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    describe(out)
    given = {"target": "predicted", **DrawingOptions(scale="run").as_row()}
    (out / "run.json").write_text(json.dumps({"methods": {"gradcam": {}}, "options": given}))

    def row(key: str, **more: Any) -> dict[str, Any]:
        return {**ok(out, key), "warnings": [], "scale": {"own": 1.0, "limit": 1.0}, **more}

    undrawn = row("b.jpg")
    (out / undrawn["files"].pop("png")).unlink()
    append(out, [row("a.jpg")], [undrawn], [row("c.jpg", scale={"own": 0.5, "limit": 0.5})], [row("d.jpg", scale=None)])
    again = "give the same command again, or xai merge-manifests"
    expected = [
        ("gradcam/b.jpg.png", f"not drawn yet; {again}"), ("gradcam/c.jpg.png", f"drawn at an earlier limit; {again}")
    ]  # fmt: skip
    assert found(out) == expected
    given["render"] = "none"
    (out / "run.json").write_text(json.dumps({"methods": {"gradcam": {}}, "options": given}))
    assert found(out) == []


@pytest.mark.parametrize("torn", [b'{"schema":1,"key":"new.jpg","pa', b"\0\0\n", b'{"key":"caf\xe9"}\n', b"[1]\n"])
def test_a_torn_line_is_told_with_its_number(out: Path, torn: bytes) -> None:
    with (out / "manifest.jsonl").open("ab") as file:
        file.write(torn)
    assert found(out) == [("manifest.jsonl", "line 4 is of no whole record")]


def test_a_torn_line_of_a_picture_that_was_made_again_is_none(out: Path) -> None:
    with (out / "manifest.jsonl").open("ab") as file:
        file.write(b'{"schema":1,"key":"new.jpg","path":"/pictures/new.jpg","sta')
    append(out, [ok(out, "new.jpg")])
    assert found(out) == []


@pytest.mark.parametrize(
    "run", [None, b"", b"[]", b'{"methods":{"/etc":{}},"options":{"target":"label"}}', b'{"methods":{},"options":{}}']
)
def test_a_folder_that_holds_no_run_is_refused(tmp_path: Path, run: bytes | None) -> None:
    if run is not None:
        (tmp_path / "run.json").write_bytes(run)
    with pytest.raises(LookupError, match=f"expected a run folder, found none at {tmp_path}"):
        list(verify(tmp_path, Counter()))


def test_the_modules_wait_for_neither_torch_nor_numpy() -> None:
    code = "import sys, xai_cli.cli.runs; assert not {'torch', 'numpy', 'PIL'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
