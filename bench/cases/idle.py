"""What torus takes while nothing happens: resident memory with a full map, and CPU.

A map leaf covers 4 MiB of addresses and takes the same memory whatever part of it is
written, so a few blocks in each of the 25,600 leaves of a 100 GiB volume fill the map as
100 GiB of data would, without needing the disk.  What this leaves out: the store's table of
slots (a few bytes for each of 25,600 slots) stays as small as the data that was written.
"""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.nbd_client import NbdClient
from bench.processes import cpu_seconds, resident_bytes
from bench.results import Value
from bench.servers import Torus

GIB = 1 << 30
LEAF_BYTES = 4 << 20
BLOCK_BYTES = 4096
VOLUME = "idle"
MAP_CACHE = "64MiB"
SEED = 100


@dataclass(frozen=True, slots=True)
class Plan:
    """Size of the volume, blocks written in each leaf, and how long to watch."""

    volume_bytes: int
    blocks_per_leaf: int
    settle_s: float
    watch_s: float


def run(torus: Torus, plan: Plan) -> list[Value]:
    """Return idle CPU (percent of one processor) and resident memory (MiB)."""
    torus.node_options = ["--map-cache", MAP_CACHE]
    torus.start_node()
    torus.create(VOLUME, plan.volume_bytes)
    with torus.client(VOLUME) as client:
        fill_map(client, plan.volume_bytes, plan.blocks_per_leaf)
        touch_every_leaf(client, plan.volume_bytes)
        time.sleep(plan.settle_s)
        pids = torus.pids()
        before_s, began = cpu_seconds(pids), time.monotonic()
        time.sleep(plan.watch_s)
        used_s, watched_s = cpu_seconds(pids) - before_s, time.monotonic() - began
        resident = sum(resident_bytes(pid) for pid in pids)
    leaves = plan.volume_bytes // LEAF_BYTES
    return [
        Value(
            "idle-resident",
            "MiB",
            (resident / (1 << 20),),
            f"{leaves} map leaves, {plan.blocks_per_leaf} blocks in each, map_cache {MAP_CACHE}",
        ),
        Value(
            "idle-cpu",
            "%",
            (100 * used_s / watched_s,),
            f"of one processor over {watched_s:.0f} s, one volume attached, one client connected",
        ),
    ]


def fill_map(client: NbdClient, volume_bytes: int, blocks_per_leaf: int) -> None:
    """Write ``blocks_per_leaf`` scattered blocks into every leaf, then flush."""
    rng = random.Random(SEED)
    payload = os.urandom(BLOCK_BYTES)
    blocks_of_leaf = range(LEAF_BYTES // BLOCK_BYTES)

    def writes() -> Iterator[tuple[int, bytes]]:
        for leaf in range(volume_bytes // LEAF_BYTES):
            for block in rng.sample(blocks_of_leaf, blocks_per_leaf):
                yield leaf * LEAF_BYTES + block * BLOCK_BYTES, payload

    client.write_all(writes())
    client.flush()


def touch_every_leaf(client: NbdClient, volume_bytes: int) -> None:
    """Read a block of every leaf, so that the map cache is as full as it gets."""
    for leaf in range(volume_bytes // LEAF_BYTES):
        client.read(leaf * LEAF_BYTES, BLOCK_BYTES)
