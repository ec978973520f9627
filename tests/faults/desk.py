"""A folder with pictures and a small net, in which `xai` runs as a process of its own, and what must be true of the
run that it leaves.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from helpers import run_xai
from PIL import Image

from xai_cli.outputs.manifest import Row, latest_records, manifests, read_records

PICTURES = 24
COMMAND = ("explain", "pictures", "-m", "saliency", "-m", "gradcam", "--model", "net.py:make", "--out", "out",
           "--batch-size", "2", "--workers", "4", "--overview", "4")  # fmt: skip

_NET = '''
import os
import time

import torch
from torch import nn


class Net(nn.Sequential):
    def forward(self, x):
        if x.requires_grad and x.is_leaf:  # which it is not while the model is being looked at
            time.sleep(float(os.environ.get("SLOW", 0)))
            late = time.monotonic() + 60  # nothing stays if the tests are killed
            while os.path.exists("hold") and time.monotonic() < late:
                open("held", "w").close()
                time.sleep(0.01)
        if "DEADLY" in os.environ and (x.flatten(1).amin(1) > 1.99).any():
            if os.environ["DEADLY"] == "SIGSEGV":
                import ctypes
                ctypes.string_at(0)
            os.kill(os.getpid(), 9)
        return super().forward(x)


def make():
    """Three classes, random weights, inputs of 16 x 16; what is white becomes 2."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Net(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    net.pretrained_cfg = {"input_size": (3, 16, 16), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return net
'''


@dataclass(frozen=True)
class Ended:
    """How a process ended, what it printed, what it said on standard error, the most memory it had."""

    code: int
    printed: bytes
    said: str
    kilobytes: int


@dataclass
class Process:
    """A process of `xai` that goes on while the test does something to it."""

    pid: int
    _desk: Desk
    _link: socket.socket

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, within: float = 60) -> Ended:
        """Waits for the end."""
        self._link.settimeout(within)
        code, kilobytes = map(int, _line(self._link).split())
        self._link.close()
        self._desk.running.remove(self)
        printed, said = ((self._desk.folder / name).read_bytes() for name in ("stdout", "stderr"))
        return Ended(code, printed, said.decode(errors="replace"), kilobytes)

    def kill(self) -> Ended:
        self.signal(signal.SIGKILL)
        return self.end()


@dataclass
class Desk:
    """The folder of one test; `reference` is that of a run that nothing disturbed, which took so many `kilobytes`."""

    folder: Path
    warm: str
    reference: Desk | None = None
    kilobytes: int = 0
    running: list[Process] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def furnish(self) -> Desk:
        """Two dozen small pictures and the net."""
        (self.folder / "net.py").write_text(_NET)
        noise = np.random.default_rng(0)
        for number in range(PICTURES):
            path = self.folder / "pictures" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        return self

    def start(
        self,
        *more: object,
        command: Sequence[object] = COMMAND,
        streams: Sequence[int | str | None] = (os.devnull, "stdout", "stderr"),
        limits: dict[str, int] | None = None,
        ignored: Sequence[int] = (),
        without: Sequence[str] = (),
        **environment: object,
    ) -> Process:
        """`xai` with these arguments, begun. A stream is a file's name, a descriptor, or None for a closed one."""
        kept = {name: value for name, value in os.environ.items() if name not in without}
        asked = {
            "arguments": [*map(str, (*command, *more))],
            "folder": str(self.folder),
            "open": [stream is not None for stream in streams],
            "limits": limits or {},
            "ignored": list(ignored),
            "environment": {**kept, **{name: str(value) for name, value in environment.items()}},
        }
        for name in ("stdout", "stderr"):
            (self.folder / name).write_bytes(b"")
        opened = [os.open(self.folder / name, os.O_RDWR) if isinstance(name, str) else name for name in streams]
        link = socket.socket(socket.AF_UNIX)
        link.connect(self.warm)
        socket.send_fds(link, [json.dumps(asked).encode()], [stream for stream in opened if stream is not None])
        for name, stream in zip(streams, opened, strict=True):
            if isinstance(name, str):
                os.close(stream)
        process = Process(int(_line(link)), self, link)
        self.running.append(process)
        return process

    def run(self, *more: object, **how: object) -> Ended:
        """`xai` with these arguments, ended."""
        return self.start(*more, **how).end()

    def until(self, holds: Callable[[], bool], within: float = 60) -> None:
        """Waits for something to become true."""
        late = time.monotonic() + within
        while not holds():
            assert time.monotonic() < late, f"still not true after {within} seconds: {self.said()}"
            time.sleep(0.002)

    def start_held(self, *more: object, **how: object) -> Process:
        """`xai` begun, up to its first batch, in which it waits until `release`."""
        (self.folder / "hold").touch()
        process = self.start(*more, **how)
        self.until(lambda: (self.folder / "held").exists())
        return process

    def release(self) -> None:
        """The net goes on."""
        for name in ("hold", "held"):
            (self.folder / name).unlink()

    def said(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    def records(self) -> list[list[Row]]:
        """The whole records so far, outdated ones included."""
        return [record for path in manifests(self.out) for record in read_records(path)]

    def errors(self) -> dict[str, str]:
        """The pictures that have no map in the end, and why."""
        latest = latest_records(manifests(self.out))
        return {record[0]["key"]: record[0]["type"] for record in latest if record[0]["status"] == "error"}

    def files(self) -> dict[str, bytes]:
        """The files at final names, except the manifests, whose rows tell the time."""
        return {
            str(path.relative_to(self.out)): path.read_bytes()
            for path in sorted(self.out.rglob("*"))
            if path.is_file() and not path.name.startswith(".") and not path.name.startswith("manifest")
        }

    def assert_no_partial_file(self) -> None:
        """Whatever the run has been through: what stands at a final name is what an undisturbed run puts there."""
        assert self.reference is not None
        whole = self.reference.files()
        for name, content in self.files().items():
            assert content == whole[name], f"{name} differs from that of an undisturbed run"

    def assert_complete(self, *, once: bool = True, except_for: Sequence[str] = ()) -> None:
        """The run has all that an undisturbed one has, byte by byte, and nothing else."""
        assert self.reference is not None
        keys, expected = (sorted(record[0]["key"] for record in desk.records()) for desk in (self, self.reference))
        assert keys == expected if once else set(keys) == set(expected)
        found, whole = self.files(), self.reference.files()
        lost = {name for name in whole for key in except_for if name.partition("/")[2].startswith(key)}
        # The contact sheet leaves out a picture that has no map.
        lost |= {"overview.png"} if except_for else set()
        assert found.keys() - {"overview.png"} == whole.keys() - lost - {"overview.png"}
        assert [name for name in found if name not in lost and found[name] != whole[name]] == []
        assert "overview.png" in found
        assert [str(path) for path in self.out.rglob(".*")] == []
        self.assert_verified()

    def assert_verified(self) -> None:
        """What the manifest says of the files is true, and there are no others."""
        answer = run_xai("verify", self.out)
        assert answer.code == 0, (answer.paths, answer.said)

    def stop_all(self) -> None:
        """Ends whatever a failed test has left running, and its children."""
        for process in self.running:
            os.killpg(process.pid, signal.SIGKILL)


def _line(link: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        piece = link.recv(1)
        assert piece, "the process that forks has died"
        line += piece
    return line.decode()
