"""The manifests of a run's shards become one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from xai_cli.outputs.manifest import (
    ManifestWriter,
    Row,
    is_finished,
    latest_records,
    manifest_name,
    manifests,
    row_line,
    shard_of,
)


def merge_manifests(out: Path) -> int:
    """Joins the manifests of all shards of a run into `manifest.jsonl`, removes them, and returns how many they were.

    Only the records that count are kept: those of a `manifest.jsonl` that is already there first, then shard by shard,
    in the order in which they were written. They are not sorted, because a million of them would have to be in memory.

    Raises:
        ValueError: shards are missing or unfinished, or there are shards of several runs.
        InUse: a shard is being written.
        OSError: the manifest cannot be written; nothing is lost then.
    """
    merged = out / manifest_name()
    shards = _shards(out, all_of_them=not merged.exists())
    if not shards:
        return 0
    paths = [path for path in (merged,) if path.exists()] + shards
    with ExitStack() as locks:
        for path in paths:
            locks.enter_context(ManifestWriter(path))
        _write(merged, latest_records(paths))
        for path in shards:
            path.unlink()
    return len(shards)


def _shards(out: Path, *, all_of_them: bool) -> list[Path]:
    """The manifests of the shards, in order; none if the run has no shards.

    What has been joined before is in the manifest, so that of a later round not all shards need be there.
    """
    found = {path.name: shard for path in manifests(out) if (shard := shard_of(path))}
    counts = sorted({shards for _, shards in found.values()})
    if len(counts) > 1:
        raise ValueError(f"expected the shards of one run in {out}, found shards of {counts[0]} and of {counts[1]}")
    if found and all_of_them:
        # The number of shards is taken from a file name and may be anything: not all that are missing are counted out.
        names = (manifest_name((index, counts[0])) for index in range(1, counts[0] + 1))
        missing = list(islice((name for name in names if name not in found), 5))
        if missing:
            raise ValueError(
                f"expected the manifests of all {counts[0]} shards in {out}, found none named {', '.join(missing)}; "
                "run these shards first"
            )
    unfinished = list(islice((name for name in found if not is_finished(out / name)), 5))
    if unfinished:
        raise ValueError(
            f"expected finished shards in {out}, found unfinished {', '.join(unfinished)}; run these again"
        )
    return [out / name for name in found]


def _write(path: Path, records: Iterable[list[Row]]) -> None:
    from xai_cli.outputs.files import temporary_path  # brings NumPy

    temporary = temporary_path(path)
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("x", encoding="ascii") as file:
            for record in records:
                file.writelines(map(row_line, record))
            # The shards are removed next; after a power cut this must not be all that is left, and empty.
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
