from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from xai_cli.outputs.files import (
    alone_at,
    array_bytes,
    output_path,
    read_array,
    resolve_inside,
    temporary_path,
    whole_file,
    whole_folder,
    write_atomically,
)

_HOLDS = """
import sys
from pathlib import Path
from xai_cli.outputs.files import alone_at
with alone_at(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_is_written_with_its_folders_and_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "gradcam" / "birds" / "cat.jpg.npy"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    (tmp_path / "plain").write_bytes(b"")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert [entry.name for entry in path.parent.iterdir()] == ["cat.jpg.npy"]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_nothing_is_left_where_replacing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    seen: list[str] = []

    def fail(source: Path, target: Path) -> None:
        seen.append(Path(source).name)
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(failure)):
        write_atomically(tmp_path / ("x" * 255), b"data")
    assert seen[0].startswith(".")
    assert seen[0].endswith(".tmp")
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_name_is_the_same_at_every_attempt_and_another_for_every_file() -> None:
    cat = Path("lrp/cat.jpg.npy")
    assert temporary_path(cat) == temporary_path(cat)
    assert temporary_path(cat).parent == cat.parent
    others = [temporary_path(cat.with_name(name)) for name in ("cat.jpg.png", "dog.jpg.npy", "\udcff" * 255)]
    assert len({temporary_path(cat), *others}) == 4
    assert all(len(os.fsencode(path.name)) < 30 for path in others)


@pytest.mark.parametrize("leave", ["file", "link"])
def test_what_a_dead_process_left_is_taken_over(tmp_path: Path, leave: str) -> None:
    path, stale = tmp_path / "cat.jpg.npy", temporary_path(tmp_path / "cat.jpg.npy")
    kept = tmp_path / "kept"
    kept.write_bytes(b"kept")
    if leave == "link":
        stale.symlink_to(kept)
    else:
        stale.write_bytes(b"torn, and longer than the whole")
    write_atomically(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert {each.name for each in tmp_path.iterdir()} == {"cat.jpg.npy", "kept"}
    assert kept.read_bytes() == b"kept"


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "demo"
    with pytest.raises(FileExistsError), whole_folder(path) as folder:
        folder.mkdir()
    assert list(path.parent.iterdir()) == []
    (temporary_path(path) / "left").mkdir(parents=True)
    with whole_folder(path) as folder:
        (folder / "all").write_bytes(b"")
        assert not path.exists()
    assert [str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")] == ["new", "new/demo", "new/demo/all"]


def test_a_folder_in_use_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine").write_bytes(b"")
    with pytest.raises(OSError, match=r"not empty.*/demo'"), whole_folder(tmp_path / "demo"):
        pass
    assert [str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")] == ["demo", "demo/mine"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cat.npy"
    with pytest.raises(OSError, match=r"No space left on device: '.*/cat\.npy'"), whole_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError, match=r"'.*/cat\.npy'$"), whole_file(path):
        temporary_path(path).unlink()
    with pytest.raises(FileNotFoundError, match="'other'"), whole_file(path):
        raise FileNotFoundError(errno.ENOENT, "not found", "other")  # what is read meanwhile keeps its name
    with pytest.raises(OSError, match="in words"), whole_file(path):
        raise OSError("in words")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="/file'"), alone_at(tmp_path / "file" / "cat.npy"):
        pass


def test_one_process_at_a_time_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cat.npy"
    with subprocess.Popen([sys.executable, "-c", _HOLDS, path], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=r"another process is writing .*/cat\.npy; wait"), alone_at(path):
            pass
        with alone_at(path.with_name("dog.npy")):
            pass
        other.kill()
    with alone_at(path):  # a dead process holds nothing
        pass
    assert list(path.parent.iterdir()) == []


def test_a_lock_whose_name_has_gone_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[int] = []

    def flock(descriptor: int, how: int) -> None:
        if not locked:  # who held it before has just ended
            next(tmp_path.iterdir()).unlink()
        locked.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone_at(tmp_path / "cat.npy"):
        assert len(locked) == 2
        assert next(tmp_path.iterdir()).stat().st_ino == locked[1]


def test_a_file_system_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone_at(tmp_path / "cat.npy"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_symlink_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"kept")
    (tmp_path / "link").symlink_to(secret)
    write_atomically(tmp_path / "link", b"data")
    assert secret.read_bytes() == b"kept"
    assert not (tmp_path / "link").is_symlink()


def test_an_array_is_little_endian_float32_in_c_order(tmp_path: Path) -> None:
    relevance = np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3))
    (tmp_path / "a.npy").write_bytes(array_bytes(relevance))
    stored = np.load(BytesIO(array_bytes(relevance)), allow_pickle=False)
    assert stored.dtype.str == "<f4"
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), relevance)


def test_only_whole_arrays_of_numbers_are_read(tmp_path: Path) -> None:
    whole = array_bytes(np.zeros((5, 5), np.float32))
    pickled = BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    for data in (whole[:-1], whole[:20], b"", pickled.getvalue(), b"PK\x03\x04"):
        (tmp_path / "a.npy").write_bytes(data)
        with pytest.raises(ValueError, match="is not a whole NPY file of numbers"):
            read_array(tmp_path / "a.npy")


def test_paths_append_to_the_whole_name() -> None:
    assert str(output_path("gradcam", "birds/cat.jpg", "", "npy")) == "gradcam/birds/cat.jpg.npy"
    assert str(output_path("gradcam", "birds/cat.jpg", "281", "png")) == "gradcam/birds/cat.jpg.281.png"
    assert str(output_path("lrp", "two\nlines.jpg", "", "npy")) == "lrp/two\nlines.jpg.npy"


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "é" * 200 + ".jpg", "x" * 248 + ".jpg", "\udcff" * 255])
def test_long_names_are_cut_and_stay_apart(name: str) -> None:
    path = output_path("lrp", f"a/{name}", "281", "npy")
    assert path == output_path("lrp", f"a/{name}", "281", "npy")
    assert path.name != output_path("lrp", f"b/{name}", "281", "npy").name
    assert 253 <= len(os.fsencode(path.name)) <= 255
    stem, digest = path.name.removesuffix(".281.npy").rsplit("~")
    assert name.startswith(stem)
    assert len(digest) == 8


def test_a_name_of_just_255_bytes_is_kept() -> None:
    assert output_path("lrp", "x" * 251, "", "npy").name == "x" * 251 + ".npy"
    assert "~" in output_path("lrp", "x" * 252, "", "npy").name


@pytest.mark.parametrize("key", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "../../../x.jpg"])
def test_a_key_cannot_leave_the_output_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="leads outside the output folder"):
        resolve_inside(tmp_path, output_path("lrp", key, "", "npy"))


def test_a_folder_that_is_a_symlink_cannot_lead_outside(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "lrp").mkdir(parents=True)
    (tmp_path / "link").symlink_to(out)
    (out / "lrp" / "birds").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads outside"):
        resolve_inside(out, PurePosixPath("lrp/birds/cat.jpg.npy"))
    assert resolve_inside(tmp_path / "link", PurePosixPath("lrp/new/c.npy")) == tmp_path / "link" / "lrp/new/c.npy"


@pytest.mark.parametrize("path", ["lrp/cat.jpg.npy", "lrp/birds/cat.jpg.npy"])
def test_links_that_lead_in_a_circle_lead_nowhere(tmp_path: Path, path: str) -> None:
    (tmp_path / "lrp").symlink_to("lrp")
    with pytest.raises(ValueError, match="leads outside the output folder"):
        resolve_inside(tmp_path, PurePosixPath(path))
