"""The folder of a run: who may write in it, what is done, what is owed. Asked for again, a run goes on.

Nothing here imports torch, so that a finished run is recognised at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from xai_cli.engine.journal import Journal
from xai_cli.engine.ledger import Account, Ledger, State
from xai_cli.engine.outcomes import DeviceLostError
from xai_cli.engine.request import Request, found_changes
from xai_cli.images.sources import ImageRef, stamped
from xai_cli.outputs.files import alone_in, resolve_inside, write_atomically
from xai_cli.outputs.manifest import (
    InUse,
    ManifestWriter,
    Row,
    is_finished,
    is_sound,
    manifest_name,
    manifests,
    read_records,
    shard_of,
)


class Refused(ValueError):  # noqa: N818  # the folder is as it should be; the request does not fit it
    """The folder holds another run, or is in use."""


class AccountingError(RuntimeError):
    """Pictures were asked for, and the manifest has no record of them."""


class RunFolder:
    """The folder `out` while a run, or one shard (i, n) of it, writes in it.

    Entering it locks the run that is there, and reads what is done; `suspects` are pictures on which a
    process may have died.

    Raises:
        Refused: another run is at work in it, or another request was made of it.
        OSError: it cannot be read or written.
    """

    def __init__(
        self,
        out: Path,
        request: Request,
        *,
        shard: tuple[int, int] | None = None,
        overwrite: bool = False,
        retry_errors: bool = False,
    ) -> None:
        self.out, self.shard = out, shard
        self.ledger = Ledger(out, ())
        self.account = Account()
        self.front: list[ImageRef] = []
        self.suspects: list[ImageRef] = []
        self._request, self._overwrite = request, overwrite
        self._owing = {State.UNKNOWN, State.TRANSIENT} | ({State.FAILED} if retry_errors else set())
        self._again: set[str] = set()
        self._knows_journal = False
        self._described: dict[str, Any] = {}
        self._manifest = ManifestWriter(out / manifest_name(shard))
        self._journal = Journal(out / _journal_name(shard))
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self.out.exists() and not self.out.is_dir():
            raise NotADirectoryError(f"--out expects a folder, found the file {self.out}; give another name")
        # A run that is not there yet is not begun either, before its model is known to be right.
        if (self.out / "run.json").exists():
            self._compare()  # A request that is refused leaves no manifest.
            try:
                self._lock()
            except BaseException:
                self._open.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # As long as a picture is suspected of a death, be it only that of the device, the journal must say so.
        if self._knows_journal and not self.suspects and not isinstance(error, DeviceLostError):
            self._journal.close()
        self._open.close()

    def look(self) -> None:
        """Reads what is done without keeping others away or leaving a trace, for a plan. Raises as entering does."""
        if (self.out / "run.json").exists():
            self._compare()
            if not self._overwrite:
                self.ledger = Ledger(self.out, self.manifests())

    @property
    def finished(self) -> bool:
        """Whether this shard's manifest says that it is finished; that of a whole run need not."""
        return self.shard is None or is_finished(self.out / manifest_name(self.shard))

    @property
    def begun(self) -> bool:
        """Whether the folder holds the run, and the manifest of this shard."""
        return bool(self._described)

    @property
    def locked(self) -> bool:
        """Whether the file system keeps other runs away."""
        return self._manifest.locked

    def begin(self, found: Mapping[str, Any]) -> list[str]:
        """Writes `run.json`, or compares it with the model that was `found` since; then pictures may be committed.

        Returns which libraries are others than when the run began. Raises as entering does.
        """
        # Shards may begin at the same moment, and must agree on one request.
        with alone_in(self.out):
            return self._begun(found)

    def _begun(self, found: Mapping[str, Any]) -> list[str]:
        if not self._manifest.is_open:
            self._lock()
        self._knows_journal = True
        if self._described and self._overwrite:
            self._remove()
        if self._described:
            self._refuse(found_changes(self._described, found))
            # One of fewer pictures than there are would outlive a death before the new one.
            (self.out / "overview.png").unlink(missing_ok=True)
            before = self._described["versions"]
            return [f"{name} {before.get(name)} -> {now}" for name, now in found["versions"].items()
                    if now != before.get(name)]  # fmt: skip
        if any(path.stat().st_size for path in manifests(self.out)):
            raise Refused(f"{self.out} holds a manifest without its run.json; give another folder with --out")
        self._described = {**self._request.content, **found}
        write_atomically(self.out / "run.json", json.dumps(self._described, indent=2).encode("ascii") + b"\n")
        return []

    def owed(self, images: Iterable[ImageRef], *, front: int = 0) -> Iterator[ImageRef]:
        """Those of the pictures that have still to be explained; all of them are entered into the account.

        The first ones, `front` of them, are kept, owed or not.
        """
        for image in map(stamped, images):
            state = self.ledger.state(image)
            owing = state in self._owing
            self.account.enter(image, State.UNKNOWN if owing else state)
            if len(self.front) < front:
                self.front.append(image)
            if owing:
                if image in self.ledger:
                    self._again.add(image.key)
                yield image

    def noted(self, images: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """The same pictures, each noted in the journal of what is in flight."""
        for image in images:
            self._journal.begin(image)
            yield image

    def commit(self, rows: Sequence[Row]) -> list[Row]:
        """Appends the record of a picture to the manifest, and returns it as it stands there."""
        record = self._manifest.append(rows)
        self._journal.end(record[0]["key"])
        return record

    def cleared(self, image: ImageRef, record: list[Row]) -> None:
        """Takes a picture, of which there is a `record` now, from the suspects."""
        self.suspects.remove(image)
        self.ledger.note(record)

    def settle(self) -> list[list[Row]]:
        """Reads the manifest again and settles the account; returns the records of the pictures at the front, in order.

        Files of earlier attempts that no record names any more are removed. Raises AccountingError if a picture is
        still owed: then the tool has lost it, not the user.
        """
        records: dict[str, list[Row]] = {image.key: [] for image in self.front}
        named: dict[str, list[set[str]]] = {key: [] for key in self._again}
        for manifest in self.manifests():
            for record in read_records(manifest):
                key = record[0]["key"]
                if key in named and is_sound(record):
                    named[key].append(
                        {path for row in record if row["status"] == "ok" for path in row["files"].values()}
                    )
                if self.account.settle(record) and key in records:
                    records[key] = record
        for earlier in named.values():
            for path in set().union(*earlier[:-1]) - set().union(*earlier[-1:]):
                with suppress(ValueError):
                    resolve_inside(self.out, PurePosixPath(path)).unlink(missing_ok=True)
        owed = self.account.counts()[State.UNKNOWN]
        if owed:
            raise AccountingError(f"{owed} pictures have no record in the manifest; run the same command again")
        if self.shard is not None:
            self._manifest.finish(self.account.counts().total())
        return [record for record in records.values() if record]

    def manifests(self) -> list[Path]:
        """The manifests that tell what is done: that of the whole run, and the shard's own."""
        return [path for path in manifests(self.out) if path.name in (manifest_name(), manifest_name(self.shard))]

    def _lock(self) -> None:
        self._occupy(self._manifest)
        if (self.out / "run.json").exists():
            self._compare()
            if not self._overwrite:
                self._recover()

    def _compare(self) -> None:
        """Reads which run is there, and refuses to go on with another one."""
        try:
            self._described = json.loads((self.out / "run.json").read_text())
            changes = self._request.changes(self._described)
            found_changes(self._described, self._described)
            self._described["versions"].items()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._not_ours() from error
        if not self._overwrite:
            self._refuse(changes)

    def _occupy(self, manifest: ManifestWriter) -> None:
        """Keeps other runs from a manifest until this one ends."""
        try:
            self._open.enter_context(manifest)
        except InUse as error:
            raise Refused(
                f"another run is at work in {self.out}; wait for it, or give another folder with --out"
            ) from error

    def _not_ours(self) -> Refused:
        return Refused(f"{self.out}/run.json was not written by xai; give another folder with --out")

    def _refuse(self, changes: list[str]) -> None:
        if changes:
            raise Refused(
                f"{self.out} holds a run in which {', '.join(changes)}; ask for the same, or give another folder with "
                "--out, or --overwrite"
            )

    def _recover(self) -> None:
        """Reads what is done, and which pictures a process may have died of."""
        self._knows_journal = True
        self.ledger = Ledger(self.out, self.manifests())
        for image in self._journal.left():
            # A file that has changed since is another picture, and one that has gone is none.
            if self.ledger.state(image) in self._owing and image == stamped(image) and os.path.lexists(image.path):
                self.suspects.append(image)
        if self.suspects:
            self._journal.begin(*self.suspects)

    def _remove(self) -> None:
        """Removes what a run wrote, and nothing a user may have put beside it."""
        others = [path for path in manifests(self.out) if path.name != manifest_name(self.shard)]
        for path in others:
            self._occupy(ManifestWriter(path))
        try:
            folders = [resolve_inside(self.out, PurePosixPath(method)) for method in self._described["methods"]]
        except ValueError as error:
            raise self._not_ours() from error
        for folder in folders:
            _remove_results(folder)
        for path in others:
            path.unlink()
            (self.out / _journal_name(shard_of(path))).unlink(missing_ok=True)
        self._manifest.clear()
        for name in ("overview.png", "run.json"):
            (self.out / name).unlink(missing_ok=True)
        self._described = {}


def _remove_results(folder: Path) -> None:
    """Removes arrays, pictures and what a killed run left half-written, and then the folders that are empty."""
    if folder.is_symlink():  # which we would not have written below
        return
    for below, _, names in os.walk(folder, topdown=False):
        for name in names:
            if name.endswith((".npy", ".png", ".tmp")):
                os.unlink(os.path.join(below, name))
        with suppress(OSError):  # something of the user's is in there
            os.rmdir(below)


def _journal_name(shard: tuple[int, int] | None) -> str:
    return f".in-flight{manifest_name(shard).removeprefix('manifest')}"
