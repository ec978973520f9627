"""Weights from a file into a module. Weights are data: nothing in the file is ever run."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from argparse import Namespace
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xai_cli.sentences import reason

_AVERAGED = ("state_dict_ema", "model_ema")
_CONTAINERS = ("state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_BACKBONE = "backbone."
_DENSE = {
    "meta": "save the model after its weights were loaded",
    "quantised": "save what dequantize() gives",
    "sparse": "save what to_dense() gives",
}


@dataclass(frozen=True)
class Stored:
    """The weights in a file: by name, and the container of averaged weights that they were taken from, if any."""

    state: dict[str, Tensor]
    averaged: str | None


def load_checkpoint(module: nn.Module, path: Path, *, ema: bool = True) -> None:
    """Loads the weights of `path` into `module`, all of them and no others; averaged ones, where there are, with `ema`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights, would run code, or does not fit; the sentence names the first three keys
            that do not, with both shapes.
    """
    _check_file(path, "--checkpoint expects a file")
    found, expected = read_state(path, ema=ema), module.state_dict()
    state = {name: found[stored] for name, stored in without_prefix(found, expected).items()}
    missing = [key for key in expected if key not in state and not is_counter(key)]
    problems = [
        *(f"{key}: model {tuple(expected[key].shape)}, file {tuple(state[key].shape)}"
          for key in expected if key in state and state[key].shape != expected[key].shape),
        *(f"{key}: model {tuple(expected[key].shape)}, not in the file" for key in missing),
        *(f"{key}: not in the model, file {tuple(state[key].shape)}" for key in state if key not in expected),
    ]  # fmt: skip
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{path} does not fit the model: {'; '.join(problems[:3])}{more}{_advice(state, expected)}")
    module.load_state_dict(state, strict=False)


def read_state(path: Path, *, ema: bool = True) -> dict[str, Tensor]:
    """The tensors of a file by name, as `read_stored` finds them."""
    return read_stored(path, ema=ema).state


def read_stored(path: Path, *, ema: bool = True) -> Stored:
    """The tensors of a safetensors, .pt or .pth file, not read but mapped where `is_mapped`.

    Training containers are opened: `state_dict_ema`, `model_ema`, `state_dict`, `model`, the first two only with `ema`.

    Raises FileNotFoundError, or ValueError if the file holds no weights, or sparse, quantised or meta tensors, or would
    run code.
    """
    _check_file(path, "expected the file of a checkpoint")
    content, averaged = _content(path), None
    for container in (*(_AVERAGED if ema else ()), *_CONTAINERS):
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
            averaged = averaged or (container if container in _AVERAGED else None)
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)} if _named(content) else {}
    if not state:
        raise ValueError(
            f"{path} holds no weights: expected a dict of named tensors, or one under 'state_dict' or 'model'"
        )
    for name, tensor in state.items():
        _check_numbers(path, name, tensor)
    return Stored(state, averaged)


def _check_file(path: Path, expected: str) -> None:
    """Raises FileNotFoundError, or ValueError for a folder or a device."""
    if path.is_dir():
        raise ValueError(f"{expected}, found the folder {path}; give a file in it")
    if not path.is_file():
        if path.exists():
            raise ValueError(
                f"{expected}, found {path}, which is none (a device or a pipe); save the weights in a file"
            )
        raise FileNotFoundError(f"{expected}, found nothing at {path}; give one that exists")


def _content(path: Path) -> Any:
    """What the file holds. Raises ValueError if it cannot be read, or would run code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about its own old and new formats
            return load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: it holds more than tensors and opening it could run code; save its state dict "
            "(torch.save(model.state_dict(), ...) or safetensors) and give that file"
        ) from error
    except Exception as error:  # torch's reader of pickles raises whatever a broken file leads it to
        found = reason(error) if path.stat().st_size else "it is empty"
        raise ValueError(
            f"{path} is not a readable checkpoint: {found}; copy it again, or save the weights anew"
        ) from error


def _check_numbers(path: Path, name: str, tensor: Tensor) -> None:
    """Raises ValueError for a tensor that does not hold a number for each of its entries."""
    kinds = {"meta": tensor.is_meta, "quantised": tensor.is_quantized, "sparse": tensor.layout != torch.strided}
    for kind in (kind for kind, found in kinds.items() if found):
        raise ValueError(f"{path}: {name} is a {kind} tensor, expected a dense one with its numbers; {_DENSE[kind]}")


def is_mapped(path: Path) -> bool:
    """Whether `read_state` leaves the tensors in the file until they are looked at: not in the bare pickles that
    torch.save wrote before it made archives.
    """
    return path.suffix == ".safetensors" or _magic(path) == b"P"


def digest(module: nn.Module) -> str:
    """`digest_of` all weights and buffers of a module."""
    return digest_of(sorted(module.state_dict().items()))


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over the names, shapes, types and bytes of tensors, which come in the order of their names.

    What `load_checkpoint` takes from a file has the digest of the file: numbers of less or more than float32 count as
    float32, which they become in the module, and counters of training steps, which a file may lack, do not count.
    """
    total = hashlib.sha256()
    for name, tensor in tensors:
        if not is_counter(name):
            values = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
            total.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
            total.update(values.view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def is_counter(name: str) -> bool:
    """Whether this is a counter of training steps: it has no part in the scores, and some tools leave it out."""
    return name.endswith("num_batches_tracked")


def without_prefix(names: Collection[str], expected: Collection[str]) -> dict[str, str]:
    """The names in a file by what they are called without the prefixes that wrappers add.

    As many are taken off as makes the most names known; `backbone.` only where that makes all names known, since what
    stands beside a backbone may be a head that the model lacks.
    """
    known = set(expected)
    candidates = [{name: name for name in names}]
    for _ in _WRAPPERS:
        candidates.append(_without_one(candidates[-1], _WRAPPERS))
    backbones = (_without_one(candidate, (_BACKBONE,)) for candidate in candidates)
    candidates += [backbone for backbone in backbones if backbone.keys() <= known]
    # Two names must not become one.
    whole = (candidate for candidate in candidates if len(candidate) == len(names))
    return max(whole, key=lambda candidate: len(candidate.keys() & known))


def _load_pickle(path: Path) -> Any:
    if _magic(path) not in (b"P", b"\x80"):
        raise ValueError("expected safetensors, or what torch.save writes")
    # timm's training script stores its arguments as a Namespace: plain data.
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped(path))


def _magic(path: Path) -> bytes:
    """The first byte: of a zip archive P, of a pickle 0x80."""
    with path.open("rb") as file:
        return file.read(1)


def _named(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(key, str) for key in content)


def _without_one(names: Mapping[str, str], prefixes: Sequence[str]) -> dict[str, str]:
    """The names with at most one of the prefixes taken off each."""
    return {
        name.removeprefix(next((prefix for prefix in prefixes if name.startswith(prefix)), "")): stored
        for name, stored in names.items()
    }


def _advice(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What to type next when only the last layer differs."""
    differing = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    same_names = state.keys() == expected.keys()
    if same_names and differing and all(state[key].shape[1:] == expected[key].shape[1:] for key in differing):
        classes = {state[key].shape[0] for key in differing}
        if len(classes) == 1:
            return f"; the file has {classes.pop()} classes, say so with --num-classes"
    return ""
