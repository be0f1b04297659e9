"""Which dead chunks the snapshots of a volume still need.  Pure.

The interval rule: a chunk that began before a snapshot was made and died after it may be part
of it.  A chunk's death is dated by its era: the number of the newest snapshot ever made when it
was found dead.  Being wrong is possible in one direction only: a chunk that no snapshot reads
may be kept until the snapshots around it are gone.
"""

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence

from torus.format.root import pack_list
from torus.metadata.schema import Snapshot, read_snapshots


class Pins:
    """The snapshots of one volume, as its writer knows them."""

    def __init__(
        self, snapshots: Iterable[Snapshot] = (), packed: dict[int, bytes] | None = None
    ) -> None:
        """``packed``: the values of some, by number, where they are known."""
        self._snapshots = sorted(snapshots, key=lambda snapshot: snapshot.number)
        rooted = [one for one in self._snapshots if one.root is not None]
        self._numbers = [one.number for one in rooted]
        self._sequences = [one.root.sequence for one in rooted if one.root is not None]
        self._packed = {} if packed is None else packed
        self._payload: bytes | None = None

    @classmethod
    def read(cls, values: Sequence[bytes], where: str) -> "Pins":
        """Return the pins of snapshots as they are stored.

        Raises: Corruption, UnknownVersion.
        """
        snapshots = read_snapshots(values, where)
        packed = {one.number: value for one, value in zip(snapshots, values, strict=True)}
        return cls(snapshots, packed)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._snapshots)

    def __len__(self) -> int:
        return len(self._snapshots)

    @property
    def through(self) -> int:
        """Return the last chunk that a snapshot may need; 0 for none.

        Moving what lives in it or in older ones gains no space.
        """
        return max(self._sequences, default=0)

    def pinned(self, sequence: int, era: int) -> bool:
        """Tell whether a chunk that died in ``era`` may be part of a snapshot.

        Numbers and root places rise together, so the newest snapshot of the era decides.
        """
        newest = bisect_right(self._numbers, era)
        return newest > 0 and self._sequences[newest - 1] >= sequence

    def with_snapshot(self, snapshot: Snapshot) -> "Pins":
        """Return these pins with one more snapshot."""
        return Pins([*self._snapshots, snapshot], self._packed)

    def without(self, numbers: Container[int]) -> "Pins":
        """Return these pins without some snapshots."""
        left = [one for one in self._snapshots if one.number not in numbers]
        return Pins(left, {one.number: self._packed[one.number] for one in left
                           if one.number in self._packed})  # fmt: skip

    def payload(self, wanted: Snapshot | None = None) -> bytes:
        """Return the snapshots as a root record carries them, with one that it makes."""
        if self._payload is None or wanted is not None:
            values = [self._value(one) for one in self._snapshots]
            if wanted is not None:
                return pack_list([*values, wanted.to_bytes()])
            self._payload = pack_list(values)
        return self._payload

    def _value(self, snapshot: Snapshot) -> bytes:
        value = self._packed.get(snapshot.number)
        if value is None:
            value = self._packed[snapshot.number] = snapshot.to_bytes()
        return value
