"""What became of every picture, as its last whole record says and its files bear out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from xai_cli.engine.ledger import Account, Ledger, State, state_of
from xai_cli.images.sources import ImageRef
from xai_cli.outputs.manifest import ManifestWriter

Row = dict[str, Any]
CAT = ImageRef("birds/cat.jpg", Path("/photos/birds/cat.jpg"), (5, 1))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stamp_row(image: ImageRef) -> dict[str, int] | None:
    return None if image.stamp is None else {"bytes": image.stamp[0], "mtime_ns": image.stamp[1]}


def ok(image: ImageRef = CAT, method: str = "ig", **checks: float | None) -> Row:
    """A row whose file is in place, with three bytes."""
    name = f"{method}/{image.key}.npy"
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(b"map")
    checks = {"degenerate": False, **checks}
    return {"key": image.key, "source": stamp_row(image), "status": "ok", "method": method, "checks": checks,
            "files": {"npy": name}, "bytes": {"npy": 3}}  # fmt: skip


def failed(image: ImageRef = CAT, *, transient: bool = False) -> Row:
    return {"key": image.key, "source": stamp_row(image), "status": "error", "transient": transient}


def noted(*records: list[Row]) -> Ledger:
    ledger = Ledger(Path(), ())
    for record in records:
        ledger.note(record)
    return ledger


def test_the_states_of_a_record() -> None:
    assert state_of([ok(), ok(method="lrp")]) is State.DONE
    assert state_of([ok(), ok(method="lrp", completeness_gap=0.06)]) is State.DOUBTFUL
    assert state_of([ok(completeness_gap=None)]) is State.DOUBTFUL
    assert state_of([failed()]) is State.FAILED
    assert state_of([ok(), failed()]) is State.FAILED
    assert state_of([failed(), failed(transient=True)]) is State.TRANSIENT


@pytest.mark.parametrize("harm", ["gone", "cut", "longer", "linked", "folder gone"])
@pytest.mark.parametrize("other", [{}, {"completeness_gap": 1.0}])
def test_a_map_whose_file_is_not_as_it_was_written_is_owed_again(harm: str, other: dict[str, float]) -> None:
    record = [ok(), ok(method="lrp", **other)]
    path = Path(record[0]["files"]["npy"])
    if harm in ("gone", "folder gone", "linked"):
        path.unlink()
    if harm == "folder gone":
        path.parent.rmdir()
    elif harm == "linked":
        path.symlink_to(Path(record[1]["files"]["npy"]).resolve())
    elif harm != "gone":
        path.write_bytes(b"ma" if harm == "cut" else b"maps")
    assert noted(record).state(CAT) is State.UNKNOWN


def test_also_beside_a_failed_method_a_map_that_is_gone_is_owed_again() -> None:
    record = [ok(), failed()]
    Path(record[0]["files"]["npy"]).unlink()
    assert noted(record).state(CAT) is State.UNKNOWN


def test_a_later_record_outdates_an_earlier_one() -> None:
    assert noted([failed()], [ok()]).state(CAT) is State.DONE
    assert noted([ok()], [failed(transient=True)]).state(CAT) is State.TRANSIENT
    assert noted([ok()]).state(ImageRef("cat.jpg", CAT.path, CAT.stamp)) is State.UNKNOWN


@pytest.mark.parametrize("stamp", [(6, 1), (5, 2), (1, 5), None])
def test_a_picture_whose_file_has_changed_is_another_one(stamp: tuple[int, int] | None) -> None:
    changed = ImageRef(CAT.key, CAT.path, stamp)
    assert noted([ok()]).state(changed) is State.UNKNOWN
    assert noted([ok(changed)]).state(changed) is State.DONE
    # The files of the changed picture lie under the names of the first one.
    assert noted([ok()], [ok(changed)]).state(CAT) is State.UNKNOWN


def test_a_missing_picture_is_known_by_its_missing_stamp() -> None:
    missing = ImageRef("gone.jpg", Path("/gone.jpg"))
    assert noted([failed(missing)]).state(missing) is State.FAILED


def test_the_ledger_reads_manifests_in_order_and_knows_whether_any_picture_was_explained() -> None:
    for name, record in (("a", [ok()]), ("b", [failed()])):
        with ManifestWriter(Path(name)) as manifest:
            manifest.append(record)
    assert Ledger(Path(), [Path("a"), Path("b")]).state(CAT) is State.FAILED
    assert Ledger(Path(), [Path("b"), Path("a")]).state(CAT) is State.DONE
    assert Ledger(Path(), [Path("a")]).proven
    assert noted([ok(completeness_gap=1.0)]).proven
    assert not Ledger(Path(), [Path("b")]).proven
    assert not Ledger(Path(), []).proven


def test_names_that_are_no_text_have_states_too() -> None:
    image = ImageRef(os.fsdecode(b"caf\xe9.png"), Path("x"), (1, 1))
    assert noted([failed(image)]).state(image) is State.FAILED


# The account


def test_the_account_counts_what_was_asked_for_and_nothing_else() -> None:
    images = {name: ImageRef(name, Path(name), (1, 1)) for name in "abcdef"}
    account = Account()
    for name, state in zip("abcde", (State.DONE, State.FAILED, *[State.UNKNOWN] * 3), strict=True):
        account.enter(images[name], state)
    assert account.counts() == Counter({State.UNKNOWN: 3, State.DONE: 1, State.FAILED: 1})
    assert account.settle([ok(images["c"])])
    assert account.settle([ok(images["d"], completeness_gap=1.0)])
    assert not account.settle([ok(images["f"])])
    assert account.counts() == Counter(
        {State.DONE: 2, State.FAILED: 1, State.DOUBTFUL: 1, State.UNKNOWN: 1, **dict.fromkeys([State.TRANSIENT], 0)}
    )


def test_the_record_of_another_content_settles_nothing() -> None:
    account = Account()
    account.enter(CAT, State.UNKNOWN)
    assert not account.settle([ok(ImageRef(CAT.key, CAT.path, (6, 1)))])
    assert account.counts() == Counter({State.UNKNOWN: 1})


def test_a_picture_is_settled_by_its_last_record_of_all() -> None:
    """Else a run that loses a picture, which had been changed and changed back, would count its outdated maps."""
    account = Account()
    account.enter(CAT, State.UNKNOWN)
    assert account.settle([ok()])
    account.settle([ok(ImageRef(CAT.key, CAT.path, (6, 1)))])
    assert account.counts() == Counter({State.UNKNOWN: 1})


def test_a_map_that_a_reader_took_away_was_made_all_the_same() -> None:
    account = Account()
    account.enter(CAT, State.UNKNOWN)
    record = [ok()]
    Path(record[0]["files"]["npy"]).unlink()
    assert account.settle(record)
    assert account.counts() == Counter({State.DONE: 1})


@pytest.mark.parametrize(
    "harm",
    [
        {"status": None},
        {"source": 5},
        {"source": {"bytes": "5"}},
        {"checks": []},
        {"checks": {"degenerate": "no"}},
        {"bytes": {}},
        {"scale": 3},
        {"scale": {"own": "much"}},
    ],
)
def test_a_record_that_was_edited_by_hand_says_nothing(harm: dict[str, object]) -> None:
    record = [ok(), {**ok(method="lrp"), **harm}]
    assert noted(record).state(CAT) is State.UNKNOWN
    account = Account()
    account.enter(CAT, State.UNKNOWN)
    assert not account.settle(record)
