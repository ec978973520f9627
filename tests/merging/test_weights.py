from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from nets import conv_net
from safetensors.torch import save_file
from torch import nn

from xai_cli.classifiers.checkpoints import digest, load_checkpoint
from xai_cli.merging.weights import Weights, aligned
from xai_cli.merging.writing import write_tensors

torch.manual_seed(0)
STATE = {
    "a.weight": torch.randn(3, 4),
    "a.half": torch.randn(5).half(),
    "b.brain": torch.randn(2, 2).bfloat16(),
    "b.count": torch.tensor(7),
    "b.mask": torch.tensor([True, False]),
    "c.none": torch.zeros(0, 3),
}


def save(state, path, **options):
    if path.suffix == ".safetensors":
        save_file(state, path, {"note": "ü"})
    else:
        torch.save(state, path, **options)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "old.pt"])
def test_reads_each_tensor_as_it_is_stored(name, tmp_path):
    options = {"_use_new_zipfile_serialization": False} if name == "old.pt" else {}
    weights = Weights(save(STATE, tmp_path / name, **options))
    assert set(weights.names) == set(STATE)
    for key, tensor in STATE.items():
        assert weights.shape(key) == tuple(tensor.shape)
        assert weights.dtype(key) is tensor.dtype is weights.tensor(key).dtype
        assert torch.equal(weights.tensor(key), tensor)
    assert weights.metadata == ({"note": "ü"} if name == "w.safetensors" else {})
    assert weights.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_gives_copies(name, tmp_path):
    weights = Weights(save(STATE, tmp_path / name))
    weights.tensor("a.weight").zero_()
    assert torch.equal(weights.tensor("a.weight"), STATE["a.weight"])


def test_tied_and_turned_tensors_are_read_whole_and_apart(tmp_path):
    table = torch.randn(3, 4)
    weights = Weights(save({"a": table, "b": table, "turned": table.T, "row": table[1]}, tmp_path / "w.pt"))
    weights.tensor("a").zero_()
    assert torch.equal(weights.tensor("b"), table)
    assert torch.equal(weights.tensor("turned"), table.T)
    assert weights.tensor("turned").is_contiguous()
    assert weights.tensor("row").untyped_storage().nbytes() == 16


def test_opens_containers_in_the_order_of_timm(tmp_path):
    containers = ["state_dict_ema", "model_ema", "state_dict", "model"]
    content = {name: {"a": torch.tensor(float(number))} for number, name in enumerate(containers)}
    content["args"] = Namespace(lr=0.1)
    for first in range(4):
        path = save({name: content[name] for name in [*reversed(containers[first:]), "args"]}, tmp_path / "w.pt")
        assert Weights(path).tensor("a") == first
        if first < 3:
            assert Weights(path, ema=False).tensor("a") == max(first, 2)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_refuses_code_and_files_of_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"evil\.pt was refused: it holds more than tensors"):
        Weights(save({"a": torch.zeros(1), "hook": Payload(tmp_path / "ran")}, tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "photo.pt").write_bytes(b"\xff\xd8 a photo")
    with pytest.raises(ValueError, match=r"photo\.pt is not a readable checkpoint: expected safetensors, or what"):
        Weights(tmp_path / "photo.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds no weights"):
        Weights(save({"epoch": 3}, tmp_path / "list.pt"))
    with pytest.raises(FileNotFoundError, match="expected the file of a checkpoint, found nothing at"):
        Weights(tmp_path / "none.pt")


def normed_net():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    net(torch.randn(2, 3, 8, 8))
    return net


@pytest.mark.parametrize("change", ["none", "no counter", "half", "double", "prefixed"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_has_the_digest_of_the_module_that_loads_it(change, suffix, tmp_path):
    state = normed_net().state_dict()
    if change == "no counter":
        del state["1.num_batches_tracked"]
    if change in ("half", "double"):
        dtype = {"half": torch.bfloat16, "double": torch.float64}[change]
        state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    if change == "prefixed":
        state = {f"module.{key}": tensor for key, tensor in state.items()}
    path, module = save(state, tmp_path / f"w.{suffix}"), normed_net()
    load_checkpoint(module, path)
    (weights,), _ = aligned([Weights(path)], module.state_dict())
    assert weights.digest() == digest(module)
    state[next(iter(state))].view(-1)[0] += 1
    assert Weights(save(state, path)).digest() != digest(module)


def named(tmp_path, *names):
    return Weights(save({name: torch.tensor(float(place)) for place, name in enumerate(names)}, tmp_path / "w.pt"))


def test_takes_off_prefixes_that_make_names_known_and_tells(tmp_path):
    (weights,), notes = aligned([named(tmp_path, "module.model.a", "module.model.b")], ["a", "b", "c"])
    assert weights.names == ("a", "b")
    assert (weights.tensor("b"), weights.shape("b"), weights.dtype("b")) == (1.0, (), torch.float32)
    assert notes == [f"{tmp_path / 'w.pt'}: its names are read without 'module.model.'"]


def test_takes_off_backbone_only_where_all_names_become_known(tmp_path):
    (whole,), notes = aligned([named(tmp_path, "model.backbone.a", "model.head.w")], ["a", "head.w"])
    assert whole.names == ("a", "head.w")
    assert "'model.' and 'model.backbone.'" in notes[0]
    (other,), _ = aligned([named(tmp_path, "backbone.a", "projector.w")], ["a", "head.w"])
    assert other.names == ("backbone.a", "projector.w")


def test_keeps_names_that_are_known_and_never_makes_two_one(tmp_path):
    same, notes = aligned([named(tmp_path, "model.a")], ["model.a", "a"])
    assert (same[0].names, notes) == (("model.a",), [])
    (twice,), _ = aligned([named(tmp_path, "a", "module.a", "module.b")], ["a", "b"])
    assert twice.names == ("a", "module.a", "module.b")


def test_what_is_streamed_into_a_file_is_loaded_like_the_original(tmp_path):
    net = conv_net()
    weights = Weights(save({"model_ema": net.state_dict()}, tmp_path / "w.pth"))
    layout = {name: (weights.dtype(name), weights.shape(name)) for name in weights.names}
    tensors = ((name, weights.tensor(name) + 1) for name in weights.names)
    write_tensors(tmp_path / "merged.safetensors", layout, tensors, lambda: {}, 0)
    load_checkpoint(net, tmp_path / "merged.safetensors")
    assert all(torch.equal(tensor, weights.tensor(name) + 1) for name, tensor in net.state_dict().items())


PEAK = """
import sys
from pathlib import Path
from xai_cli.merging.weights import Weights
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
weights = Weights(Path(sys.argv[1]))  # which imports what reading needs
Path("/proc/self/clear_refs").write_text("5")
before = peak()
weights.digest()
print(peak() - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset")
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_memory_stays_flat(suffix, tmp_path):
    path = save({str(number): torch.zeros(2**20) for number in range(80)}, tmp_path / f"w.{suffix}")
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    # Of 320 MB: what is let go every 32 MB, and what the allocator keeps of freed copies.
    assert float(done.stdout) < 160
