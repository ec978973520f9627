"""The folder of a run: the same request goes on with it, any other is refused, and no picture is lost in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import explained
from nets import classifier_of, conv_net
from PIL import Image

from xai_cli.classifiers.options import ModelOptions
from xai_cli.engine.ledger import State
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.outcomes import DeviceLostError, HopelessError
from xai_cli.engine.request import Request
from xai_cli.engine.run_folder import AccountingError, Refused, RunFolder
from xai_cli.engine.writing import Writer, Written
from xai_cli.images.sources import ImageRef, find_images
from xai_cli.methods.contract import Method
from xai_cli.methods.ig import IntegratedGradients
from xai_cli.methods.saliency import Saliency
from xai_cli.outputs.manifest import ManifestWriter, Row, read_records

OUT = Path("out")
FOUND: dict[str, Any] = {
    "model": {"name": "net", "sha256": "cafe"}, "layers": {"saliency": []}, "versions": {"torch": "2.1"}
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "others"):
        Path(folder).mkdir()
        for name in ("a.png", "b.png", "c.png"):
            Path(folder, name).write_text(name)


def folder(
    pictures: Sequence[str] = ("photos",), methods: Sequence[Method] = (Saliency(),), *,
    shard: tuple[int, int] | None = None, overwrite: bool = False, retry_errors: bool = False, **options: Any,
) -> RunFolder:  # fmt: skip
    parts = [ModelOptions(**{"model": "own.py:make", **options}), RunOptions(out=OUT)]
    shards = shard[1] if shard else 1
    request = Request.of(pictures, methods, parts, shards)
    return RunFolder(OUT, request, shard=shard, overwrite=overwrite, retry_errors=retry_errors)


def ok(image: ImageRef, method: str = "saliency") -> list[Row]:
    """The rows of a picture, its file in place."""
    name = f"{method}/{image.key}.npy"
    Path(OUT, name).parent.mkdir(parents=True, exist_ok=True)
    Path(OUT, name).write_bytes(b"map")
    return [{"key": image.key, "source": source(image), "status": "ok", "method": method, "files": {"npy": name},
             "bytes": {"npy": 3}, "checks": {}}]  # fmt: skip


def failed(image: ImageRef, *, transient: bool = False) -> list[Row]:
    return [{"key": image.key, "source": source(image), "status": "error", "transient": transient}]


def source(image: ImageRef) -> dict[str, int] | None:
    return None if image.stamp is None else {"bytes": image.stamp[0], "mtime_ns": image.stamp[1]}


def images(*names: str) -> Iterator[ImageRef]:
    return find_images(list(names or ["photos"]), skip=OUT)


def run(
    opened: RunFolder | None = None, names: Sequence[str] = (), rows: Any = ok, found: Any = FOUND, **owed: Any
) -> list[str]:
    """Goes through a whole run; the keys of the pictures that were explained."""
    with opened or folder() as run:
        run.begin(found)
        done = [
            run.commit(rows(image))[0]["key"] for image in run.noted(run.owed(images(*names), **owed))
        ]  # fmt: skip
        run.settle()
    return done


def left() -> set[str]:
    return {path.relative_to(OUT).as_posix() for path in OUT.rglob("*") if path.is_file()}


# Going on


def test_the_same_request_goes_on_and_does_what_is_owed() -> None:
    assert run() == ["a.png", "b.png", "c.png"]
    assert left() == {"run.json", "manifest.jsonl", *(f"saliency/{name}.png.npy" for name in "abc")}
    assert run() == []
    Path("photos/aa.png").write_text("new")
    Path("photos/b.png").write_text("changed")
    Path(OUT, "saliency/c.png.npy").unlink()
    assert run() == ["aa.png", "b.png", "c.png"]
    assert [record[0]["key"] for record in read_records(OUT / "manifest.jsonl")] == [
        "a.png", "b.png", "c.png", "aa.png", "b.png", "c.png"
    ]  # fmt: skip


def test_what_failed_for_now_is_tried_again_and_what_failed_for_good_only_if_asked_for() -> None:
    run(rows=lambda image: failed(image, transient=image.key == "b.png"))
    assert run() == ["b.png"]
    assert run(folder(retry_errors=True)) == ["a.png", "c.png"]
    assert run(folder(retry_errors=True)) == []


def test_the_account_holds_every_picture_that_was_asked_for() -> None:
    run(rows=failed, names=["photos/a.png"], opened=folder([]))
    with folder([]) as again:
        again.begin(FOUND)
        for image in again.owed(images("photos/a.png", "photos/b.png", "photos/c.png")):
            again.commit(ok(image) if "b" in image.key else failed(image, transient=True))
        again.settle()
        assert again.account.counts() == {State.FAILED: 1, State.DONE: 1, State.TRANSIENT: 1}


def test_files_that_are_named_may_be_more_next_time() -> None:
    assert run(folder(["photos/a.png"]), ["photos/a.png"]) == ["photos/a.png"]
    names = ["photos/a.png", "photos/b.png"]
    assert run(folder(names), names) == ["photos/b.png"]


def test_a_run_that_is_not_begun_leaves_nothing() -> None:
    with folder() as opened:
        assert [image.key for image in opened.owed(images())] == ["a.png", "b.png", "c.png"]
        assert not opened.locked
    assert not OUT.exists()


def test_the_first_pictures_are_kept_whether_owed_or_not() -> None:
    run(names=["photos/b.png"], opened=folder([]))
    with folder([]) as opened:
        opened.begin(FOUND)
        names = ("photos/a.png", "photos/b.png", "photos/c.png")
        for image in opened.owed(images(*names), front=2):
            opened.commit(failed(image) if "a" in image.key else ok(image))
        assert [(record[0]["key"], record[0]["status"]) for record in opened.settle()] == [
            ("photos/a.png", "error"), ("photos/b.png", "ok")
        ]  # fmt: skip


# Refusing


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "float16"}, "--dtype was float32 and is float16"),
    ({"methods": [IntegratedGradients()]}, "methods was saliency and is ig"),
    ({"pictures": ["others"]}, "pictures was photos and is others"),
    ({"shard": (1, 3)}, "number of shards was 1 and is 3"),
    ({"labels": Path("labels.txt")}, "--labels was not set and is labels.txt, content of --labels was not set and is "),
]


@pytest.mark.parametrize(("changes", "sentence"), CHANGES)
def test_another_request_is_refused_and_told_in_what_it_differs(changes: dict[str, Any], sentence: str) -> None:
    Path("labels.txt").write_text("cat\n")
    run()
    before = {name: Path(OUT, name).read_bytes() for name in left()}
    with pytest.raises(Refused) as refusal, folder(**changes):
        pass
    assert str(refusal.value).startswith(f"out holds a run in which {sentence}")
    assert str(refusal.value).endswith("ask for the same, or give another folder with --out, or --overwrite")
    assert {name: Path(OUT, name).read_bytes() for name in left()} == before
    # The refused one keeps nobody out.
    assert run() == []


def test_options_of_a_method_and_the_content_of_a_file_are_part_of_the_request() -> None:
    Path("own.py").write_text("def make(): ...")
    methods = [IntegratedGradients(steps=50)]
    run(folder(methods=methods), rows=lambda image: ok(image, "ig"))
    with (
        pytest.raises(Refused, match="in which --steps of ig was 50 and is 3;"),
        folder(methods=[IntegratedGradients(steps=3)]),
    ):
        pass
    Path("own.py").write_text("def make(): pass")
    with pytest.raises(Refused, match="content of --model was"), folder(methods=methods):
        pass


@pytest.mark.parametrize(
    ("found", "sentence"),
    [({"model": {"name": "net", "sha256": "beef"}}, "sha256 of the model was cafe and is beef"),
     ({"layers": {"saliency": ["4"]}}, "layers was")],
)  # fmt: skip
def test_another_model_is_refused_before_anything_is_written(found: dict[str, Any], sentence: str) -> None:
    run()
    Path("photos/d.png").write_text("d")
    Path(OUT, "overview.png").touch()
    before = {name: Path(OUT, name).read_bytes() for name in left()}
    with pytest.raises(Refused, match=sentence):
        run(found=FOUND | found)
    assert {name: Path(OUT, name).read_bytes() for name in left()} == before
    assert run() == ["d.png"]


def test_another_library_is_told_and_no_reason_to_refuse() -> None:
    run()
    with folder() as opened:
        assert opened.begin(FOUND) == []
        assert opened.begin(FOUND | {"versions": {"torch": "2.2", "timm": "1"}}) == [
            "torch 2.1 -> 2.2",
            "timm None -> 1",
        ]


RUN_JSON = '{"folders":[],"shards":1,"options":{},"files":{},"methods":{},"model":{},"layers":{},"versions":{}}'


@pytest.mark.parametrize("content", ["", "[", "3", "{}", "[]", '"text"', '{"methods": 3}', '{"methods": {"ig": 3}}',
                                     RUN_JSON.replace('"versions":{}', '"versions":3'),
                                     RUN_JSON.replace(',"versions":{}', ''), RUN_JSON.replace('"options":{}', '"x":1'),
                                     "\x00", "[" * 100_000])  # fmt: skip
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_is_not_ours_is_a_refusal(content: str, overwrite: bool) -> None:
    OUT.mkdir()
    Path(OUT, "run.json").write_text(content)
    with pytest.raises(Refused, match=r"out/run\.json was not written by xai; give another folder"):
        run(folder(overwrite=overwrite, methods=[]))
    assert Path(OUT, "run.json").read_text() == content


def test_a_file_in_the_place_of_the_folder_is_not_touched() -> None:
    OUT.write_text("mine")
    with pytest.raises(NotADirectoryError, match="--out expects a folder, found the file out"), folder():
        pass
    assert OUT.read_text() == "mine"


# One at a time


def test_a_second_run_is_refused_while_the_first_is_at_work() -> None:
    sentence = "another run is at work in out; wait for it, or give another folder with --out"
    with folder() as first, folder() as early:
        first.begin(FOUND)
        assert first.locked
        with pytest.raises(Refused, match=sentence):
            early.begin(FOUND)
        for late in (folder(), folder(overwrite=True), folder(overwrite=True, dtype="float16")):
            with pytest.raises(Refused, match=sentence), late:
                pass
    assert run() == ["a.png", "b.png", "c.png"]


def test_a_run_that_could_not_be_read_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run()

    def fail(opened: RunFolder) -> None:
        raise OSError("stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "_recover", fail)
        with pytest.raises(OSError, match="stale"):
            folder().__enter__()
    assert run() == []


def test_a_run_that_began_meanwhile_is_gone_on_with() -> None:
    with folder() as slow:
        run(rows=failed)
        assert slow.begin(FOUND) == []
        assert [image.key for image in slow.owed(images())] == []


def test_a_run_that_began_meanwhile_and_is_another_one_is_left_alone() -> None:
    with folder(dtype="float16") as slow:
        run()
        before = left()
        with pytest.raises(Refused, match="--dtype was float32 and is float16"):
            slow.begin(FOUND)
    assert left() == before


def test_shards_work_side_by_side_in_manifests_of_their_own() -> None:
    shards = [folder(shard=(number, 3)) for number in (1, 2, 3)]
    names = [f"photos/{name}.png" for name in "abc"]
    with shards[0] as one, shards[1] as two, shards[2] as three:
        for shard, name in zip((one, two, three), names, strict=True):
            shard.begin(FOUND)
            assert [shard.commit(ok(image)) for image in shard.noted(shard.owed(images(name)))]
        assert {name for name in left() if name[0] == "."} == {f".in-flight-{n}-of-3.jsonl" for n in (1, 2, 3)}
        one.settle()
        assert one.account.counts() == {State.DONE: 1}
    assert left() == {"run.json", *(f"manifest-{n}-of-3.jsonl" for n in (1, 2, 3)),
                      *(f"saliency/{name}.npy" for name in names)}  # fmt: skip
    assert run(folder(shard=(2, 3)), names[1:2]) == []
    # What another shard has done it does not know of: that picture would be its own only if it were another run.
    assert run(folder(shard=(2, 3)), names[:1]) == ["photos/a.png"]


def test_shards_that_begin_at_the_same_moment_agree_on_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one comes while the first one writes `run.json`, asks for something else, and is refused."""
    from xai_cli.engine import run_folder as module

    whole, answers = module.write_atomically, []

    def second() -> None:
        try:
            with folder(shard=(2, 2), dtype="float16") as other:
                answers.append(other.begin(FOUND))
        except Refused as refusal:
            answers.append(str(refusal))

    thread = threading.Thread(target=second)

    def slow(path: Path, data: bytes) -> None:
        thread.start()
        thread.join(0.05)
        whole(path, data)

    monkeypatch.setattr(module, "write_atomically", slow)
    with folder(shard=(1, 2)) as first:
        first.begin(FOUND)
    thread.join(5)
    assert "--dtype was float32 and is float16" in answers[0]


