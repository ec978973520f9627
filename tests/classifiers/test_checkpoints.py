from __future__ import annotations

import os
from argparse import Namespace

import pytest
import torch
from nets import conv_net
from safetensors.torch import save_file
from torch import nn

from xai_cli.classifiers.checkpoints import digest, load_checkpoint, read_state, read_stored

STATE = {key: tensor + 1 for key, tensor in conv_net().state_dict().items()}


def prefixed(prefix):
    return {prefix + key: tensor for key, tensor in STATE.items()}


FORMS = {
    "bare": STATE,
    "state_dict": {"epoch": 3, "state_dict": STATE},
    "model": {"model": STATE, "args": Namespace(lr=0.1)},
    "averaged weights first": {"state_dict": conv_net().state_dict(), "state_dict_ema": STATE},
    "data parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled data parallel": prefixed("module._orig_mod."),
    "lightning": {"state_dict": prefixed("model.")},
    "backbone": {"state_dict": prefixed("model.backbone.")},
}


@pytest.mark.parametrize("form", FORMS)
def test_understands_what_training_scripts_save(form, tmp_path):
    torch.save(FORMS[form], tmp_path / "weights.pt")
    net = conv_net()
    load_checkpoint(net, tmp_path / "weights.pt")
    assert all(torch.equal(tensor, STATE[key]) for key, tensor in net.state_dict().items())


def test_a_backbone_beside_something_else_is_no_classifier(tmp_path):
    torch.save({**prefixed("backbone."), "projector.weight": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"0\.weight: model \(4, 3, 3, 3\), not in the file"):
        load_checkpoint(conv_net(), tmp_path / "weights.pt")


def test_averaged_weights_can_be_passed_over(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": STATE}, tmp_path / "weights.pt")
    assert read_state(tmp_path / "weights.pt", ema=False).keys() == {"a"}


def test_digest_counts_neither_steps_nor_how_weights_were_stored():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).bfloat16()
    before = digest(net)
    net[1].num_batches_tracked += 1
    assert digest(net) == digest(net.float()) == before
    net[1].running_mean[0] += 1
    assert digest(net) != before


def test_reads_safetensors(tmp_path):
    save_file(STATE, tmp_path / "weights.safetensors")
    net = conv_net()
    load_checkpoint(net, tmp_path / "weights.safetensors")
    assert digest(net) == digest_of_state()


def digest_of_state():
    net = conv_net()
    net.load_state_dict(STATE)
    return digest(net)


def test_digest_sees_a_single_weight():
    net = conv_net()
    before = digest(net)
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] += 1e-3
    assert digest(net) != before == digest(conv_net())


def test_names_the_first_three_keys_that_do_not_fit_with_both_shapes(tmp_path):
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3))
    torch.save(other.state_dict() | {"extra": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        load_checkpoint(conv_net(), tmp_path / "other.pt")
    message = str(caught.value)
    assert "0.weight: model (4, 3, 3, 3), file (5, 3, 3, 3)" in message
    assert "0.bias: model (4,), file (5,)" in message
    assert "3.weight: model (6, 4, 3, 3), file (6, 5, 3, 3)" in message
    assert "and 3 more" in message


def test_advises_the_number_of_classes_when_only_the_head_differs(tmp_path):
    state = {**STATE, "7.weight": torch.zeros(12, 6), "7.bias": torch.zeros(12)}
    torch.save(state, tmp_path / "twelve.pt")
    with pytest.raises(ValueError, match="the file has 12 classes, say so with --num-classes"):
        load_checkpoint(conv_net(), tmp_path / "twelve.pt")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_refuses_a_pickle_that_would_run_code_and_runs_nothing(tmp_path):
    torch.save({"state_dict": STATE, "hook": Payload(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="was refused: it holds more than tensors and opening it could run code"):
        read_state(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x04N."], ids=["empty", "text", "a pickled None"])
@pytest.mark.parametrize("name", ["broken.pt", "broken.safetensors"])
def test_tells_a_file_that_is_no_checkpoint(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.\w+ (is not a readable checkpoint|was refused|holds no weights)"):
        read_state(tmp_path / name)


def test_tells_a_truncated_file(tmp_path):
    save_file(STATE, tmp_path / "whole.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:300])
    with pytest.raises(ValueError, match="is not a readable checkpoint"):
        read_state(tmp_path / "half.safetensors")


def test_tells_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="--checkpoint expects a file, found nothing at"):
        load_checkpoint(conv_net(), tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="expected the file of a checkpoint, found nothing at"):
        read_state(tmp_path / "none.pt")


def test_tells_what_was_expected_of_a_file_of_another_kind(tmp_path):
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 a photo")
    with pytest.raises(
        ValueError, match=r"not a readable checkpoint: expected safetensors, or what torch\.save writes"
    ):
        read_state(tmp_path / "photo.pth")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of making them
@pytest.mark.parametrize("kind", ["meta", "quantised", "sparse"])
def test_names_a_tensor_that_is_not_dense(kind, tmp_path):
    made = {
        "meta": lambda: torch.empty(3, device="meta"),
        "quantised": lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
        "sparse": lambda: torch.eye(3).to_sparse_csr(),
    }
    torch.save({"state_dict": {"a": torch.zeros(2), "b": made[kind]()}}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=rf"odd.pt: b is a {kind} tensor, expected a dense one .*; save "):
        read_state(tmp_path / "odd.pt")


def test_torchs_warnings_are_not_passed_on(tmp_path, recwarn):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "warned.pt")
    with pytest.raises(ValueError, match="sparse"):
        read_state(tmp_path / "warned.pt")
    assert [*recwarn] == []


def test_a_folder_or_a_device_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for read, start in ((read_state, "expected the file of a"), (lambda p: load_checkpoint(conv_net(), p), "--checkp")):
        with pytest.raises(ValueError, match=rf"{start}.*, found the folder {tmp_path}; give a file in it"):
            read(tmp_path)
        with pytest.raises(ValueError, match=rf"{start}.*pipe.pt, which is none \(a device or a pipe\)"):
            read(tmp_path / "pipe.pt")


@pytest.mark.parametrize("content", [b"", b"\xff" * 7 + b"\x7f", (10).to_bytes(8, "little") + b"{"])
def test_a_damaged_file_says_what_to_do(content, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    found = ": it is empty" if not content else ""
    with pytest.raises(ValueError, match=rf"is not a readable checkpoint{found}.*; copy it again, or save the weights"):
        read_state(tmp_path / "w.safetensors")


def test_tells_which_weights_were_averaged(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "model_ema": STATE}, tmp_path / "w.pt")
    assert read_stored(tmp_path / "w.pt").averaged == "model_ema"
    assert read_stored(tmp_path / "w.pt", ema=False).averaged is None
