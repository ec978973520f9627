"""The tensors of a checkpoint file, read one at a time: memory stays flat however large the file is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from xai_cli.classifiers.checkpoints import digest_of, is_mapped, read_state, read_stored, without_prefix

_MAPPED_BYTES = 2**25
"""How much of a file may stand in memory because it was read: what is mapped counts until the file is let go."""


class Weights:
    """What a safetensors, .pt or .pth file holds, by name; training containers are opened, averaged weights preferred.

    Only bare pickles, which torch.save wrote before it made archives, stand in memory whole.

    Args:
        path: the file.
        ema: False leaves out averaged weights (`state_dict_ema`, `model_ema`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights, or would run code.
    """

    def __init__(self, path: Path, *, ema: bool = True) -> None:
        self._file = _File(path, ema)
        self._stored = {name: name for name in self._file.kinds}

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.kinds[self._stored[name]][1]

    def dtype(self, name: str) -> torch.dtype:
        return self._file.kinds[self._stored[name]][0]

    def tensor(self, name: str) -> Tensor:
        """A copy of one tensor, contiguous, of the type in which it is stored."""
        return self._file.tensor(self._stored[name])

    @property
    def averaged(self) -> str | None:
        """The container of averaged weights that these were taken from; None if they were not."""
        return self._file.averaged

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The strings in the header of a safetensors file; other files have none."""
        if self.path.suffix != ".safetensors":
            return {}
        with safe_open(self.path, "pt") as file:
            return file.metadata() or {}

    @property
    def sha256(self) -> str:
        """Of the whole file, in hexadecimal digits; read once."""
        return self._file.sha256

    def digest(self) -> str:
        """The digest of a module into which these weights were loaded, as `Classifier.digest` has it."""
        return digest_of((name, self.tensor(name)) for name in sorted(self.names))

    def renamed(self, stored: Mapping[str, str]) -> Weights:
        """The same file under other names: of each its name here."""
        renamed = Weights.__new__(Weights)
        renamed._file = self._file
        renamed._stored = {name: self._stored[old] for name, old in stored.items()}
        return renamed


def aligned(checkpoints: Collection[Weights], expected: Collection[str]) -> tuple[list[Weights], list[str]]:
    """The checkpoints under the names of a model, as far as prefixes of wrappers stood before them, and for each
    changed one a sentence that says so.

    Args:
        checkpoints: `module.`, `_orig_mod.` and `model.` are taken off where that makes the most names known,
            `backbone.` where it makes all names known.
        expected: the names in the model's state.
    """
    found, notes = [], []
    for weights in checkpoints:
        stored = without_prefix(weights.names, expected)
        prefixes = sorted({old.removesuffix(name) for name, old in stored.items()} - {""})
        if prefixes:
            notes.append(f"{weights.path}: its names are read without {' and '.join(map(repr, prefixes))}")
        found.append(weights.renamed(stored))
    return found, notes


def _places(path: Path) -> dict[str, int]:
    """Where each tensor of a safetensors file begins."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: 8 + size + each["data_offsets"][0] for name, each in header.items() if name != "__metadata__"}


class _File:
    def __init__(self, path: Path, ema: bool) -> None:
        self.path, self._ema = path, ema
        stored = read_stored(path, ema=ema)
        self._state, self.averaged, self._read = stored.state, stored.averaged, 0
        self.kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in self._state.items()}
        self._places = _places(path) if path.suffix == ".safetensors" else {}

    @cached_property
    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def tensor(self, stored: str) -> Tensor:
        return self._copied(stored) if stored in self._places else self._mapped(stored)

    def _copied(self, stored: str) -> Tensor:
        """Read past the mapping, whose pages would each be faulted in, which takes longer."""
        dtype, shape = self.kinds[stored]
        content = np.empty(prod(shape) * dtype.itemsize, np.uint8)  # in huge pages, which NumPy asks for
        with self.path.open("rb") as file:
            file.seek(self._places[stored])
            if file.readinto(content.data) < len(content):
                raise ValueError(f"{self.path} has become shorter while it was read; give a whole file")
        return torch.empty(0, dtype=dtype).set_(torch.from_numpy(content).untyped_storage()).view(shape)

    def _mapped(self, stored: str) -> Tensor:
        if self._read > _MAPPED_BYTES and is_mapped(self.path):
            # Only when the last tensor of a mapping goes does the system take its pages back.
            self._state = {}
            self._state, self._read = read_state(self.path, ema=self._ema), 0
        found = self._state[stored]
        self._read += found.nbytes
        return found.clone(memory_format=torch.contiguous_format)
