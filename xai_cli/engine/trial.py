"""A picture on which a process has died is tried in a process of its own, so that it can cost no run twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from xai_cli.classifiers.options import ModelOptions
from xai_cli.engine.options import DrawingOptions, InputOptions, RunOptions
from xai_cli.engine.outcomes import Failed, HopelessError
from xai_cli.images.sources import ImageRef
from xai_cli.methods.contract import Method
from xai_cli.outputs.manifest import Row

Job = tuple[ModelOptions, Sequence[Method], InputOptions, RunOptions, DrawingOptions]

_HOPELESS = 4


class Trial:
    """A process that loads the model of a `job`, and then explains a batch of pictures at a time."""

    def __init__(self, job: Job) -> None:
        # Spawned, not forked: this process may hold threads and a device by now.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def found(self) -> dict[str, Any] | None:
        """What `describe_found` says of the model; None if it could not be loaded, which is no picture's fault."""
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            return None

    def rows(self, images: Sequence[ImageRef]) -> list[list[Row]] | None:
        """The rows of each picture, its files in place; None if the process has died of one of them."""
        try:
            self._connection.send(images)
            return self._connection.recv()
        except (EOFError, OSError):
            return None

    def close(self) -> int | None:
        """Ends the process; how it had ended by itself, if it had: its exit code, negative for a signal."""
        self._connection.close()
        self._process.join(1)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        return code


def try_alone(suspects: Sequence[ImageRef], job: Job) -> Iterator[tuple[ImageRef, list[Row], dict[str, Any]]]:
    """The rows of each suspect, and the model that was found: as good as any, or an error row if it kills again.

    They are tried in batches, as most deaths are no picture's fault; a batch that kills, in halves. Nothing is given if
    the model cannot be loaded.

    Raises:
        HopelessError: the first suspects all kill the process: it is not they.
    """
    size, deaths, survivors = job[3].batch_size, 0, 0
    waiting = [suspects[start : start + size] for start in range(0, len(suspects), size)]
    while waiting:
        trial = Trial(job)
        code: int | None = None
        try:
            found = trial.found()
            if found is None:
                return
            while waiting and (rows := trial.rows(waiting[0])) is not None:
                survivors += len(rows)
                for image, record in zip(waiting.pop(0), rows, strict=True):
                    yield image, record, found
        finally:
            code = trial.close()
        if waiting:
            deadly = waiting.pop(0)
            half = len(deadly) // 2
            if half:
                waiting[:0] = [deadly[:half], deadly[half:]]
            else:
                deaths += 1
                if deaths == _HOPELESS and not survivors:
                    raise HopelessError(f"the process dies whatever the picture, the last time with {_end(code)}")
                yield deadly[0], [_crashed(deadly[0], code).as_row()], found


def _crashed(image: ImageRef, code: int | None) -> Failed:
    message = f"two processes died while they worked on it, the last with {_end(code)}; --retry-errors tries it again"
    return Failed(image, "worker", "Crashed", message)


def _end(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name


def _serve(connection: Connection, job: Job) -> None:
    """What the other process does: a model, then rows for pictures until the pipe is closed."""
    # The run that waits for us is told of signals, and ends us.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    from xai_cli.classifiers.loading import load_classifier
    from xai_cli.engine.explain import Stations
    from xai_cli.engine.request import describe_found

    model, methods, inputs, run, drawing = job
    try:
        classifier = load_classifier(**vars(model))
        stations = Stations.of(classifier, methods, inputs, run, drawing)
        connection.send(describe_found(classifier, methods))
    except (LookupError, ValueError, OSError):
        os._exit(0)  # the run will find the same and tell it
    while True:
        try:
            images = connection.recv()
        except (EOFError, OSError):
            return
        try:
            outcomes = stations.attributor.explain_all([stations.reader.read(image) for image in images])
        except HopelessError:
            os._exit(1)  # the device is lost: a death like others, and no traceback
        rows = [stations.writer.write(outcome).rows for outcome in outcomes]
        with suppress(OSError):  # the run may have been killed meanwhile
            connection.send(rows)
