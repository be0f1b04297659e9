"""The metrics of a node's upkeep."""

from collections.abc import Iterable, Mapping

from torus.daemon.metrics import Sample
from torus.daemon.upkeep import RunningUpkeep


def _sum(parts: Iterable[Mapping[int, int]]) -> dict[int, int]:
    total: dict[int, int] = {}
    for part in parts:
        for copies, count in part.items():
            total[copies] = total.get(copies, 0) + count
    return total


class UpkeepSource:
    """What is to be pulled and given up, and what was."""

    def __init__(self, upkeep: RunningUpkeep) -> None:
        self._upkeep = upkeep

    def samples(self) -> Iterable[Sample]:
        """Return the present values, all disks together."""
        disks = [disk.progress for disk in self._upkeep.node.disks.values()]
        lacking = _sum(disk.lacking_bytes for disk in disks)
        degraded = _sum(disk.degraded_bytes for disk in disks)
        for copies in sorted({1, 2, *lacking, *degraded}):
            label = (str(copies),)
            yield Sample("torus_upkeep_lacking_bytes", lacking.get(copies, 0), label)
            yield Sample("torus_upkeep_degraded_bytes", degraded.get(copies, 0), label)
        yield Sample("torus_upkeep_moving_bytes", sum(disk.moving_bytes for disk in disks))
        yield Sample("torus_upkeep_moving_share", self._upkeep.node.moving_share())
        yield Sample("torus_upkeep_surplus_bytes", sum(disk.surplus_bytes for disk in disks))
        yield Sample("torus_upkeep_encoding_bytes", sum(disk.encoding_bytes for disk in disks))
        short = [one for one in self._upkeep.spreads() if one.scheme.erasure]
        for what, count in (
            ("nodes", sum(one.nodes_missing > 0 for one in short)),
            ("zones", sum(one.zone_is_fatal for one in short)),
        ):
            yield Sample("torus_upkeep_short_volumes", count, (what,))
        yield Sample("torus_upkeep_suspect_chunks", sum(disk.suspect_chunks for disk in disks))
        yield Sample("torus_upkeep_damaged_chunks", sum(disk.damaged_chunks for disk in disks))
        yield Sample("torus_upkeep_pulled_bytes_total", sum(disk.pulled_bytes for disk in disks))
        yield Sample("torus_upkeep_pulled_chunks_total", sum(disk.pulled_chunks for disk in disks))
        yield Sample("torus_upkeep_built_shards_total", sum(disk.built_shards for disk in disks))
        yield Sample(
            "torus_upkeep_dropped_chunks_total", sum(disk.dropped_chunks for disk in disks)
        )
        yield Sample("torus_upkeep_errors_total", sum(disk.errors for disk in disks))
        yield Sample(
            "torus_upkeep_unsettled_disks",
            sum(not one.settled() for one in self._upkeep.node.disks.values()),
        )
