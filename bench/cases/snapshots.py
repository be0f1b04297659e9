"""What snapshots cost: making them, writing after them, having a thousand of them.

The time of a snapshot is that of the question to the node that has the volume, without the
start of a command's interpreter; each follows a few writes, so that it is never the last one
again.  A clone is made by the command: what it takes beyond a listing is its own.
"""

import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import fio
from bench.cases.attach import seconds_to_first_read
from bench.nbd_client import NbdClient
from bench.results import Value
from bench.servers import MIB, Torus
from torus.node.control_task import run_task

LARGE, MANY = "large", "many"
TIB = 1 << 40
BLOCK_BYTES = 4096
DEPTH = 32
SEED = 11


@dataclass(frozen=True, slots=True)
class Plan:
    """How much data the volume of 1 TiB has, how many snapshots, and how long loads last."""

    data_bytes: int
    many: int
    rounds: int
    seconds: float
    work_dir: Path


def run(torus: Torus, plan: Plan) -> list[Value]:
    """Return milliseconds of snapshots and clones, and ratios with against without them."""
    torus.start_node()
    torus.create(LARGE, TIB)
    load = fio.Load("write", MIB, 8, 0.0, plan.data_bytes, flush_at_end=True)
    fio.run(load, [torus.uri(LARGE)], plan.work_dir)
    with torus.client(LARGE) as client:
        snapshot(torus, LARGE, "first")
        values = [*_making(torus, client, plan), _pause(torus, client, plan)]
        values.append(_writing_after(torus, plan))
    return [*values, *_a_thousand(torus, plan)]


def snapshot(torus: Torus, volume: str, name: str) -> float:
    """Make a snapshot; return how many seconds the node took."""
    began = time.monotonic()
    run_task(str(torus.folder / "peer.sock.ctl"), "snapshot", volume, {"name": name})
    return time.monotonic() - began


def _making(torus: Torus, client: NbdClient, plan: Plan) -> list[Value]:
    rng = random.Random(SEED)
    snapshots, listings, clones = [], [], []
    for number in range(plan.rounds):
        _touch(client, rng, plan.data_bytes)
        snapshots.append(1000 * snapshot(torus, LARGE, f"s{number}"))
        listings.append(_timed(lambda: torus.run("volume", "snapshot", "list", LARGE)))
        origin, clone = f"{LARGE}@s{number}", f"clone{number}"
        clones.append(_timed(lambda: torus.run("volume", "clone", origin, clone)))  # noqa: B023
    listing = statistics.median(listings)
    note = f"1 TiB with {plan.data_bytes >> 30} GiB of data, 64 blocks written before each"
    return [
        Value("snapshot-milliseconds", "ms", tuple(snapshots), note),
        Value(
            "clone-milliseconds", "ms", tuple(max(0.0, 1000 * (one - listing)) for one in clones),
            f"the command takes {1000 * statistics.median(clones):.0f} ms, a listing "
            f"{1000 * listing:.0f}",
        ),
    ]  # fmt: skip


def _pause(torus: Torus, client: NbdClient, plan: Plan) -> Value:
    """The longest write of a client that goes on while snapshots are made."""
    rng = random.Random(SEED + 1)
    payload = rng.randbytes(BLOCK_BYTES)
    slowest, stop = 0.0, threading.Event()

    def write() -> None:
        nonlocal slowest
        while not stop.is_set():
            offset = rng.randrange(plan.data_bytes // BLOCK_BYTES) * BLOCK_BYTES
            took = _timed(lambda: client.write(offset, payload))  # noqa: B023
            slowest = max(slowest, took)

    writer = threading.Thread(target=write)
    writer.start()
    pauses, without = [], []
    for number in range(plan.rounds):
        slowest = 0.0
        time.sleep(0.5)
        without.append(1000 * slowest)
        slowest = 0.0
        snapshot(torus, LARGE, f"pause{number}")
        pauses.append(1000 * slowest)
    stop.set()
    writer.join()
    return Value(
        "snapshot-pause-milliseconds", "ms", tuple(pauses),
        "longest 4 KiB write of a client, one at a time, while a snapshot was made; in half a "
        f"second without one {statistics.median(without):.1f} ms",
    )  # fmt: skip


def _writing_after(torus: Torus, plan: Plan) -> Value:
    ratios, notes = [], []
    for number in range(plan.rounds):
        before = _random_writes(torus, LARGE, plan, plan.data_bytes, number)
        snapshot(torus, LARGE, f"after{number}")
        after = _random_writes(torus, LARGE, plan, plan.data_bytes, 100 + number)
        ratios.append(after / before)
        notes.append(f"{before:.0f} to {after:.0f}")
    return Value("write-after-snapshot-over-before", "x", tuple(ratios), ", ".join(notes))


def _a_thousand(torus: Torus, plan: Plan) -> list[Value]:
    """Attach, write and delete with many snapshots against with one."""
    rng, size = random.Random(SEED + 2), 1024 * MIB
    torus.create(MANY, size)
    figures: dict[str, tuple[float, float, float]] = {}
    with torus.client(MANY) as client:
        _touch(client, rng, size)
        snapshot(torus, MANY, "m0")
    figures["few"] = _with_snapshots(torus, plan, size, "m0")
    began = time.monotonic()
    with torus.client(MANY) as client:
        for number in range(1, plan.many + 1):
            _touch(client, rng, size, 4)
            snapshot(torus, MANY, f"m{number}")
    made_s = time.monotonic() - began
    figures["many"] = _with_snapshots(torus, plan, size, f"m{plan.many // 2}")
    values = []
    for place, (name, unit) in enumerate((("attach", "s"), ("write", "op/s"), ("delete", "s"))):
        few, many = figures["few"][place], figures["many"][place]
        ratio = few / many if name == "write" else many / few
        note = f"{few:.3g} {unit} with one snapshot, {many:.3g} with {plan.many}"
        values.append(Value(f"{name}-with-many-snapshots", "x", (ratio,), note))
    each = 1000 * made_s / plan.many
    return [*values, Value("snapshot-of-many-milliseconds", "ms", (each,), "mean of them all")]


def _with_snapshots(torus: Torus, plan: Plan, size: int, name: str) -> tuple[float, float, float]:
    """Return seconds to attach after a clean stop, writes a second, seconds to delete one."""
    writes = [_random_writes(torus, MANY, plan, size, number) for number in range(plan.rounds)]
    attaches = []
    for _ in range(plan.rounds):
        torus.stop()
        attaches.append(seconds_to_first_read(torus, MANY))
    with torus.client(MANY):
        delete_s = _timed(lambda: torus.run("volume", "snapshot", "delete", f"{MANY}@{name}"))
    return statistics.median(attaches), statistics.median(writes), delete_s


def _random_writes(torus: Torus, volume: str, plan: Plan, size: int, seed: int) -> float:
    load = fio.Load("randwrite", BLOCK_BYTES, DEPTH, plan.seconds, size, seed=seed + 1)
    return fio.run(load, [torus.uri(volume)], plan.work_dir).operations_per_s


def _touch(client: NbdClient, rng: random.Random, size: int, count: int = 64) -> None:
    for _ in range(count):
        client.write(rng.randrange(size // BLOCK_BYTES) * BLOCK_BYTES, rng.randbytes(BLOCK_BYTES))


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
