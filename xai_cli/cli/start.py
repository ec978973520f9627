"""How the process of `xai` starts: Ctrl-C may come while Python imports the commands, before any of them listens."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Runs the command line; until it is there, Ctrl-C ends the process at once and in silence."""
    listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else our caller has it ignored
    if listens:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from xai_cli.cli.main import main as run

    if listens:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()