# Overwriting


def test_overwriting_removes_what_the_run_wrote_and_nothing_else() -> None:
    run(folder(methods=[IntegratedGradients()]), rows=lambda image: ok(image, "ig"))
    for name in ("notes.txt", "saliency.txt", "igloo/mine", "manifest-of-mine.jsonl"):
        Path(OUT, name).parent.mkdir(exist_ok=True)
        Path(OUT, name).write_text("mine")
    Path(OUT, "overview.png").touch()
    assert run(folder(overwrite=True), ["photos/a.png"]) == ["photos/a.png"]
    assert left() == {"notes.txt", "saliency.txt", "igloo/mine", "manifest-of-mine.jsonl", "run.json", "manifest.jsonl",
                      "saliency/photos/a.png.npy"}  # fmt: skip
    assert [record[0]["key"] for record in read_records(OUT / "manifest.jsonl")] == ["photos/a.png"]


def test_shards_are_overwritten_with_all_that_they_left() -> None:
    run(folder(shard=(1, 2)))
    with folder(shard=(2, 2)) as dies:
        dies.begin(FOUND)
        list(dies.noted(dies.owed(images())))
        die(dies)
    run(folder(overwrite=True))
    assert left() == {"run.json", "manifest.jsonl", *(f"saliency/{name}.png.npy" for name in "abc")}


