"""Does a flush cost more on a larger volume?  1 TiB against 1 GiB, both thin.

Both volumes are served by one node and take turns, write by write, so that noise of the
disk hits both alike.
"""

import os
import random
import statistics
import time

from bench.nbd_client import NbdClient
from bench.results import Value
from bench.servers import Torus

GIB = 1 << 30
TIB = 1 << 40
BLOCK_BYTES = 4096
SEED = 20


def run(torus: Torus, *, turns: int) -> list[Value]:
    """Return the flush times of both sizes (microseconds) and their ratio."""
    torus.start_node()
    sizes = {"1gib": GIB, "1tib": TIB}
    for name, size_bytes in sizes.items():
        torus.create(name, size_bytes)
    rng = random.Random(SEED)
    payload = os.urandom(BLOCK_BYTES)
    took_us: dict[str, list[float]] = {name: [] for name in sizes}
    with torus.client("1gib") as small, torus.client("1tib") as large:
        clients: dict[str, NbdClient] = {"1gib": small, "1tib": large}
        for turn in range(turns):
            names = list(clients) if turn % 2 else list(clients)[::-1]
            for name in names:
                client = clients[name]
                block = rng.randrange(client.size_bytes // BLOCK_BYTES)
                client.write(block * BLOCK_BYTES, payload)
                began = time.monotonic_ns()
                client.flush()
                took_us[name].append((time.monotonic_ns() - began) / 1000)
    ratio = statistics.median(took_us["1tib"]) / statistics.median(took_us["1gib"])
    return [
        Value("flush-1gib", "us", tuple(took_us["1gib"]), f"{turns} flushes, one 4 KiB write each"),
        Value("flush-1tib", "us", tuple(took_us["1tib"]), f"{turns} flushes, one 4 KiB write each"),
        Value("flush-1tib-over-1gib", "x", (ratio,), "ratio of the medians"),
    ]
