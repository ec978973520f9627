from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from xai_cli.merging.writing import write_tensors

torch.manual_seed(0)
TENSORS = {
    "scalar": torch.tensor(3),
    "half": torch.randn(3, 5).half(),
    "brain": torch.randn(7).bfloat16(),
    "single": torch.randn(2, 3, 4),
    "double": torch.randn(3).double(),
    "none": torch.zeros(0, 4),
    "mask": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "turned": torch.randn(4, 3).T,
    "complex": torch.randn(2, dtype=torch.complex64),
    "eighth": torch.randn(3).to(torch.float8_e4m3fn),
}
LAYOUT = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
METADATA = {"plan": '{"λ": [0.5, 0.5], "quote": "\\""}', "lines": "a\nb", "empty": "", "sign": "\U0001f600"}


def write(path, tensors=None, *, layout=LAYOUT, metadata=METADATA, room=500):
    write_tensors(path, layout, TENSORS.items() if tensors is None else tensors, lambda: metadata, room)


def test_reads_back_as_what_the_library_saves(tmp_path):
    write(tmp_path / "ours.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "theirs.safetensors")
    ours, theirs = load_file(tmp_path / "ours.safetensors"), load_file(tmp_path / "theirs.safetensors")
    assert ours.keys() == theirs.keys() == TENSORS.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
        assert ours[name].shape == tensor.shape


def test_lays_the_numbers_out_aligned(tmp_path):
    write(tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 8 == 0
    places = [content.index(TENSORS[name].numpy().tobytes(), start) for name in ("double", "single", "half", "bytes")]
    assert places == sorted(places)
    assert [place % width for place, width in zip(places, (8, 4, 2, 1), strict=True)] == [0] * 4


@pytest.mark.parametrize("room", [sum(len(f'"{key}":"{value}",') for key, value in METADATA.items()) + 50, 4000])
def test_keeps_the_metadata_whatever_room_is_left(room, tmp_path):
    write(tmp_path / "a.safetensors", room=room)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **METADATA}
        assert torch.equal(file.get_tensor("single"), TENSORS["single"])


def test_asks_for_the_metadata_last(tmp_path):
    seen = []
    tensors = (seen.append(name) or (name, tensor) for name, tensor in TENSORS.items())
    write_tensors(tmp_path / "a.safetensors", LAYOUT, tensors, lambda: {"count": str(len(seen))}, 100)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["count"] == str(len(TENSORS))


def test_the_order_in_which_tensors_come_does_not_show(tmp_path):
    write(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors", reversed(TENSORS.items()), layout=dict(reversed(LAYOUT.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_path_that_is_no_text_does_not_spoil_the_file(tmp_path):
    write(tmp_path / "a.safetensors", metadata={"path": "caf\udce9.pt"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata()["path"] == "caf?.pt"


def broken_off():
    yield "single", TENSORS["single"]
    raise OSError("the other disk is gone")


WRONG = {
    "shape": ([("half", torch.zeros(5, 3).half())], r"half was announced as .*\(3, 5\).*, found .*\(5, 3\)"),
    "type": ([("half", torch.zeros(3, 5))], r"half was announced as \(torch\.float16, .*, found \(torch\.float32"),
    "twice": ([("single", TENSORS["single"])] * 2, "the tensor single comes twice, or is not in the layout"),
    "unknown": ([("other", torch.zeros(1))], "the tensor other comes twice, or is not in the layout"),
    "missing": ([("single", TENSORS["single"])], r"would lack scalar, half, brain of 11 tensors"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refuses_what_was_not_announced_and_leaves_the_old_file(case, tmp_path):
    tensors, message = WRONG[case]
    (tmp_path / "a.safetensors").write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.safetensors", tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == b"old"


def test_leaves_nothing_where_the_tensors_or_the_metadata_fail(tmp_path):
    with pytest.raises(OSError, match="the other disk is gone"):
        write(tmp_path / "folder" / "a.safetensors", broken_off())
    with pytest.raises(ValueError, match=r"needs \d+ bytes more than the 20 reserved"):
        write(tmp_path / "folder" / "a.safetensors", room=20)
    assert list((tmp_path / "folder").iterdir()) == []


def test_tells_a_type_that_the_format_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"z is of type torch\.complex128, which safetensors cannot hold"):
        write(tmp_path / "a.safetensors", [], layout={"z": (torch.complex128, (1,))})
