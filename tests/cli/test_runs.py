"""What is done with a finished run: what is printed, byte by byte, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run_xai

from xai_cli.cli.runs import errors
from xai_cli.engine.options import DrawingOptions, InputOptions
from xai_cli.outputs.files import array_bytes
from xai_cli.outputs.manifest import ManifestWriter, shard_of

HOSTILE = "esc\x1b[31m"


def error(key: str, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "path": f"/pictures/{key}",
        "source": None,
        "status": "error",
        "stage": "open",
        "type": "NotFound",
        **more,
    }


def append(path: Path, *records: list[dict[str, Any]]) -> None:
    with ManifestWriter(path) as manifest:
        for record in records:
            manifest.append(record)
        if shard_of(path):
            manifest.finish(len(records))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run of a picture that was explained, with a hostile name, and of one that was not there."""
    folder = tmp_path / "out"
    (folder / "ig").mkdir(parents=True)
    options = {"target": "predicted", **InputOptions().as_row(), **DrawingOptions().as_row()}
    (folder / "run.json").write_text(json.dumps({"methods": {"ig": {}}, "options": options}))
    data = array_bytes(np.zeros((2, 3), np.float32))
    (folder / f"ig/{HOSTILE}.npy").write_bytes(data)
    row = {"key": HOSTILE, "path": f"/pictures/{HOSTILE}", "source": None, "status": "ok", "checks": {}, "method": "ig",
           "files": {"npy": f"ig/{HOSTILE}.npy"}, "bytes": {"npy": len(data)},
           "crc32": {"npy": f"{zlib.crc32(data):08x}"}, "geometry": {"map": [3, 2]}}  # fmt: skip
    append(folder / "manifest.jsonl", [row], [error("lost.jpg")])
    return folder


def test_a_whole_run_is_verified(out: Path) -> None:
    answer = run_xai("verify", out)
    assert (answer.code, answer.paths) == (0, [])
    assert answer.said == "xai: 1 files of 1 pictures are as the manifest says"


def test_what_is_wrong_is_printed_and_commands_no_terminal(out: Path) -> None:
    (out / f"ig/{HOSTILE}.npy").unlink()
    (out / "ig/old.png").touch()
    answer = run_xai("verify", out)
    assert answer.code == 3
    assert answer.paths == [
        f"{out}/ig/esc\\x1b[31m.npy\tis missing",
        f"{out}/ig/old.png\tis named by no record that counts",
    ]
    assert answer.said == (
        "xai: 1 of 1 files are not as the manifest says; delete them and run the same command again to make them anew; "
        "1 other findings"
    )
    answer = run_xai("verify", out, "--json")
    assert answer.code == 3
    assert json.loads(answer.paths[0]) == {"path": f"{out}/ig/{HOSTILE}.npy", "problem": "is missing"}


@pytest.mark.parametrize("command", ["verify", "errors", "merge-manifests"])
def test_a_folder_that_holds_no_run_is_a_mistake(tmp_path: Path, command: str) -> None:
    answer = run_xai(command, tmp_path)
    assert (answer.code, answer.paths) == (2, [])
    assert f"expected a run folder, found none at {tmp_path}" in answer.said
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(("command", "code"), [("verify", 2), ("errors", 2), ("merge-manifests", 5)])
def test_a_manifest_that_cannot_be_read_is_told(out: Path, command: str, code: int) -> None:
    (out / "manifest-1-of-1.jsonl").mkdir()
    answer = run_xai(command, out)
    assert answer.code == code
    assert "Is a directory" in answer.said
    assert "manifest-1-of-1.jsonl" in answer.said


def test_each_picture_that_failed_is_printed_once(out: Path) -> None:
    method = {"stage": "attribute", "method": "ig"}
    append(out / "manifest.jsonl", [error("mended.jpg")], [error("two.jpg", **method), error("two.jpg", **method)])
    append(out / "manifest-1-of-2.jsonl", [{**error("mended.jpg"), "status": "ok"}])
    assert run_xai("errors", out).paths == ["/pictures/lost.jpg", "/pictures/two.jpg"]
    rows = [json.loads(line) for line in run_xai("errors", out, "--json").paths]
    assert [(row["key"], row["stage"]) for row in rows] == [
        ("lost.jpg", "open"), ("two.jpg", "attribute"), ("two.jpg", "attribute")
    ]  # fmt: skip


def test_a_run_without_errors_has_none(out: Path) -> None:
    (out / "manifest.jsonl").write_bytes(b"")
    answer = run_xai("errors", out)
    assert (answer.code, answer.paths, answer.said) == (0, [], "")


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(f"{sys.executable} -m xai_cli {command}", shell=True, capture_output=True, check=False)


def test_names_come_out_as_the_bytes_that_they_are(out: Path) -> None:
    append(out / "manifest.jsonl", [error("caf\udce9 猫\x1b.jpg")], [error("two\nlines.jpg")])
    done = shell(f"errors -0 {out} | xargs -0 -n1 printf '<%s>'")
    assert done.stdout == "</pictures/lost.jpg></pictures/caf\udce9 猫\x1b.jpg></pictures/two\nlines.jpg>".encode(
        errors="surrogateescape"
    )
    done = shell(f"errors {out}")
    assert (done.returncode, done.stdout) == (2, "/pictures/lost.jpg\n/pictures/caf\udce9 猫\x1b.jpg\n".encode(
        errors="surrogateescape"
    ))  # fmt: skip
    assert done.stderr == b"xai: error: 1 names hold a new line and are not printed; ask for all with -0\n"


def test_on_a_terminal_names_are_shown_escaped(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append(out / "manifest.jsonl", [error("caf\udce9\x1b猫\n.jpg")])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    errors(out)
    assert capsys.readouterr().out == "/pictures/lost.jpg\n/pictures/caf\\udce9\\x1b猫\\n.jpg\n"


def test_shards_are_joined(out: Path) -> None:
    (out / "manifest.jsonl").rename(out / "manifest-2-of-2.jsonl")
    append(out / "manifest-2-of-2.jsonl")
    answer = run_xai("merge-manifests", out)
    assert (answer.code, answer.paths) == (2, [])
    assert "found none named manifest-1-of-2.jsonl" in answer.said
    append(out / "manifest-1-of-2.jsonl", [error("a.jpg")])
    with ManifestWriter(out / "manifest-1-of-2.jsonl"):
        answer = run_xai("merge-manifests", out)
    assert (answer.code, answer.paths) == (2, [])
    assert "another run is writing it" in answer.said
    answer = run_xai("merge-manifests", out)
    assert (answer.code, answer.paths, answer.said) == (0, [f"{out}/manifest.jsonl"], "")
    assert run_xai("errors", out).paths == ["/pictures/a.jpg", "/pictures/lost.jpg"]
    assert run_xai("verify", out).code == 0
    answer = run_xai("merge-manifests", out)
    assert (answer.code, answer.paths) == (0, [f"{out}/manifest.jsonl"])
    assert answer.said == "xai: no manifests of shards are left to be joined"
