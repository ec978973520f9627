"""The pictures of a data folder: listed, labelled, digested, in batches that do not depend on where one began."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
from nets import classifier_of, linear_net

from xai_cli.merging.pictures import (
    NoPictures,
    Picture,
    batches,
    content_digests,
    data_digest,
    evenly,
    labelled,
    short_digests,
)


def test_the_nearest_folder_that_names_a_class_labels(tmp_path: Path) -> None:
    for key in ("cat/x.png", "dog/cat/x.png", "dog/left/x.png", "1/x.png"):
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).touch()
    found = {each.key: each.label for each in labelled(tmp_path, ["dog", "bird", "tabby, Cat"], required=True)}
    assert found == {"1/x.png": 1, "cat/x.png": 2, "dog/cat/x.png": 2, "dog/left/x.png": 0}
    assert {each.label for each in labelled(tmp_path, ["dog"], required=False)} == {None}


def test_folders_that_do_not_do(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(pictures / "birds", tmp_path / "named/birds/left")
    with pytest.raises(LookupError, match=rf"in no folder named after a class below {pictures}; give the folder"):
        labelled(pictures, ["birds"], required=True)
    with pytest.raises(LookupError, match=r"named/birds/left: no class is named 'left'; the model has classes 0 to 0$"):
        labelled(tmp_path / "named", ["bird"], required=True)
    with pytest.raises(LookupError, match=r"no class is named 'left'; .*classes 0 to 1; --labels FILE names them"):
        labelled(tmp_path / "named", ["0", "1"], required=True)
    with pytest.raises(NoPictures, match=r"found no picture in .*empty; give another"):
        labelled(tmp_path / "empty", [], required=False)
    with pytest.raises(ValueError, match=r"expected a folder of pictures, found none at .*a.png"):
        labelled(pictures / "a.png", [], required=False)


def test_evenly() -> None:
    ten = [Picture(str(number), Path()) for number in range(10)]
    assert [each.key for each in evenly(ten, 4)] == ["0", "2", "5", "7"]
    assert evenly(ten, 99) == ten


def test_the_digest_knows_names_contents_and_labels(pictures: Path) -> None:
    first = labelled(pictures, [], required=False)
    shutil.copytree(pictures, pictures / "../copy")
    assert data_digest(labelled(pictures / "../copy", [], required=False)) == data_digest(first)
    changed = [first[1:], [Picture("other", first[0].path), *first[1:]], [Picture("a.png", first[1].path), *first[1:]],
               [Picture("a.png", first[0].path, 1), *first[1:]]]  # fmt: skip
    assert len({data_digest(first), *map(data_digest, changed)}) == 5


def test_short_digests_know_contents_alone(pictures: Path) -> None:
    first = labelled(pictures, [], required=False)
    found = content_digests(first)
    assert data_digest(first, found) == data_digest(first)
    expected = [hashlib.sha256(each.path.read_bytes()).hexdigest()[:16] for each in first if each.key != "cut.png"]
    assert short_digests(found, ["cut.png"]) == ",".join(sorted(expected))


def test_no_option_is_named_that_there_is_not(pictures: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    (pictures / "vast.png").write_bytes(start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    told: dict[str, str] = {}
    listed = labelled(pictures, [], required=False)
    [*batches(classifier_of(linear_net()), listed, 4, lambda picture, why: told.update({picture.key: why}))]
    assert "400.0 million pixels" in told["vast.png"]
    assert told["vast.png"].endswith("; make it smaller")
    assert not any("--" in why for why in told.values())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_skip_what_is_broken_and_may_begin_anywhere(pictures: Path, size: int) -> None:
    classifier, told = classifier_of(linear_net()), []
    listed = labelled(pictures, [], required=False)
    found = [*batches(classifier, listed, size, lambda picture, why: told.append((picture.key, why)))]
    assert [each.key for batch, _ in found for each in batch] == ["a.png", "b.jpg", "birds/c.png"]
    assert [len(inputs) for _, inputs in found] == {1: [1, 1, 1], 2: [2, 1], 3: [3]}[size]
    assert [key for key, _ in told] == ["cut.png", "text.jpg"]
    assert "cut short" in told[0][1]
    assert "not a picture" in told[1][1]
    assert torch.equal(torch.cat([inputs for _, inputs in found]), classifier.read([each.path for each in listed[:3]]))
    rest = [*batches(classifier, listed[size:], size, lambda picture, why: None)]
    assert [batch for batch, _ in rest] == [batch for batch, _ in found[1:]]
