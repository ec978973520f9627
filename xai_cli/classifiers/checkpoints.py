"""Weights from a file into a module. Weights are data: nothing in the file is ever run."""

from __future__ import annotations

import hashlib
import pickle
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xai_cli.sentences import reason

_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def load_checkpoint(module: nn.Module, path: Path) -> None:
    """Loads the weights of `path` into `module`, all of them and no others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights, would run code, or does not fit; the sentence names the first three keys
            that do not, with both shapes.
    """
    state = _without_prefix(read_state(path), module.state_dict())
    expected = module.state_dict()
    # A counter of training steps has no part in the scores, and some tools leave it out.
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
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


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors, .pt or .pth file by name; training containers are opened, averaged weights
    preferred.

    Raises FileNotFoundError, or ValueError if the file holds no weights or would run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--checkpoint expects a file, found nothing at {path}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickle(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: it holds more than tensors and opening it could run code; save its state dict "
            "(torch.save(model.state_dict(), ...) or safetensors) and give that file"
        ) from error
    except Exception as error:  # torch's reader of pickles raises whatever a broken file leads it to
        raise ValueError(f"{path} is not a readable checkpoint: {reason(error)}") from error
    for container in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)} if _named(content) else {}
    if not state:
        raise ValueError(
            f"{path} holds no weights: expected a dict of named tensors, or one under 'state_dict' or 'model'"
        )
    return state


def digest(module: nn.Module) -> str:
    """SHA-256 over the names, shapes, types and bytes of all weights and buffers."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        # A zip archive, or the bare pickle that torch.save wrote before it made archives.
        if file.read(2)[:1] not in (b"P", b"\x80"):
            raise ValueError("expected safetensors, or what torch.save writes")
    # timm's training script stores its arguments as a Namespace: plain data.
    with torch.serialization.safe_globals([Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _named(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(key, str) for key in content)


def _without_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefixes that wrappers add: as many taken off as makes the most names known."""
    candidates = [state]
    for _ in _PREFIXES:
        candidates.append({_without_one(key): value for key, value in candidates[-1].items()})
    return max(candidates, key=lambda candidate: len(candidate.keys() & expected.keys()))


def _without_one(key: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
    return key.removeprefix(prefix)


def _advice(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """What to type next when only the last layer differs."""
    differing = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    same_names = state.keys() == expected.keys()
    if same_names and differing and all(state[key].shape[1:] == expected[key].shape[1:] for key in differing):
        classes = {state[key].shape[0] for key in differing}
        if len(classes) == 1:
            return f"; the file has {classes.pop()} classes, say so with --num-classes"
    return ""
