"""A process that has imported what `xai` needs, and forks: each fork becomes `xai` as if it had just been started.

    python warm.py SOCKET

Python and torch take seconds to start, a fork takes milliseconds, so that tests can afford to kill many. A client of
the socket sends what it wants as JSON, and the three standard streams (null for a closed one); it gets the process id,
and at the end the exit code (negative for a signal) and the peak resident size in kilobytes.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import socket
import sys
from typing import Any

IMPORTED = ("pydantic", "timm.data", "xai_cli.cli.main", "xai_cli.classifiers.loading", "xai_cli.engine.explain",
            "xai_cli.engine.drawing", "xai_cli.engine.overview", "xai_cli.engine.trial")  # fmt: skip


def serve(path: str) -> None:
    """Waits for clients as long as its parent lives; what returns is a fork that has become `xai`."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # else each fork would copy what it never uses
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    listener.settimeout(5)
    while os.getppid() == parent:
        try:
            client = listener.accept()[0]
        except TimeoutError:
            continue
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.detach()
            return shepherd(client)
        client.close()
    os._exit(0)  # whoever killed the tests did not think of this process


def shepherd(client: socket.socket) -> None:
    """Starts one process, and tells the client of its begin and its end."""
    data, streams, *_ = socket.recv_fds(client, 2**16, 3)
    asked = json.loads(data)
    pid = os.fork()
    if pid == 0:
        client.detach()
        return become(asked, streams)
    for stream in streams:
        os.close(stream)
    client.sendall(f"{pid}\n".encode())
    _, status, usage = os.wait4(pid, 0)
    client.sendall(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}\n".encode())
    os._exit(0)


def become(asked: dict[str, Any], streams: list[int]) -> None:
    """Makes of this fork what Python makes of a new process."""
    os.setsid()
    given = iter([os.dup(stream) for stream in streams])  # out of the way of 0, 1 and 2
    wanted = [next(given) if is_open else None for is_open in asked["open"]]
    for number, stream in enumerate(wanted):
        os.close(number) if stream is None else os.dup2(stream, number)
    os.closerange(3, 256)
    sys.stdin, sys.stdout, sys.stderr = (
        None if stream is None else open(number, mode, buffering, errors=errors, closefd=False)  # noqa: SIM115
        for number, (stream, mode, buffering, errors) in enumerate(
            zip(wanted, "rww", (-1, -1, 1), ("surrogateescape", "surrogateescape", "backslashreplace"), strict=True)
        )
    )
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for name, value in asked["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    sys.argv = ["xai", *asked["arguments"]]


def end(code: object) -> None:
    """Ends the fork as Python does, but without the second that it takes to clear what all forks share."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = 120
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve(sys.argv[1])
    from xai_cli.cli.main import main

    try:
        main()
    except SystemExit as ended:
        end(ended.code)