def test_shards_at_work_are_not_overwritten() -> None:
    run(folder(shard=(1, 2)))
    before = left()
    with folder(shard=(2, 2)) as at_work:
        at_work.begin(FOUND)
        with pytest.raises(Refused, match="another run is at work in out"):
            run(folder(overwrite=True))
    assert left() - {"manifest.jsonl", "manifest-2-of-2.jsonl"} == before


def test_nothing_is_removed_before_the_new_model_is_known() -> None:
    run()
    before = left()
    with folder(overwrite=True, dtype="float16"):
        pass
    assert left() == before


@pytest.mark.parametrize("name", ["../photos", ".", "", "..", "saliency/../..", "{here}/photos", "link/photos"])
def test_overwriting_never_removes_by_a_name_that_leads_outside(name: str, tmp_path: Path) -> None:
    run()
    Path(OUT, "link").symlink_to(tmp_path)
    described = json.loads(Path(OUT, "run.json").read_text())
    described["methods"] = {"saliency": {}, name.format(here=tmp_path): {}}
    Path(OUT, "run.json").write_text(json.dumps(described))
    with pytest.raises(Refused, match=r"out/run\.json was not written by xai"):
        run(folder(overwrite=True))
    assert Path("photos/a.png").read_text() == "a.png"
    assert Path(OUT, "saliency/a.png.npy").exists()


