"""Where the fault tests run: a warm process to fork from, an undisturbed run to compare with, a desk for each test."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.desk import Desk

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a process that forks into `xai`."""
    path = tmp_path_factory.mktemp("warm") / "socket"
    with subprocess.Popen([sys.executable, str(Path(__file__).with_name("warm.py")), str(path)]) as process:
        while not path.exists():
            assert process.poll() is None, "the process that forks has died"
            time.sleep(0.02)
        time.sleep(0.05)
        yield str(path)
        process.kill()


@pytest.fixture(scope="session")
def reference(warm: str, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A run that nothing disturbed."""
    desk = Desk(tmp_path_factory.mktemp("reference"), warm).furnish()
    ended = desk.run()
    assert ended.code == 0, ended.said
    desk.kilobytes = ended.kilobytes
    return desk


@pytest.fixture
def desk(warm: str, reference: Desk, tmp_path: Path) -> Iterator[Desk]:
    """Pictures and a net, not explained yet."""
    desk = Desk(tmp_path, warm, reference).furnish()
    yield desk
    desk.stop_all()
