"""`xai fisher` and `xai combine-fishers`: from a shell, with every way to end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import assert_close, run_xai
from safetensors.torch import load_file

from xai_cli.engine.stopping import Interrupted
from xai_cli.merging import fisher
from xai_cli.merging.pictures import batches
from xai_cli.merging.statistics import read_statistics
from xai_cli.outputs.files import alone_at

_SIGNALLED = """
import os, signal, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "{moment}":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
"""


@pytest.fixture
def whole(pictures: Path) -> Path:
    """The folder of pictures without the broken ones."""
    for name in ("cut.png", "text.jpg"):
        (pictures / name).unlink()
    return pictures


def test_a_file_is_written_and_its_path_printed(net: str, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "new/f.safetensors"
    answer = run_xai("fisher", net, "--data", whole, "-o", out)
    assert (answer.code, answer.paths) == (0, [str(out)])
    assert "fisher of 3 pictures, expected, 3 ways back each" in answer.said
    about = read_statistics(out).about
    assert (about.n, about.estimator, about.probes, about.checkpoint_sha256) == (3, "expected", 3, "")
    assert load_file(out).keys() == {"0.weight", "0.bias", "4.weight", "4.bias"}
    stamp = out.stat().st_mtime_ns
    again = run_xai("fisher", net, "--data", whole, "-o", out, "--batch-size", 1)
    assert (again.code, again.paths, out.stat().st_mtime_ns) == (0, [str(out)], stamp)
    assert "left as it is; --overwrite makes it again" in again.said
    changed = ["fisher", net, "--data", whole, "-o", out, "--estimator", "eig", "--probes", 2]
    other = run_xai(*changed)
    assert (other.code, other.paths) == (2, [])
    assert "answers another request (estimator expected, now eig)" in other.said
    assert (
        run_xai("fisher", net, "--data", whole, "-o", out, "--estimator", "eig", "--probes", 2, "--overwrite").code == 0
    )


def test_broken_pictures_are_named(net: str, pictures: Path, tmp_path: Path) -> None:
    answer = run_xai("fisher", net, "--data", pictures, "-o", tmp_path / "f.safetensors")
    assert (answer.code, len(answer.paths)) == (3, 1)
    assert "cut.png is left out: the file is cut short" in answer.said
    assert "fisher of 3 pictures, expected, 3 ways back each; 2 pictures could not be read" in answer.said
    assert read_statistics(tmp_path / "f.safetensors").about.skipped == ("cut.png", "text.jpg")


def test_what_cannot_be_done(net: str, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    (tmp_path / "empty").mkdir()
    cases = {
        ("--data", tmp_path / "empty"): (4, "found no picture in"),
        ("--data", tmp_path / "nowhere"): (2, "expected a folder of pictures, found none at"),
        (): (2, "expected a folder of pictures, found none; give it with --data"),
        ("--data", pictures, "--params", "hat"): (2, "--params matches nothing: no parameter is named 'hat'; did you"),
        ("--data", pictures, "--estimator", "empirical"): (2, "in no folder named after a class"),
        ("--data", pictures, "--checkpoint", tmp_path / "no.pt"): (2, "expects a file, found nothing at"),
        ("--data", pictures, "-o", "f.pt"): (2, "expected a .safetensors file to write, found f.pt; give it with -o"),
    }
    for arguments, (code, message) in cases.items():
        answer = run_xai("fisher", net, "-o", out, *arguments)
        assert (answer.code, answer.paths) == (code, []), answer.said
        assert message in answer.said
    assert not out.exists()


def test_given_labels_are_told_to_be_biased(net: str, whole: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("bees\nbirds\ncats\n")
    (whole / "cats").mkdir()
    for name in ("a.png", "b.jpg"):
        shutil.move(whole / name, whole / "cats")
    answer = run_xai("fisher", net, "--labels", names, "--data", whole, "--estimator", "empirical",
                     "--dtype", "float16", "-o", tmp_path / "f.safetensors")  # fmt: skip
    assert answer.code == 0
    assert all(each in answer.said for each in ("is biased", "BIASED", "the Fisher is computed in float32"))
    assert read_statistics(tmp_path / "f.safetensors").about.biased


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_done(
    net: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    out, straight = tmp_path / "f.safetensors", tmp_path / "straight.safetensors"
    arguments = ["fisher", net, "--data", whole, "--batch-size", 1, "--estimator", "importance"]
    run_xai(*arguments, "-o", straight)

    def signalled(*given: object) -> Iterator[object]:
        for n, batch in enumerate(batches(*given)):  # type: ignore[arg-type]
            if n == 2:
                os.kill(os.getpid(), number)
            yield batch

    monkeypatch.setattr(fisher, "batches", signalled)
    answer = run_xai(*arguments, "-o", out)
    assert (answer.code, answer.paths) == (128 + number, [])
    assert f"stopped by {number.name}; the same command goes on" in answer.said
    assert not out.exists()
    monkeypatch.undo()
    assert "going on after 2 pictures" in run_xai(*arguments, "-o", out).said
    assert out.read_bytes() == straight.read_bytes()


def test_combined_over_two_folders_as_over_both(net: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "birds", tmp_path / "birds")
    shutil.copytree(whole, tmp_path / "rest", ignore=lambda folder, names: ["birds"])
    paths = [tmp_path / f"{name}.safetensors" for name in ("all", "birds", "rest", "both")]
    for folder, path in zip((whole, tmp_path / "birds", tmp_path / "rest"), paths, strict=False):
        assert run_xai("fisher", net, "--data", folder, "-o", path).code == 0
    answer = run_xai("combine-fishers", *paths[1:3], "-o", paths[3])
    assert (answer.code, answer.paths) == (0, [str(paths[3])])
    for name, tensor in load_file(paths[0]).items():
        assert_close(load_file(paths[3])[name], tensor, rtol=1e-5, atol=1e-9)
    twice = run_xai("combine-fishers", paths[1], paths[1], "-o", tmp_path / "x.safetensors")
    assert (twice.code, "count the same pictures; leave one out" in twice.said) == (2, True)


def test_a_checkpoint_is_known_by_its_hash(net: str, whole: Path, tmp_path: Path) -> None:
    namespace: dict[str, object] = {}
    exec(Path(net.removesuffix(":make")).read_text(), namespace)
    torch.save(namespace["make"]().state_dict(), tmp_path / "w.pt")  # type: ignore[operator]
    run_xai("fisher", net, "--data", whole, "-o", tmp_path / "f.safetensors", "--checkpoint", tmp_path / "w.pt")
    about = read_statistics(tmp_path / "f.safetensors").about
    assert len(about.checkpoint_sha256) == 64
    assert len(about.model_digest) == 64


def test_what_is_read_is_never_overwritten(net: str, whole: Path, tmp_path: Path) -> None:
    weights, link = tmp_path / "w.safetensors", tmp_path / "link.safetensors"
    assert run_xai("fisher", net, "--data", whole, "-o", weights).code == 0
    link.symlink_to(weights)
    content = weights.read_bytes()
    for out in (weights, link):
        for command in (("fisher", net, "--data", whole, "--checkpoint", weights), ("combine-fishers", out, weights)):
            answer = run_xai(*command, "-o", out, "--overwrite")
            assert (answer.code, answer.paths) == (2, [])
            assert "-o expects another file than what is read" in answer.said
    assert weights.read_bytes() == content


def test_one_output_is_written_by_one_process(net: str, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    with alone_at(out):
        for command in (("fisher", net, "--data", whole), ("combine-fishers", tmp_path / "a", tmp_path / "b")):
            answer = run_xai(*command, "-o", out)
            assert (answer.code, answer.paths) == (2, [])
            assert f"another process is writing {out}; wait for it" in answer.said
    assert run_xai("fisher", net, "--data", whole, "-o", out).code == 0


def test_an_output_that_cannot_be_written_is_found_at_once(
    net: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "batches", None)  # nothing is spent
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "f.safetensors"
    for command in (("fisher", net, "--data", whole), ("combine-fishers", tmp_path / "a", tmp_path / "b")):
        answer = run_xai(*command, "-o", out)
        assert (answer.code, answer.paths) == (5, [])
        assert f"'{tmp_path / 'file'}'; nothing half written is left" in answer.said


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "No space left on device"), (errno.ENOENT, "No such file or directory")]
)
def test_a_disk_that_fails_is_told_with_the_path(
    net: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(*given: object) -> None:
        raise OSError(number, words)

    monkeypatch.setattr(os, "replace", fail)
    answer = run_xai("fisher", net, "--data", whole, "-o", tmp_path / "f.safetensors")
    assert (answer.code, answer.paths) == (5, [])
    assert f"{words}: '{tmp_path / 'f.safetensors'}'" in answer.said


@pytest.mark.parametrize("moment", ["xai_cli.cli.fisher", "xai_cli.merging.fisher"])
def test_ctrl_c_is_quiet_from_the_start(tmp_path: Path, moment: str) -> None:
    """SIGINT comes while Python imports a module."""
    (tmp_path / "sitecustomize.py").write_text(_SIGNALLED.format(moment=moment))
    command = [
        sys.executable,
        "-m",
        "xai_cli",
        "fisher",
        "builtin/scenes-cnn",
        "--data",
        tmp_path,
        "-o",
        "f.safetensors",
    ]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_signal_that_python_wraps_is_no_fault_of_the_model(
    net: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing(*given: object, **more: object) -> None:
        raise RuntimeError("Error calling __set_name__") from Interrupted(signal.SIGTERM)

    monkeypatch.setattr(fisher, "estimate_fisher", importing)
    answer = run_xai("fisher", net, "--data", whole, "-o", tmp_path / "f.safetensors")
    assert (answer.code, "the model fails" in answer.said) == (143, False)