def test_a_linked_folder_of_a_method_is_not_followed() -> None:
    run()
    Path(OUT, "saliency").rename("moved")
    Path(OUT, "saliency").symlink_to(Path("moved").resolve())
    run(folder(overwrite=True), rows=failed)
    assert {path.name for path in Path("moved").iterdir()} == {f"{name}.png.npy" for name in "abc"}


def test_a_contact_sheet_of_fewer_pictures_does_not_outlive_the_next_beginning() -> None:
    run()
    Path(OUT, "overview.png").touch()
    with folder() as opened:
        assert Path(OUT, "overview.png").exists()
        opened.begin(FOUND)
        assert not Path(OUT, "overview.png").exists()


# Deaths


def die(opened: RunFolder) -> None:
    """What the death of the process does: the locks are gone, nothing else is done."""
    opened._open.close()


def dead(*flying: str, committed: Iterable[str] = ()) -> None:
    """A run that died with some pictures in flight, when others had their records."""
    opened = folder().__enter__()
    opened.begin(FOUND)
    for image in opened.noted(opened.owed(images(*(f"photos/{name}" for name in (*committed, *flying))))):
        if image.path.name in committed:
            opened.commit(ok(image))
    die(opened)


def ended_by(error: Exception) -> None:
    """A run that ended with pictures in flight, but did not die."""
    with folder() as opened:
        opened.begin(FOUND)
        list(opened.noted(opened.owed(images())))
        raise error


def suspects() -> list[str]:
    with folder() as opened:
        return [image.path.name for image in opened.suspects]


def test_without_a_death_nobody_is_suspected() -> None:
    run(names=["photos/a.png"], opened=folder())
    assert suspects() == []
    with pytest.raises(HopelessError):
        ended_by(HopelessError())
    assert suspects() == []


