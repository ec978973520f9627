"""Which of a million names were seen, and in which state, in some 13 MB."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

_DIGEST = 8  # bytes
_BUCKETS = 8192  # a search reads one of them: 1 kB at a million names


class DigestMap:
    """A map from names (bytes) to small numbers that keeps a 64-bit digest in place of each name.

    Values are unsigned and fit the `array` typecode `"B"`, `"H"`, `"I"` or `"Q"`. The digest is Python's own `hash`,
    SipHash-1-3 under a key drawn per process: nobody can prepare two names that collide, and a map is of no use to
    another process. That a new name is taken for a known one happens once among a million names with a probability of
    3e-8 (n^2 / 2^65), among a hundred million with 3e-4.

    The entries of a bucket, digest and value, lie end to end in one `bytearray`. Open addressing would be as fast, but
    needs up to twice the memory, and the old table beside the new one while it grows.
    """

    def __init__(self, typecode: str = "B") -> None:
        self._size = array(typecode).itemsize
        self._buckets = [bytearray() for _ in range(_BUCKETS)]
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, name: bytes) -> bool:
        return self._found(name)[2] >= 0

    def __getitem__(self, name: bytes) -> int:
        _, bucket, at = self._found(name)
        if at < 0:
            raise KeyError(name)
        return int.from_bytes(bucket[at : at + self._size], "little")

    def __setitem__(self, name: bytes, value: int) -> None:
        self.put(name, value)

    def get(self, name: bytes, default: int = 0) -> int:
        """The value of `name`, or `default` if it has none."""
        _, bucket, at = self._found(name)
        return default if at < 0 else int.from_bytes(bucket[at : at + self._size], "little")

    def put(self, name: bytes, value: int) -> int:
        """Set the value of `name` and return the one that it replaces, 0 for a new name.

        Raises:
            OverflowError: if the value does not fit the typecode.
        """
        digest, bucket, at = self._found(name)
        entry = value.to_bytes(self._size, "little")
        if at < 0:
            bucket += digest + entry
            self._length += 1
            return 0
        earlier = int.from_bytes(bucket[at : at + self._size], "little")
        bucket[at : at + self._size] = entry
        return earlier

    def digests(self) -> Iterator[tuple[int, int]]:
        """(digest from 0 to 2^64 - 1, value) of every entry, in no order of use."""
        for bucket in self._buckets:
            for at in range(0, len(bucket), _DIGEST + self._size):
                middle = at + _DIGEST
                value = bucket[middle : middle + self._size]
                yield int.from_bytes(bucket[at:middle], "little"), int.from_bytes(value, "little")

    def _found(self, name: bytes) -> tuple[bytes, bytearray, int]:
        """The digest of `name`, its bucket, and where its value begins in there or -1."""
        number = hash(name)
        digest = number.to_bytes(_DIGEST, "little", signed=True)
        bucket = self._buckets[number % _BUCKETS]
        at = bucket.find(digest)
        # The end of one entry and the beginning of the next may look like the digest.
        while at > 0 and at % (_DIGEST + self._size):
            at = bucket.find(digest, at + 1)
        return digest, bucket, at if at < 0 else at + _DIGEST
