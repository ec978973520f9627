"""What has become of every picture of a run, by its manifest: the ground of resuming and of the final account."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from xai_cli.digests import DigestMap
from xai_cli.engine.checks import warnings
from xai_cli.images.sources import ImageRef
from xai_cli.outputs.manifest import Row, is_sound, read_records


class State(IntEnum):
    """What is known of a picture; UNKNOWN is one without a whole record, or whose files have gone."""

    UNKNOWN = 0
    DONE = 1
    DOUBTFUL = 2  # done, but a check of one of its maps is beyond its bound
    FAILED = 3
    TRANSIENT = 4  # failed in a way that may be gone


_STATES = 8  # the least power of two that holds them


class Ledger:
    """The states of a run's pictures, a few bytes each. A picture whose file has changed is another one, and so is one
    whose file was changed back, because its maps were overwritten.
    """

    def __init__(self, out: Path, manifests: Iterable[Path]) -> None:
        self._out = out
        self._states = DigestMap("I")
        for manifest in manifests:
            for record in read_records(manifest):
                self.note(record)

    def note(self, record: list[Row]) -> None:
        """Takes down what a record says, which outdates what was known."""
        if not is_sound(record):
            return
        state = state_of(record) if _in_place(record, self._out) else State.UNKNOWN
        self._states[_name(record[0]["key"])] = _marked(_stamp(record[0]), state)

    def __contains__(self, image: ImageRef) -> bool:
        """Whether there is a record under the picture's key, also one of another state of its file."""
        return _name(image.key) in self._states

    def state(self, image: ImageRef) -> State:
        """What is known of a picture."""
        known = self._states.get(_name(image.key))
        state = State(known % _STATES)
        return state if known == _marked(image.stamp, state) else State.UNKNOWN

    @property
    def proven(self) -> bool:
        """Whether any picture was explained."""
        return any(known % _STATES in (State.DONE, State.DOUBTFUL) for _, known in self._states.digests())


class Account:
    """The pictures that a run was asked for, each with what became of it."""

    def __init__(self) -> None:
        self._states = DigestMap("I")

    def enter(self, image: ImageRef, state: State) -> None:
        """Takes a picture into the account; UNKNOWN says that it is still owed."""
        self._states[_name(image.key)] = _marked(image.stamp, state)

    def settle(self, record: list[Row]) -> bool:
        """Takes down what became of a picture; False for one that was never entered, or was another one then."""
        name = _name(record[0]["key"])
        if name not in self._states or not is_sound(record):
            return False
        owed = self._states[name] // _STATES * _STATES
        same = owed == _marked(_stamp(record[0]), State.UNKNOWN)
        self._states[name] = owed + (state_of(record) if same else State.UNKNOWN)
        return same

    def counts(self) -> Counter[State]:
        """How many pictures there are of each state."""
        return Counter(State(known % _STATES) for _, known in self._states.digests())


def state_of(record: list[Row]) -> State:
    """What a picture's record says of it."""
    errors = [row for row in record if row["status"] == "error"]
    if errors:
        return State.TRANSIENT if any(row.get("transient") for row in errors) else State.FAILED
    return State.DOUBTFUL if any(warnings(row["method"], row["checks"]) for row in record) else State.DONE


def _in_place(record: list[Row], out: Path) -> bool:
    """Whether the files of a record are there, in their size: a map that is gone or cut is made again."""
    try:
        return all(
            os.lstat(f"{out}/{path}").st_size == row["bytes"][kind]
            for row in record
            if row["status"] == "ok"
            for kind, path in row["files"].items()
        )
    except OSError:
        return False


def _stamp(row: Row) -> tuple[int, int] | None:
    source = row["source"]
    return None if source is None else (source["bytes"], source["mtime_ns"])


def _name(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _marked(stamp: tuple[int, int] | None, state: State) -> int:
    """A state with 29 bits of the digest of the stamp of the file that it is the state of, as 32 bits."""
    return hash(stamp) % 2**29 * _STATES + state