def test_the_pictures_in_flight_at_a_death_are_suspected_as_long_as_they_have_no_record() -> None:
    dead("b.png", "c.png", committed=["a.png"])
    assert suspects() == ["b.png", "c.png"]
    with folder() as opened:
        first = opened.suspects[0]
        opened.begin(FOUND)
        opened.cleared(first, opened.commit(failed(first)))
    assert suspects() == ["c.png"]
    with folder() as opened:
        opened.begin(FOUND)
        opened.cleared(opened.suspects[0], opened.commit(ok(opened.suspects[0])))
        assert [image.key for image in opened.owed(images(*(f"photos/{name}.png" for name in "abc")))] == []
    assert suspects() == []
    assert not list(OUT.glob(".in-flight*"))


def test_a_picture_that_failed_for_now_and_then_killed_is_suspected() -> None:
    run(names=["photos/a.png"], opened=folder(), rows=lambda image: failed(image, transient=True))
    dead("a.png")
    assert suspects() == ["a.png"]


def test_a_second_death_adds_to_the_suspects() -> None:
    dead("b.png")
    with folder() as opened:
        opened.begin(FOUND)
        list(opened.noted(opened.owed(images("photos/c.png"))))
        die(opened)
    assert suspects() == ["b.png", "c.png"]


def test_a_suspect_that_is_gone_is_none() -> None:
    dead("b.png", "c.png")
    Path("photos/b.png").unlink()
    assert suspects() == ["c.png"]


def test_a_device_that_failed_leaves_its_suspects_like_a_death() -> None:
    """Else each new process would meet the same picture again, and the run would never get past it."""
    with pytest.raises(DeviceLostError):
        ended_by(DeviceLostError())
    assert suspects() == ["a.png", "b.png", "c.png"]


# The account


def test_a_picture_without_a_record_is_told_and_not_forgotten() -> None:
    with folder() as opened:
        opened.begin(FOUND)
        for image in opened.owed(images()):
            if image.key != "b.png":
                opened.commit(ok(image))
        with pytest.raises(AccountingError, match="1 pictures have no record in the manifest; run the same command"):
            opened.settle()
    assert run() == ["b.png"]


class Forgetful(Writer):
    """Writes the rows of one picture under the name of another one."""

    def write(self, outcome: Any) -> Written:
        return Written([{**row, "key": row["key"].replace("b", "a")} for row in super().write(outcome).rows])


def test_a_writer_that_loses_a_picture_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate("abc"):
        Image.fromarray(np.full((8, 8, 3), 60 * number + 9, np.uint8)).save(f"photos/{name}.png")
    monkeypatch.setattr("xai_cli.engine.explain.Writer", Forgetful)
    # The one is lost, and the other's record is outdated by one that is not its own.
    with pytest.raises(AccountingError, match="2 pictures have no record"):
        explained(images(), classifier_of(conv_net(), dtype=torch.float32), [Saliency()],
                  RunOptions(out=OUT, batch_size=2), DrawingOptions(overview=0), InputOptions())  # fmt: skip


def test_the_manifest_is_the_one_that_the_manifest_writer_locks() -> None:
    with folder() as opened:
        opened.begin(FOUND)
        with pytest.raises(BlockingIOError), ManifestWriter(OUT / "manifest.jsonl"):
            pass


# What a second attempt leaves of the first


def test_files_of_an_earlier_attempt_that_no_record_names_are_removed() -> None:
    def of_two_classes(image: ImageRef) -> list[dict[str, Any]]:
        rows = [*ok(image), *ok(image)]
        further = f"saliency/{image.key}.7.npy"
        (OUT / further).write_bytes((OUT / rows[0]["files"]["npy"]).read_bytes())
        rows[1] = {**rows[1], "files": {"npy": further}}
        return rows

    run(rows=of_two_classes)
    Path("photos/a.png").write_text("now another class comes second")
    Path("photos/b.png").write_text("now it is broken")
    run(rows=lambda image: ok(image) if image.key == "a.png" else failed(image))
    assert left() == {"run.json", "manifest.jsonl", "saliency/a.png.npy", "saliency/c.png.npy", "saliency/c.png.7.npy"}


def test_a_manifest_without_its_request_is_not_gone_on_with() -> None:
    run()
    (OUT / "run.json").unlink()
    with pytest.raises(Refused, match=r"holds a manifest without its run\.json"):
        run()
