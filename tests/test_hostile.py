"""A run over hostile inputs: each has its one row, none costs its neighbours anything, and nothing gets out."""

from __future__ import annotations

import faulthandler
import io
import json
import os
import random
import stat
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import SECRET, Case, corpus, picture
from PIL import Image

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="its pipes, links and names are those of POSIX"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]

PATIENCE = 120  # seconds
# It looks at each pixel alone: of a picture of one colour the map has one value, of two pictures it differs.
NET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    net.pretrained_cfg = {"input_size": (3, 16, 16), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return net
"""


@dataclass(frozen=True)
class Run:
    """What a run left: its folder, its exit code, and what it wrote on both streams."""

    out: Path
    code: int
    stdout: bytes
    stderr: bytes

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "manifest.jsonl").read_bytes().splitlines()]

    @cached_property
    def outcomes(self) -> dict[str, str]:
        """What became of each key: "ok" or the type of its error."""
        return {row["key"]: row["type"] if row["status"] == "error" else row["status"] for row in self.rows}

    @cached_property
    def explained(self) -> dict[str, dict[str, Any]]:
        """The rows of the maps by their keys."""
        return {row["key"]: row for row in self.rows if row["status"] == "ok"}

    def files(self, kind: str) -> dict[str, bytes]:
        """The files of one kind by the key of their picture."""
        return {key: (self.out / row["files"][kind]).read_bytes() for key, row in self.explained.items()}

    def maps(self) -> dict[str, np.ndarray]:
        return {key: np.load(io.BytesIO(data)) for key, data in self.files("npy").items()}


@dataclass(frozen=True)
class Place:
    """A folder `input` of which nothing may change, with the corpus in it, and beside it the net and the runs."""

    root: Path
    cases: list[Case]
    untouched: dict[bytes, object]

    @property
    def folder(self) -> Path:
        return self.root / "input" / "corpus"

    def command(self, out: str, *arguments: str) -> list[str]:
        return ["saliency", "--model", f"{self.root}/net.py:make", "-o", str(self.root / out), *arguments]

    def process(self, out: str, *arguments: str) -> Run:
        """A run as a process of its own, in which a Ghostscript that must not be started would be found first."""
        search = f"{self.root}/input/programs{os.pathsep}{os.environ['PATH']}"
        command = [sys.executable, "-m", "xai_cli", *self.command(out, *arguments)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE,
                              cwd=self.root / "input" / "here", env={**os.environ, "PATH": search})  # fmt: skip
        return Run(self.root / out, done.returncode, done.stdout, done.stderr)

    def run(self, out: str, *arguments: str) -> Run:
        """A run in this process, which stands in the corpus meanwhile."""
        from xai_cli.cli.main import app

        stdout, stderr = text(b""), text(b"")
        with (
            chdir(self.folder),
            redirect_stdout(stdout),
            redirect_stderr(stderr),
            patience(),
            pytest.raises(SystemExit) as end,
        ):
            app(self.command(out, *arguments))
        written = [stream.buffer.getvalue() for stream in (stdout, stderr)]  # type: ignore[attr-defined]
        return Run(self.root / out, int(end.value.code or 0), *written)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("hostile").resolve()
    for name in ("here", "programs"):
        (root / "input" / name).mkdir(parents=True)
    (root / "net.py").write_text(NET)
    ghostscript = root / "input" / "programs" / "gs"
    ghostscript.write_text(f"#!/bin/sh\necho 99\ntouch '{root}/input/started'\n")
    ghostscript.chmod(0o755)
    cases = corpus(root / "input" / "corpus")
    return Place(root, cases, snapshot(root / "input"))


@pytest.fixture(scope="module")
def searched(place: Place) -> Run:
    """The run on the folder."""
    return place.process("searched", str(place.folder))


@pytest.fixture(scope="module")
def listed(place: Place) -> Run:
    """The run on a list of everything in it, in disorder, with what lists also hold."""
    names = [case.name for case in in_disorder(place)] + [*strangers(place), *repeated(place)]
    data = b"\0\0".join(map(os.fsencode, names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", text(data))
        return place.run("listed", "--files-from", "-", "-0")


@contextmanager
def patience() -> Iterator[None]:
    """A run that hangs, on a pipe say, ends the tests with its traceback."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def text(data: bytes) -> io.TextIOWrapper:
    """A stream of the command line, where names are bytes; what is in its buffer is what was written."""
    return io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape", newline="\n", write_through=True)


def snapshot(folder: Path) -> dict[bytes, object]:
    """All that can be seen of what lies in `folder`, but for times of reading."""
    seen: dict[bytes, object] = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(parent, name)
            status = os.lstat(path)
            readable = stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK)
            content = Path(os.fsdecode(path)).read_bytes() if readable else b""
            seen[path] = (status.st_mode, status.st_size, status.st_mtime_ns, blake2b(content).digest())
    return seen


