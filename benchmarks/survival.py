"""What is left of runs that are killed, and what runs cost that survive: memory, going on, the first result.

    python benchmarks/survival.py --json benchmarks/results/survival.json

Killed: one run of small pictures, killed by SIGKILL again and again at random times, in its work or in its start, and
at last finished, is compared with a run that nobody disturbed. Memory: the peak resident size, once the model is
loaded, of runs of links to a few small pictures. Again: the same command in a finished folder. First: from the time
when the model is loaded (`run.json` appears) to the first path on standard output. Every run is a process of its own;
a net of three layers is explained.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from xai_cli.outputs.manifest import manifests, read_records

NET = """
import os
import time

import torch
from torch import nn


class Net(nn.Sequential):
    def forward(self, x):
        if x.requires_grad:  # which it does not while the model is being loaded
            time.sleep(float(os.environ.get("SLOW", 0)))
        return super().forward(x)


def make():
    torch.manual_seed(0)
    net = Net(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    net.pretrained_cfg = {"input_size": (3, 16, 16), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    return net
"""
OWN = ("--model", "net.py:make", "--out", "out")
# Says at its end what its memory was, and which model's libraries were imported.
TELLING = """
import sys
from xai_cli.cli.main import main
try:
    main()
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
    print("imported:", *sorted({"torch", "torchvision", "timm"} & set(sys.modules)), file=sys.stderr)
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended, what it said on standard error, and what it cost."""

    code: int
    said: str
    seconds: float
    cpu_seconds: float
    peak_mb: float


class Desk:
    """A folder with pictures and a net, in which `xai` runs."""

    def __init__(self, folder: Path, pictures: int, *, different: int) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "net.py").write_text(NET)
        (folder / "originals").mkdir()
        (folder / "pictures").mkdir()
        noise = np.random.default_rng(0)
        for number in range(pictures):
            original = folder / "originals" / f"{number % different}.png"
            if number < different:
                Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(original)
            (folder / "pictures" / f"{number:05}.png").symlink_to(original)

    def start(self, *arguments: str, python: tuple[str, ...] = ("-m", "xai_cli"), slow: float = 0) -> subprocess.Popen:
        """`xai` with these arguments, begun; what it prints and says goes into files."""
        streams = [(self.folder / name).open("wb") for name in ("stdout", "stderr")]
        command = [sys.executable, *python, *arguments]
        environment = {**os.environ, "SLOW": str(slow), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=streams[0], stderr=streams[1])
        for stream in streams:
            stream.close()
        return process

    def run(self, *arguments: str, python: tuple[str, ...] = ("-m", "xai_cli"), slow: float = 0) -> Ended:
        """`xai` with these arguments, ended."""
        start = time.perf_counter()
        return self.end(self.start(*arguments, python=python, slow=slow), start)

    def end(self, process: subprocess.Popen, start: float) -> Ended:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
        said = (self.folder / "stderr").read_text()
        return Ended(process.returncode, said, round(seconds, 2), round(cpu, 2), round(usage.ru_maxrss / 1024, 1))

    def files(self) -> dict[str, bytes]:
        """What stands at final names, except the manifest."""
        return {
            str(path.relative_to(self.out)): path.read_bytes()
            for path in self.out.rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.name != "manifest.jsonl"
        }

    def findings(self) -> int:
        """How many things `xai verify` finds."""
        command = [sys.executable, "-m", "xai_cli", "verify", str(self.out)]
        return len(subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines())

    def keys(self) -> list[str]:
        """The pictures of the whole records, outdated ones included."""
        return [record[0]["key"] for path in manifests(self.out) for record in read_records(path)]


def measure_kills(kills: int, pictures: int) -> dict[str, object]:
    """How much is lost, doubled, torn or blamed when a run is killed so many times."""
    command = ("explain", "pictures", "--batch-size", "4", *OWN)
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder), pictures, different=pictures)
        assert desk.run(*command).code == 0
        whole = desk.files()
        desk.out.rename(desk.folder / "undisturbed")
        chance = random.Random(0)
        counts: Counter[str] = Counter()
        for number in range(kills):
            counts["in_work"] += killed(desk, command, chance, in_work=number % 3 > 0)
            counts["partial_files"] += sum(content != whole.get(name) for name, content in desk.files().items())
        done_before = len(desk.keys())
        last = desk.run(*command)
        found, keys = desk.files(), desk.keys()
        crashed = sum('"Crashed"' in line for line in (desk.out / "manifest.jsonl").open())
        return {
            "kills": kills, **counts, "pictures": pictures, "done_before_the_last_run": done_before,
            "exit_code": last.code, "lost_records": pictures - len(set(keys)),
            "doubled_records": len(keys) - len(set(keys)),
            "differing_files": sum(found.get(name) != content for name, content in whole.items()),
            "surplus_files": len(found.keys() - whole.keys()), "false_crashed_rows": crashed,
            "hidden_files_left": len(list(desk.out.rglob(".*"))), "findings_of_verify": desk.findings(),
        }  # fmt: skip


def killed(desk: Desk, command: tuple[str, ...], chance: random.Random, *, in_work: bool) -> bool:
    """Kills a run; True if that was in its work: when it had written a record, or gone on after an earlier one."""
    before = len(desk.keys()) if desk.out.exists() else 0
    start = time.perf_counter()
    process = desk.start(*command, slow=0.03)
    enough = before + chance.randrange(1, 12)
    while in_work and is_alive(process) and not (desk.out.exists() and len(desk.keys()) >= enough):
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 0.1 if in_work else 8))
    os.kill(process.pid, signal.SIGKILL)
    return desk.end(process, start).code == -signal.SIGKILL and len(desk.keys() if desk.out.exists() else ()) > before


def measure_run(pictures: int) -> dict[str, object]:
    """The memory and time of a run of so many pictures, and of the same command in the finished folder."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder), pictures, different=20)
        command = ("gradcam", "pictures", "--batch-size", "32", "--render", "none", "--overview", "0", *OWN)
        start = time.perf_counter()
        process = desk.start(*command, python=("-c", TELLING))
        waited_for(process, desk.out / "run.json")
        # The peak of the imports, which is above all later ones, is forgotten.
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        run = desk.end(process, start)
        again = [desk.run(*command, python=("-c", TELLING)) for _ in range(3)]
        assert all(each.code == 0 for each in (run, *again)), run.said
        return {
            "peak_mb": run.peak_mb, "peak_after_loading_mb": in_megabytes(run.said, "VmHWM"),
            "seconds": run.seconds, "cpu_seconds": run.cpu_seconds,
            "again_seconds": min(each.seconds for each in again),
            "again_cpu_seconds": min(each.cpu_seconds for each in again),
            "again_peak_mb": max(each.peak_mb for each in again),
            "again_imported": again[0].said.partition("imported:")[2].split(),
        }  # fmt: skip


def in_megabytes(status: str, name: str) -> float:
    """A figure of /proc/self/status."""
    return round(int(status.split(f"{name}:")[1].split()[0]) / 1024, 1)


def measure_first(*model: str) -> dict[str, float]:
    """Seconds from the start to the loaded model of a run of one picture, and from there to its first path."""
    with tempfile.TemporaryDirectory() as folder:
        desk = Desk(Path(folder), 1, different=1)
        start = time.perf_counter()
        process = desk.start("gradcam", "pictures", *OWN, *model)
        loaded = waited_for(process, desk.out / "run.json")
        first = waited_for(process, desk.folder / "stdout")
        desk.end(process, start)
        return {"until_loaded": round(loaded - start, 2), "first_result_after": round(first - loaded, 3)}


def is_alive(process: subprocess.Popen) -> bool:
    """Whether it has not ended; it is left to be waited for."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def waited_for(process: subprocess.Popen, path: Path) -> float:
    """When there was something in the file."""
    while not (path.exists() and path.stat().st_size):
        assert is_alive(process), path
        time.sleep(0.001)
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--pictures", type=int, default=900, help="of the run that is killed")
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=20_000)
    parser.add_argument("--again", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    result = {"load_before": os.getloadavg()[0], "cores": os.cpu_count()}
    result["first"] = {
        "net of three layers": measure_first(),
        "torchvision/resnet50": measure_first("--model", "torchvision/resnet50", "--random-weights"),
    }
    result["runs"] = {pictures: measure_run(pictures) for pictures in (asked.few, asked.again, asked.many)}
    few, many = (result["runs"][count]["peak_after_loading_mb"] for count in (asked.few, asked.many))
    result["growth_mb"] = round(many - few, 1)
    result["killed"] = measure_kills(asked.kills, asked.pictures)
    result["load_after"] = os.getloadavg()[0]
    print(json.dumps(result, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
