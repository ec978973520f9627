"""`xai finetune-scenes`: what is printed, and that no folder in use is written to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import run_xai

from xai_cli.engine.stopping import Interrupted
from xai_cli.outputs.files import alone_at
from xai_cli.scenes import domains


def written(folder: Path) -> Iterator[Path]:
    """In place of two fine-tunings."""
    for name in ("negative", "sepia"):
        (folder / name).write_text(name)
        yield folder / name


def interrupted(folder: Path) -> Iterator[Path]:
    yield next(written(folder))
    raise Interrupted(signal.SIGINT)


def full(folder: Path) -> Iterator[Path]:
    yield next(written(folder))
    raise OSError(28, "No space left on device")


def test_each_path_is_printed_and_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "write_domains", written)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "demo", tmp_path / "empty"):
        answer = run_xai("finetune-scenes", folder)
        assert answer.code == 0
        assert answer.paths == [str(folder / "negative"), str(folder / "sepia")]
        assert all(Path(path).is_file() for path in answer.paths)
        assert "each hold a domain" in answer.said
    assert {path.name for path in tmp_path.iterdir()} == {"new", "empty"}


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        (interrupted, 130, "stopped by SIGINT; nothing is left of it, and the same command starts again"),
        (full, 5, "No space left on device: '{}'; nothing half written is left"),
    ],
)
def test_what_ends_early_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: object, code: int, message: str
) -> None:
    monkeypatch.setattr(domains, "write_domains", end)
    answer = run_xai("finetune-scenes", tmp_path / "demo")
    assert (answer.code, answer.paths) == (code, [])
    assert message.format(tmp_path / "demo") in answer.said
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(domains, "write_domains", written)
    assert run_xai("finetune-scenes", tmp_path / "demo").code == 0


def test_ctrl_c_is_quiet_in_all_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xai_cli", "finetune-scenes", str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and len(children.read_text().split()) < 3:  # multiprocessing has one of its own
            time.sleep(0.02)
        time.sleep(0.15)  # they import, and draw
        os.killpg(process.pid, signal.SIGINT)
        out, said = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert said == "xai: stopped by SIGINT; nothing is left of it, and the same command starts again\n"
    assert list(tmp_path.iterdir()) == []


def test_two_do_not_write_at_once(tmp_path: Path) -> None:
    with alone_at(tmp_path / "demo"):
        answer = run_xai("finetune-scenes", tmp_path / "demo")
    assert (answer.code, answer.paths) == (2, [])
    assert "another process is writing" in answer.said


def test_the_folder_that_one_stands_in_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (run_xai("finetune-scenes", ".").code, list(tmp_path.iterdir())) == (2, [])


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    answer = run_xai("finetune-scenes", tmp_path)
    assert answer.code == 2
    assert f"expected a new or empty folder, found {tmp_path} in use; name another" in answer.said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
