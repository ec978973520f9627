"""A run that goes on: with what was changed, lost or repaired since, beside another run, in parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.desk import COMMAND, PICTURES, Desk
from helpers import run_xai
from PIL import Image

_LIGHT = """
import sys
from xai_cli.cli.main import main
try:
    main()
finally:
    assert not {"torch", "torchvision", "timm"} & set(sys.modules), "a model's library was imported"
"""


def light(desk: Desk) -> subprocess.CompletedProcess[str]:
    """The run's command in a new process, which must not import torch."""
    command = [sys.executable, "-c", _LIGHT, *COMMAND]
    return subprocess.run(command, cwd=desk.folder, capture_output=True, text=True, check=False)


def traces(desk: Desk) -> dict[Path, tuple[int, int]]:
    """Which file stands at each name, and when it was last changed."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in desk.out.rglob("*")}


def test_a_finished_run_is_recognised_without_torch_and_left_as_it_is(desk: Desk) -> None:
    assert desk.run().code == 0
    before = traces(desk)
    again = light(desk)
    assert (again.returncode, again.stdout) == (0, ""), again.stderr
    assert f"{PICTURES} of {PICTURES} pictures explained in out, 0 taken up now" in again.stderr
    assert traces(desk) == before


def test_a_second_run_in_the_folder_is_refused_at_once_and_disturbs_nothing(desk: Desk) -> None:
    first = desk.start_held()
    second = light(desk)
    assert (second.returncode, second.stdout) == (2, ""), second.stderr
    assert "another run is at work in out" in second.stderr
    desk.release()
    assert first.end().code == 0
    desk.assert_complete()


def test_of_two_runs_that_begin_together_one_is_refused_or_finds_all_done(desk: Desk) -> None:
    codes = sorted(process.end().code for process in [desk.start(), desk.start()])
    assert codes in ([0, 0], [0, 2])
    desk.assert_complete(once=False)


def test_shards_run_side_by_side_and_their_manifests_become_one(desk: Desk) -> None:
    shards = [desk.start("--shard", f"{index}/3") for index in (1, 2, 3)]
    assert [shard.end().code for shard in shards] == [0, 0, 0], desk.said()
    keys = [record[0]["key"] for record in desk.records()]
    assert len(keys) == len(set(keys)) == PICTURES
    assert len(list(desk.out.glob("manifest-?-of-3.jsonl"))) == 3
    answer = run_xai("merge-manifests", desk.out)
    assert (answer.code, answer.paths) == (0, [str(desk.out / "manifest.jsonl")]), answer.said
    assert sorted(record[0]["key"] for record in desk.records()) == sorted(keys)
    found, whole = desk.files(), desk.reference.files()
    assert {name for name in whole if found.get(name) != whole[name]} == {"run.json", "overview.png"}
    assert not list(desk.out.rglob(".*"))
    desk.assert_verified()


def test_what_was_lost_or_cut_is_made_again_and_nothing_else(desk: Desk) -> None:
    assert desk.run().code == 0
    (desk.out / "saliency/a/4.png.npy").unlink()
    os.truncate(desk.out / "gradcam/b/7.png.png", 100)
    (desk.out / "gradcam/b/9.png.png").write_bytes(b"")
    ended = desk.run("--json")
    assert ended.code == 0
    made = {json.loads(line)["key"] for line in ended.printed.splitlines()}
    assert made == {"a/4.png", "b/7.png", "b/9.png"}
    desk.assert_complete(once=False)


def test_an_overview_that_later_pictures_outdate_is_not_kept(desk: Desk) -> None:
    later = (desk.folder / "pictures/a").rename(desk.folder / "later")
    assert desk.run().code == 0
    later.rename(desk.folder / "pictures/a")
    old = (desk.out / "overview.png").read_bytes()
    process = desk.start(SLOW=0.1)
    desk.until(lambda: len(desk.records()) > PICTURES / 2)
    process.signal(signal.SIGTERM)
    assert process.end().code == 143
    assert not (desk.out / "overview.png").exists()
    assert desk.run().code == 0
    assert (desk.out / "overview.png").read_bytes() != old
    desk.assert_complete()


def test_pictures_that_vanish_or_change_while_the_run_goes_on_cost_only_themselves(desk: Desk) -> None:
    names = [f"pictures/b/{number}.png" for number in range(1, PICTURES, 2)]
    (desk.folder / "list").write_text("\n".join(names))
    vanishing, changing = (desk.folder / name for name in names[-2:])
    whole = vanishing.read_bytes(), changing.read_bytes()
    command = ("explain", "--files-from", "list", *COMMAND[2:])
    process = desk.start_held(command=command)
    vanishing.unlink()
    changing.write_bytes(b"half a pict")
    desk.release()
    assert process.end().code == 3
    assert desk.errors() == {names[-2]: "NotFound", names[-1]: "NotAnImage"}
    vanishing.write_bytes(whole[0])
    changing.write_bytes(whole[1])
    assert desk.run(command=command).code == 0
    assert desk.errors() == {}
    desk.assert_verified()


def test_a_changed_picture_is_explained_again(desk: Desk) -> None:
    assert desk.run().code == 0
    changed = desk.folder / "pictures/a/4.png"
    Image.new("RGB", (20, 24), "red").save(changed)
    ended = desk.run("--json")
    assert {json.loads(line)["key"] for line in ended.printed.splitlines()} == {"a/4.png"}
    desk.assert_verified()
    found, whole = desk.files(), desk.reference.files()
    different = {name for name in whole if found[name] != whole[name]} - {"overview.png"}
    assert different == {f"{method}/a/4.png.{kind}" for method in ("saliency", "gradcam") for kind in ("npy", "png")}


def test_a_repaired_picture_is_tried_again_when_asked_or_when_it_looks_changed(desk: Desk) -> None:
    silent, touched, missing = (
        desk.folder / name for name in ("pictures/a/4.png", "pictures/b/7.png", "elsewhere.png")
    )
    whole = {path: path.read_bytes() for path in (silent, touched)}
    silent.write_bytes(bytes(len(whole[silent])))
    stamp = silent.stat().st_mtime_ns
    touched.write_bytes(whole[touched][:-40])
    command = (*COMMAND[:2], missing.name, *COMMAND[2:])
    assert desk.run(command=command).code == 3
    assert desk.errors() == {"a/4.png": "NotAnImage", "b/7.png": "Truncated", "elsewhere.png": "NotFound"}
    silent.write_bytes(whole[silent])
    os.utime(silent, ns=(stamp, stamp))
    touched.write_bytes(whole[touched])
    missing.write_bytes(whole[touched])
    assert desk.run(command=command).code == 3
    assert desk.errors() == {"a/4.png": "NotAnImage"}
    assert desk.run("--retry-errors", command=command).code == 0
    assert desk.errors() == {}
    desk.assert_verified()


def test_another_request_in_the_same_folder_is_refused_by_name(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.run().code == 0
    before = traces(desk)
    monkeypatch.chdir(desk.folder)
    for option, value in (("--batch-size", 3), ("--method", "ig"), ("--target", "0")):
        answer = run_xai(*COMMAND, option, value)
        assert answer.code == 2
        assert f"out holds a run in which {'methods' if option == '--method' else option} was" in answer.said
    (desk.folder / "net.py").write_text((desk.folder / "net.py").read_text() + "# another\n")
    assert "content of --model was" in run_xai(*COMMAND).said
    assert traces(desk) == before


def test_a_torn_line_costs_its_own_picture(desk: Desk) -> None:
    assert desk.run().code == 0
    manifest = desk.out / "manifest.jsonl"
    os.truncate(manifest, manifest.stat().st_size - 30)
    ended = desk.run("--json")
    assert (ended.code, len(ended.printed.splitlines())) == (0, 2)
    desk.assert_complete()


@pytest.mark.parametrize("content", ["{}", '{"name": "someone else"}', "[1]", "", "\x80", "[" * 10_000])
def test_a_foreign_run_json_is_left_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    desk.out.mkdir()
    (desk.out / "run.json").write_text(content, encoding="latin-1")
    monkeypatch.chdir(desk.folder)
    for more in ((), ("--overwrite",)):
        answer = run_xai(*COMMAND, *more)
        assert (answer.code, "was not written by xai" in answer.said) == (2, True), answer.said
    assert (desk.out / "run.json").read_text(encoding="latin-1") == content
