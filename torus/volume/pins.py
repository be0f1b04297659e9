"""Which dead chunks the snapshots of a volume still need.  Pure.

The interval rule: a chunk that began before a snapshot was made and died after it may be part
of it.  A chunk's death is dated by its era: the number of the newest snapshot ever made when it
was found dead.  Being wrong is possible in one direction only: a chunk that no snapshot reads
may be kept until the snapshots around it are gone.
"""

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

from torus.format.root import pack_list
from torus.metadata.schema import Snapshot, snapshot_places


class _Pin(NamedTuple):
    """One snapshot: its number, the chunk that its root lies in, and its value as stored."""

    number: int
    sequence: int | None
    value: bytes


class Pins:
    """The snapshots of one volume, as its writer knows them."""

    def __init__(self, snapshots: Iterable[Snapshot] = ()) -> None:
        self._set(_pin(one) for one in snapshots)

    def _set(self, pins: Iterable[_Pin]) -> None:
        self._pins = sorted(pins)
        self._rooted = [pin.number for pin in self._pins if pin.sequence is not None]
        self._sequences = [pin.sequence for pin in self._pins if pin.sequence is not None]
        self._payload: bytes | None = None

    @classmethod
    def read(cls, values: Sequence[bytes], where: str) -> "Pins":
        """Return the pins of snapshots as they are stored.

        Raises: Corruption, UnknownVersion.
        """
        places = snapshot_places(values, where)
        return cls()._with(_Pin(*place, value) for place, value in zip(places, values, strict=True))

    def __iter__(self) -> Iterator[Snapshot]:
        for pin in self._pins:
            yield Snapshot.from_bytes(pin.value, f"snapshot number {pin.number}")

    def __len__(self) -> int:
        return len(self._pins)

    @property
    def numbers(self) -> set[int]:
        """Return the numbers of the snapshots."""
        return {pin.number for pin in self._pins}

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
        newest = bisect_right(self._rooted, era)
        return newest > 0 and self._sequences[newest - 1] >= sequence

    def with_snapshot(self, snapshot: Snapshot) -> "Pins":
        """Return these pins with one more snapshot."""
        return self._with([*self._pins, _pin(snapshot)])

    def without(self, numbers: Container[int]) -> "Pins":
        """Return these pins without some snapshots."""
        return self._with(pin for pin in self._pins if pin.number not in numbers)

    def payload(self, wanted: Snapshot | None = None) -> bytes:
        """Return the snapshots as a root record carries them, with one that it makes."""
        if wanted is not None:
            return pack_list([*(pin.value for pin in self._pins), wanted.to_bytes()])
        if self._payload is None:
            self._payload = pack_list([pin.value for pin in self._pins])
        return self._payload

    @staticmethod
    def _with(pins: Iterable[_Pin]) -> "Pins":
        made = Pins()
        made._set(pins)
        return made


def _pin(snapshot: Snapshot) -> _Pin:
    sequence = None if snapshot.root is None else snapshot.root.sequence
    return _Pin(snapshot.number, sequence, snapshot.to_bytes())
