"""A map that forgets the names answers as one that keeps them."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from xai_cli.digests import DigestMap


class Hashed(bytes):
    """A name whose digest is chosen."""

    def __new__(cls, digest: int) -> Hashed:
        name = super().__new__(cls, b"%d" % digest)
        name.digest = digest
        return name

    digest: int

    def __hash__(self) -> int:
        return self.digest


@pytest.mark.parametrize(("typecode", "highest"), [("B", 2**8 - 1), ("Q", 2**64 - 1)])
def test_it_answers_as_a_dict(typecode: str, highest: int) -> None:
    draw = random.Random(0)
    known: dict[bytes, int] = {}
    digests = DigestMap(typecode)
    for _ in range(50_000):
        name, value = b"name-%d" % draw.randrange(30_000), draw.randint(0, highest)
        assert (name in digests) == (name in known)
        assert digests.get(name, 7) == known.get(name, 7)
        if draw.random() < 0.5:
            assert digests.put(name, value) == known.get(name, 0)
        else:
            digests[name] = value
        known[name] = value
    assert len(digests) == len(known) > 20_000
    assert all(digests[name] == value for name, value in known.items())
    assert dict(digests.digests()) == {hash(name) % 2**64: value for name, value in known.items()}


def test_what_is_unknown() -> None:
    digests = DigestMap()
    assert (len(digests), b"a" in digests, digests.get(b"a"), digests.get(b"a", 3)) == (0, False, 0, 3)
    with pytest.raises(KeyError, match="a"):
        digests[b"a"]


def test_a_value_that_does_not_fit_leaves_no_trace() -> None:
    digests = DigestMap("B")
    for value in (256, -1):
        with pytest.raises(OverflowError, match="convert"):
            digests[b"a"] = value
    assert b"a" not in digests
    assert list(digests.digests()) == []


def test_digest_zero_is_a_digest_like_others() -> None:
    digests = DigestMap()
    assert hash(b"") == 0
    assert b"" not in digests
    digests[b""] = 5
    assert digests[b""] == 5
    assert list(digests.digests()) == [(0, 5)]


@pytest.mark.parametrize("typecode", ["B", "Q"])
def test_digests_that_share_their_low_bits(typecode: str) -> None:
    digests = DigestMap(typecode)
    names = [Hashed(sign * (high << 32) + 77) for high in range(1, 100) for sign in (1, -1)]
    for value, name in enumerate(names):
        assert digests.put(name, value) == 0
    assert [digests[name] for name in names] == list(range(198))
    assert Hashed(77) not in digests


def test_what_only_looks_like_a_digest_is_none() -> None:
    digests = DigestMap("B")
    first = Hashed(int.from_bytes(b"\5\5\5\x09\5\5\5\5", "little"))
    shifted = Hashed(int.from_bytes(b"\5\5\x09\5\5\5\5\7", "little"))  # the end of `first` and its value
    digests[first] = 7
    assert shifted not in digests
    digests[shifted] = 3
    assert (digests[first], digests[shifted], len(digests)) == (7, 3, 2)


def test_a_name_costs_some_bytes_however_long_it_is() -> None:
    tracemalloc.start()
    digests = DigestMap()
    for number in range(100_000):
        digests[b"%0200d" % number] = 1
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < peak < 2_500_000