def in_order(place: Place) -> list[Case]:
    """What a search of the folder finds."""
    return sorted((case for case in place.cases if case.expected != "absent"), key=lambda case: case.name)


def in_disorder(place: Place) -> list[Case]:
    """What a list can name."""
    cases = [case for case in place.cases if case.listed]
    random.Random(0).shuffle(cases)
    return cases


def strangers(place: Place) -> dict[str, tuple[str, str]]:
    """Names in the list that are not of the corpus, with the key and the outcome of each."""
    root, far = place.root.name, f"{place.root}/input/outside/folder/inner.png"
    return {
        "missing.png": ("missing.png", "NotFound"),
        "no/such/folder.png": ("no/such/folder.png", "NotFound"),
        "plain.png/inner.png": ("plain.png/inner.png", "NotFound"),
        "a" * 5000: ("a" * 5000, "NameTooLong"),
        "../outside/picture.png": ("outside/picture.png", "ok"),
        far: (far.lstrip("/"), "ok"),
        f"../../../{root}/input/outside/secret.txt": (f"{root}/input/outside/secret.txt", "NotAnImage"),
    }


def repeated(place: Place) -> list[str]:
    """Other names of files that the list already names."""
    folder = place.folder
    return ["plain.png", "./plain.jpg", f"../{folder.name}/plain.bmp", f"{folder}/plain.gif", "nowhere/../plain.webp",
            "missing.png", "../outside/picture.png"]  # fmt: skip


def by_key(cases: Iterable[Case], folder: Path) -> dict[str, Case]:
    """The cases under their keys: their names, or where one is taken, the name with a digest of the path."""
    keyed: dict[str, Case] = {}
    taken = set()
    for case in cases:
        key = case.name
        if folded(key) in taken:
            stem, suffix = os.path.splitext(key)
            key = f"{stem}~{blake2b(os.fsencode(folder / case.name), digest_size=4).hexdigest()}{suffix}"
        taken.add(folded(key))
        keyed[key] = case
    return keyed


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def printable(text: bytes) -> bool:
    """Whether a terminal shows each sign of a message, and obeys none."""
    return text.decode().replace("\n", "").isprintable()


# One row each


def test_the_corpus_is_whole(place: Place) -> None:
    assert len(place.cases) > 250
    assert len({case.name for case in place.cases}) == len(place.cases)
    names = {case.name for case in place.cases}
    assert {case.like for case in place.cases if case.like} <= names
    assert {case.expected for case in place.cases} >= {
        "ok", "absent", "Empty", "NotAnImage", "Truncated", "BrokenHeader", "Corrupt", "NonFinite", "TooLarge",
        "NotFound", "NotAFile", "NameTooLong",
    }  # fmt: skip


def test_each_input_of_the_folder_has_its_one_row(place: Place, searched: Run) -> None:
    expected = by_key(in_order(place), place.folder)
    assert Counter(row["key"] for row in searched.rows) == Counter(dict.fromkeys(expected, 1))
    wrong = {(key, case.why): found for key, case in expected.items()
             if (found := searched.outcomes[key]) != case.expected}  # fmt: skip
    assert not wrong
    assert searched.code == 3


