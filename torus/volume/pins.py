"""Which dead chunks the snapshots of a volume still need.  Pure.

The interval rule: a chunk that began before a snapshot was made and died after it may be part
of it.  A chunk's death is dated by its era: the number of the newest snapshot ever made when it
was found dead.  Being wrong is possible in one direction only: a chunk that no snapshot reads
may be kept until the snapshots around it are gone.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from torus.metadata.schema import Snapshot


class Pins:
    """The snapshots of one volume, as its writer knows them."""

    def __init__(self, snapshots: Iterable[Snapshot] = ()) -> None:
        self._snapshots = sorted(snapshots, key=lambda snapshot: snapshot.number)
        rooted = [one for one in self._snapshots if one.root is not None]
        self._numbers = [one.number for one in rooted]
        self._sequences = [one.root.sequence for one in rooted if one.root is not None]
        self._payload: bytes | None = None

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
        return Pins([*self._snapshots, snapshot])

    def payload(self) -> bytes:
        """Return the snapshots as root records carry them."""
        if self._payload is None:
            self._payload = encode_snapshots(self._snapshots)
        return self._payload


def encode_snapshots(snapshots: Iterable[Snapshot]) -> bytes:
    """Return a JSON list of snapshot values; empty when there is none."""
    values = [json.loads(snapshot.to_bytes()) for snapshot in snapshots]
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode() if values else b""
