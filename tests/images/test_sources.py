"""Every name becomes one picture under one key, in a known order and only when asked for."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import tracemalloc
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from xai_cli.images import sources
from xai_cli.images.sources import EXTENSIONS, ImageRef, find_images, stamped


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def keys(*inputs: str, **options: object) -> list[str]:
    return [found.key for found in find_images(inputs, **options)]  # type: ignore[arg-type]


def suffixed(key: str, path: Path) -> str:
    stem, extension = os.path.splitext(key)
    return f"{stem}~{blake2b(os.fsencode(path), digest_size=4).hexdigest()}{extension}"


def test_folders_are_searched_in_the_order_of_their_keys(here: Path) -> None:
    make(
        "in/b.png",
        "in/a/z.jpg",
        "in/a/b/c.JPG",
        "in/a.jpg",
        "in/a-b.tiff",
        "in/notes.txt",
        "in/noext",
        "in/dir.jpg/x.gif",
    )
    expected = ["a-b.tiff", "a.jpg", "a/b/c.JPG", "a/z.jpg", "b.png", "dir.jpg/x.gif"]
    assert keys("in") == keys("in/") == keys(str(here / "in")) == expected == sorted(expected)
    assert next(find_images(["in"])) == ImageRef("a-b.tiff", here / "in/a-b.tiff")
    assert all(extension == extension.lower() and extension.startswith(".") for extension in EXTENSIONS)


def test_hidden_linked_and_system_entries_are_left_out(here: Path) -> None:
    make("in/a.jpg", "in/.hidden.jpg", "in/._a.jpg", "in/.git/b.jpg", "in/@eaDir/c.jpg", "in/Thumbs.db", "other/d.jpg")
    os.symlink("..", "in/parent")
    os.symlink("../other", "in/link.jpg")
    os.symlink("../other/d.jpg", "in/file.jpg")
    os.symlink("nowhere", "in/gone.jpg")
    os.symlink("self.jpg", "in/self.jpg")
    assert keys("in") == ["a.jpg", "file.jpg", "gone.jpg", "self.jpg"]
    assert keys("in/.git", "in/link.jpg") == ["b.jpg", "d.jpg"]


def test_outputs_of_runs_are_never_entered(here: Path) -> None:
    make(
        "in/a.jpg",
        "in/out/gradcam/a.jpg.png",
        "in/old/run.json",
        "in/old/manifest.jsonl",
        "in/old/b.png",
        "in/shard/run.json",
        "in/shard/manifest-03-of-16.jsonl",
        "in/shard/d.png",
        "in/n/run.json",
        "in/n/c.png",
        "in/m/manifest.jsonl",
        "in/m/e.png",
    )
    assert keys("in", skip=Path("in/out")) == ["a.jpg", "m/e.png", "n/c.png"]
    assert keys("in/**/*.png", skip=here / "in" / "out") == ["in/m/e.png", "in/n/c.png"]
    assert keys("in/old", "in/shard", "in") == ["a.jpg", "m/e.png", "n/c.png", "out/gradcam/a.jpg.png"]
    assert keys("in/old/b.png") == ["in/old/b.png"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//c/../b.jpg", "a/b.jpg"),
        ("../../up/b.jpg", "up/b.jpg"),
        ("/abs/b.jpg", "abs/b.jpg"),
        ("--help.jpg", "--help.jpg"),
        (" a .jpg ", " a .jpg "),
        ("missing", "missing"),
        ("a\\b.jpg", "a\\b.jpg"),
        ("", "_"),
    ],
)
def test_a_named_file_keeps_its_typed_path_inside_the_output(name: str, key: str, here: Path) -> None:
    (found,) = find_images([name])
    assert found.key == key
    assert found.path.is_absolute()


def test_one_file_is_given_once(here: Path) -> None:
    make("in/a.jpg", "in/b/c.jpg")
    assert keys("in/b/c.jpg", "in", "in/b", "./in/a.jpg", str(here / "in/a.jpg"), "in/*.jpg", "in/b/../a.jpg") == [
        "in/b/c.jpg",
        "a.jpg",
    ]


def test_a_folder_called_like_standard_input_lets_no_name_pass_twice(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("-/x.jpg")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(b"a.jpg\n./a.jpg\n"))))
    assert keys("-") == ["a.jpg"]
    assert keys("./-") == ["x.jpg"]


def test_dots_after_a_linked_folder_lead_to_the_other_file(here: Path) -> None:
    make("real/deep/x", "real/a.jpg", "a.jpg")
    os.symlink("real/deep", "link")
    assert [found.path for found in find_images(["a.jpg", "link/../a.jpg"])] == [here / "a.jpg", here / "real/a.jpg"]


def test_colliding_keys_get_a_suffix(here: Path) -> None:
    make("one/cat.jpg", "two/cat.jpg", "three/CAT.JPG", "four/e\u0301.v2.png", "five/\u00e9.v2.png")
    assert keys("one", "two", "three", "one") == [
        "cat.jpg",
        suffixed("cat.jpg", here / "two/cat.jpg"),
        suffixed("CAT.JPG", here / "three/CAT.JPG"),
    ]
    assert keys("four", "five") == ["e\u0301.v2.png", suffixed("\u00e9.v2.png", here / "five/\u00e9.v2.png")]
    assert keys("../cat.jpg", "cat.jpg") == ["cat.jpg", suffixed("cat.jpg", here / "cat.jpg")]


def test_a_made_up_key_meets_no_file_of_that_name(here: Path) -> None:
    make("one/cat.png", "two/CAT.png")
    made_up = suffixed("CAT.png", here / "two/CAT.png")
    make(f"one/{made_up}")
    found = keys("one", "two")
    assert found[:2] == [made_up, "cat.png"]
    assert found[2].startswith("CAT~")
    assert len(found[2]) == len(made_up) + 8


def test_a_key_that_ends_like_the_map_of_a_class_is_marked(here: Path) -> None:
    make("a.png.281", "a.png", "b.v2")
    assert keys("a.png", "a.png.281", "b.v2") == ["a.png", suffixed("a.png.281", here / "a.png.281"), "b.v2"]


def test_patterns_match_only_where_no_such_file_exists(here: Path) -> None:
    make("b1.jpg", "b2.jpg", "b[1].jpg", "sub/deep/x.png", "sub/y.png", "sub/notes.txt")
    assert keys("b[1].jpg") == ["b[1].jpg"]
    assert keys("b?.jpg") == ["b1.jpg", "b2.jpg"]
    assert keys("**/*.png") == ["sub/deep/x.png", "sub/y.png"]
    assert keys("su*") == ["deep/x.png", "y.png"]
    assert keys("none*.jpg") == ["none*.jpg"]


def test_lists_of_names(here: Path) -> None:
    make("folder/x.jpg", "b1.jpg")
    Path("list").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\r\n two words .jpg\n-\nb?.jpg\n\t\nfolder\nlast.jpg")
    expected = ["a.jpg", " two words .jpg", "-", "b?.jpg", "x.jpg", "last.jpg"]
    assert keys(files_from="list") == expected
    assert keys("first.jpg", files_from="list") == ["first.jpg", *expected]
    Path("list0").write_bytes(b"new\nline.jpg\0\0folder\0  \0last.jpg")
    assert keys(files_from="list0", null=True) == ["new\nline.jpg", "x.jpg", "  ", "last.jpg"]


def test_lists_that_cannot_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list0").write_bytes(b"a.jpg\0b.jpg\0")
    with pytest.raises(ValueError, match="its names end in NUL; read it with --null"):
        keys(files_from="list0")
    with pytest.raises(FileNotFoundError, match="nolist"):
        keys(files_from="nolist")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input, which is closed"):
        keys("-")


class Endless(io.RawIOBase):
    """`name-0.jpg`, `name-1.jpg`, ... for ever, in the chunks in which a pipe would bring them."""

    def __init__(self, end: bytes) -> None:
        self.end, self.count = end, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        name = b"name-%d.jpg" % self.count + self.end
        self.count += 1
        buffer[: len(name)] = name
        return len(name)


@pytest.mark.parametrize(("end", "null"), [(b"\n", False), (b"\0", True)])
@pytest.mark.parametrize("options", [{"inputs": ["-"]}, {"inputs": [], "files_from": "-"}])
def test_an_endless_list_is_followed(
    end: bytes, null: bool, options: dict[str, list[str]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Endless(end)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(stream)))
    found: Iterator[ImageRef] = find_images(**options, null=null)  # type: ignore[arg-type]
    assert stream.count == 0
    assert next(found).key == "name-0.jpg"
    assert stream.count <= 2
    assert [each.key for each in islice(found, 2)] == ["name-1.jpg", "name-2.jpg"]


def test_folders_are_listed_only_when_reached(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("in/a/1.jpg", "in/b/2.jpg")
    listed, scandir = [], os.scandir

    def recording(folder: str) -> object:
        listed.append(Path(folder).name)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", recording)
    found = find_images(["in"])
    assert next(found).key == "a/1.jpg"
    assert listed == ["in", "a"]


def test_a_folder_that_cannot_be_listed_is_not_silence(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("in/a.jpg", "in/locked/b.jpg", "in/z.jpg")
    scandir = os.scandir

    def refusing(folder: str) -> object:
        if "locked" in os.fspath(folder):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    assert keys("in") == ["a.jpg", "locked", "z.jpg"]
    assert list(find_images(["in/locked"])) == [ImageRef("in/locked", here / "in/locked")]


@pytest.mark.skipif(sys.platform != "linux", reason="only here names are any bytes")
def test_any_bytes_are_a_name(here: Path) -> None:
    names = [
        b"in/\xff\xfe.jpg",
        b"in/$(x) `y`;&|.jpg",
        b"in/new\nline.jpg",
        b"in/[red]a.jpg",
        b"in/\xf0\x9f\x98\x80.jpg",
    ]
    make("in/plain.jpg")
    for name in names:
        open(name, "wb").close()
    found = {os.fsencode(each.key): each for each in find_images(["in"])}
    assert sorted(found) == sorted([name[3:] for name in names] + [b"plain.jpg"])
    assert all(each.path.exists() and json.loads(json.dumps(each.key)) == each.key for each in found.values())
    Path("list").write_bytes(b"\n".join(name for name in names if b"\n" not in name))
    assert len(keys(files_from="list")) == 4


def test_deep_folders(here: Path) -> None:
    make("in/" + "d/" * 200 + "a.jpg")
    assert keys("in") == ["d/" * 200 + "a.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="only here names are any bytes")
def test_runs_of_any_names_are_merged_in_the_order_of_strings(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # \ue000 comes before \U0001f600, and a byte that is not UTF-8 (\udcff) before both: the order of bytes differs
    signs = ["a", "B", "-", "0", "\n", "\x01", " ", "\u00e9", "e\u0301", "\udcff", "\ue000", "\U0001f600"]
    draw = random.Random(0)
    names = {"".join(draw.choices(signs, k=draw.randint(1, 5))) + ".jpg" for _ in range(400)}
    names |= {f"{''.join(draw.choices(signs, k=2))}/{name}" for name in list(names)[:40]}
    make(*(f"in/{name}" for name in names))
    monkeypatch.setattr(sources, "_RUN", 50)
    monkeypatch.setattr(sources, "_BLOCK", 7)
    assert [str(each.path.relative_to(here / "in")) for each in find_images(["in"])] == sorted(names)
    assert [each.path.name for each in find_images(["in/*.jpg"])] == sorted(name for name in names if "/" not in name)


def test_many_names_are_held_packed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = list(range(50_000))
    random.Random(0).shuffle(numbers)
    monkeypatch.setattr(sources, "_entries", lambda folder: (f"picture-{number:06d}.jpg" for number in numbers))
    monkeypatch.setattr(sources, "_RUN", 5_000)
    tracemalloc.start()
    found = find_images(["."])
    assert next(found).key == "picture-000000.jpg"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # the names as strings take 3.8 MB
    assert [each.key for each in found] == [f"picture-{number:06d}.jpg" for number in range(1, 50_000)]


def test_a_stamp_is_the_size_and_the_time_of_the_file(here: Path) -> None:
    Path("a.jpg").write_bytes(b"12345")
    os.utime("a.jpg", ns=(1, 1_700_000_000_123_456_789))
    os.symlink("a.jpg", "link.jpg")
    for name in ("a.jpg", "link.jpg"):
        (image,) = find_images([name])
        assert image.stamp is None
        assert stamped(image) == ImageRef(name, here / name, (5, 1_700_000_000_123_456_789))
    for gone in ("gone.jpg", "with\0nul.jpg"):
        assert stamped(ImageRef(gone, here / gone, (5, 1))) == ImageRef(gone, here / gone, None)