def test_each_name_of_the_list_has_its_one_row(place: Place, listed: Run) -> None:
    expected = {key: case.listed for key, case in by_key(in_disorder(place), place.folder).items()}
    expected |= dict(strangers(place).values())
    assert Counter(row["key"] for row in listed.rows) == Counter(dict.fromkeys(expected, 1))
    assert {key: found for key, found in listed.outcomes.items() if found != expected[key]} == {}
    assert listed.code == 3


def test_failures_are_told_in_one_sentence(searched: Run, listed: Run) -> None:
    for row in searched.rows + listed.rows:
        if row["status"] == "error":
            assert row["stage"] in {"open", "decode", "write"}, row
            assert len(row["message"]) > 10, row
            assert row["message"].isprintable(), row


# Outputs


def test_files_are_whole_and_nothing_else_was_written(searched: Run, listed: Run) -> None:
    for run in (searched, listed):
        named = {path for row in run.explained.values() for path in row["files"].values()}
        found = {str(path.relative_to(run.out)) for path in run.out.rglob("*") if not path.is_dir()}
        assert {path for path in found if not path.startswith(".inflight")} == named | {
            "run.json", "manifest.jsonl", "overview.png"
        }  # fmt: skip
        assert not [path for path in run.out.rglob("*") if path.is_symlink()]
        for row in run.explained.values():
            paths = {kind: run.out / path for kind, path in row["files"].items()}
            assert {kind: path.stat().st_size for kind, path in paths.items()} == row["bytes"]
            Image.open(paths["png"]).verify()
        assert all(each.shape == (16, 16) and np.isfinite(each).all() for each in run.maps().values())


def test_standard_output_is_the_paths_of_the_pictures(searched: Run, listed: Run) -> None:
    for run in (searched, listed):
        paths = [run.out / row["files"]["png"] for row in run.rows if row["status"] == "ok"]
        assert run.stdout == b"".join(os.fsencode(path) + b"\n" for path in paths)


def test_standard_error_is_ours_and_does_nothing_to_a_terminal(searched: Run, listed: Run) -> None:
    for run in (searched, listed):
        assert printable(run.stderr)
        assert [line for line in run.stderr.decode().splitlines() if not line.startswith("xai: ")] == []


def test_failures_of_trap_names_are_told_harmlessly(place: Place) -> None:
    traps = [case.name for case in place.cases if case.name.endswith(".gif") and not case.name.isprintable()]
    odd = [name for name in traps if not name.isascii()]
    assert len(odd) == 7
    for number, names in enumerate((odd, ["[red]x.gif", "[link=x]y[/link].gif", "--help.gif", "plain.gif"])):
        run = place.run(f"traps-{number}", "--", *names)
        assert list(run.outcomes) == names
        assert printable(run.stderr)
        told, broken = run.stderr.decode(), [name for name in names if name != "plain.gif"]
        assert told.count(": it is not a picture in one of the formats") == len(broken)
        assert all(f"xai: {name}: " in told for name in broken if name.isprintable())


def test_what_links_lead_to_is_never_shown(searched: Run, listed: Run) -> None:
    for run in (searched, listed):
        written = [path.read_bytes() for path in run.out.rglob("*") if path.is_file()]
        assert not [data for data in (run.stdout, run.stderr, *written) if SECRET.encode() in data]


# Maps


