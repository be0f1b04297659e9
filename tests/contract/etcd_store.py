"""etcd as the contract test of the metadata store sees it.

What others do reaches a watch of etcd after a while, and its leases end in its own time.  Here
`next(0)` of a watch waits until the watch has seen everything that was committed before, and a
clock that a test moves makes real time pass, ten times as fast.
"""

import itertools
import time
from collections.abc import Sequence

from tests.etcd_members import EtcdCluster
from torus.metadata.base import Delete, Event, Put
from torus.metadata.etcd import EtcdMetadata
from torus.metadata.etcd_watch import EtcdWatch

WAIT_S = 20.0
SPEED = 10.0
_FENCE = "~fence"


class SettledEtcd(EtcdMetadata):
    """An `EtcdMetadata` whose watches have seen all, and whose leases are short."""

    def __init__(self, cluster: EtcdCluster, prefix: str, leases: dict[int, float]) -> None:
        super().__init__(cluster.open(prefix).access)
        self._writer = cluster.open(prefix)
        self._leases = leases  # the seconds that each has left
        self._whole: dict[int, float] = {}

    def watch(self, prefix: str, after_revision: int) -> "SettledWatch":  # type: ignore[override]
        return SettledWatch(super().watch(prefix, after_revision), self._writer)

    def grant(self, ttl_s: float) -> int:
        if not 0 < ttl_s < 1e6:
            return super().grant(ttl_s)
        lease = super().grant(ttl_s / SPEED + 1)
        self._leases[lease] = self._whole[lease] = ttl_s
        return lease

    def renew(self, lease: int) -> bool:
        renewed = super().renew(lease)
        if renewed:
            self._leases[lease] = self._whole[lease]
        return renewed

    def close(self) -> None:
        super().close()
        self._writer.close()


class SettledWatch:
    """A watch whose `next(0)` gives all that was committed before."""

    def __init__(self, watch: EtcdWatch, writer: EtcdMetadata) -> None:
        self._watch = watch
        self._writer = writer
        self._fences = (f"{watch.prefix}{_FENCE}{number}" for number in itertools.count())

    def next(self, timeout_s: float) -> Sequence[Event]:
        if timeout_s > 0:
            return self._watch.next(timeout_s)
        fence = next(self._fences)
        self._writer.commit([], [Put(fence, b"")])
        self._writer.commit([], [Delete(fence)])
        found: list[Event] = []
        while not any(event.key == fence and event.value is None for event in found):
            events = self._watch.next(WAIT_S)
            assert events, "the watch ran dry"
            found.extend(events)
        return [event for event in found if _FENCE not in event.key]

    def close(self) -> None:
        self._watch.close()


def pass_time(cluster: EtcdCluster, leases: dict[int, float], seconds: float) -> None:
    """Let time pass, and wait for the leases whose end it brings."""
    time.sleep(seconds / SPEED)
    for lease, left_s in tuple(leases.items()):
        leases[lease] = left_s - seconds
        if leases[lease] <= 0:
            cluster.wait(lambda lease=lease: cluster.time_to_live(lease) < 0, f"end of {lease}")
            del leases[lease]