def test_no_map_depends_on_its_neighbours(place: Place, searched: Run) -> None:
    cases = [case for case in in_disorder(place) if case.expected != "absent"]
    alone = [[case] for case in cases if case.expected == "ok"][::8]
    groups = [cases[start : start + 10] for start in range(0, len(cases), 10)]
    keys = {case.name: key for key, case in by_key(in_order(place), place.folder).items()}
    rows, files = searched.explained, searched.files("npy")
    compared = set()
    for number, group in enumerate(alone + groups):
        run = place.run(f"group-{number:03}", "--", *(case.name for case in group))
        again, keyed = run.files("npy"), by_key(group, place.folder)
        assert {keyed[key].name: found for key, found in run.outcomes.items()} == {
            case.name: case.expected for case in group
        }
        for key, row in run.explained.items():
            name = keyed[key].name
            assert again[key] == files[keys[name]], name
            for field in ("target", "top", "checks", "geometry", "warnings"):
                assert row[field] == rows[keys[name]][field], name
            compared.add(name)
    assert compared == {case.name for case in cases if case.expected == "ok"}


def test_a_list_gives_the_maps_of_the_search(place: Place, searched: Run, listed: Run) -> None:
    first = {case.name: key for key, case in by_key(in_order(place), place.folder).items()}
    second = {case.name: key for key, case in by_key(in_disorder(place), place.folder).items()}
    before, after = searched.files("npy"), listed.files("npy")
    names = [case.name for case in place.cases if case.expected == "ok"]
    assert [name for name in names if before[first[name]] != after[second[name]]] == []


def test_equal_pixels_have_equal_maps_and_others_differ(place: Place, searched: Run) -> None:
    keys = {case.name: key for key, case in by_key(in_order(place), place.folder).items()}
    files = searched.files("npy")
    alike = [case for case in place.cases if case.like]
    assert [case.name for case in alike if files[keys[case.name]] != files[keys[str(case.like)]]] == []
    others = [case for case in place.cases if case.expected == "ok" and not case.like and not case.flat]
    same = Counter(files[keys[case.name]] for case in others)
    assert [case.name for case in others if same[files[keys[case.name]]] > 1] == []


def test_a_mirrored_picture_has_a_mirrored_map(searched: Run) -> None:
    maps = searched.maps()
    assert np.array_equal(maps["mirrored.png"], maps["square.png"][:, ::-1])


def test_pictures_of_one_colour_are_called_degenerate(place: Place, searched: Run) -> None:
    maps = searched.maps()
    for key, case in by_key(in_order(place), place.folder).items():
        if case.expected == "ok":
            assert searched.explained[key]["checks"]["degenerate"] is case.flat, case.name
            assert (np.ptp(maps[key]) == 0) is np.bool_(case.flat)


# Nothing else


def test_bombs_cost_no_time(place: Place) -> None:
    names = [case.name for case in place.cases if case.name.startswith("bomb")]
    place.run("warm", "--", "plain.png")
    start = time.process_time()
    place.run("bombs", "--", *names)
    assert len(names) > 10
    assert time.process_time() - start < 2


def test_a_name_made_to_clash_with_that_of_a_twin_gets_another(place: Place) -> None:
    (place.root / "twins").mkdir()
    twin = place.root / "twins" / "cat.png"
    digest = blake2b(os.fsencode(twin), digest_size=4).hexdigest()
    paths = [twin.with_name("Cat.png"), twin.with_name(f"cat~{digest}.png"), twin]
    for path in paths:
        path.write_bytes(picture(path.name[:6]))
    run = place.run("clash", *map(str, paths))
    assert len({folded(key) for key in run.outcomes}) == len(set(run.files("npy").values())) == 3


def test_a_picture_named_like_the_second_map_of_another_is_written_elsewhere(place: Place) -> None:
    folder = place.root / "numbers"
    folder.mkdir()
    paths = [folder / name for name in ("a.png", "a.png.0", "a.png.1", "a.png.2")]
    for path in paths:
        path.write_bytes(picture(path.name))
    run = place.run("further", "--target", "top:3", *map(str, paths))
    assert len({row["files"]["npy"] for row in run.rows}) == len(run.rows) == 3 * len(paths)
    assert run.code == 0


@pytest.mark.usefixtures("searched", "listed")
def test_nothing_was_changed_or_started(place: Place) -> None:
    assert snapshot(place.root / "input") == place.untouched
