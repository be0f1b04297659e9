"""What overwriting costs a log: bytes written, space, latency beside collection, scattering.

All of it on one volume.  Amplification is what the node appended to the log for each byte that
clients wrote, after enough overwriting for the log to be at its target; ``--gc-rate`` is high
there, so that collection keeps up with fio.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from bench import fio
from bench.processes import BenchError
from bench.results import Value
from bench.servers import MIB, Torus, fill

VOLUME = "collect"
BLOCK_BYTES = 4096
DEPTH = 32
FAST = "4GiB"  # a rate that never holds collection back
Figures = dict[str, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """Size of the volume, length of a timed load, and how often the volume is overwritten."""

    volume_bytes: int
    seconds: float
    overwrites: int
    work_dir: Path


def run(torus: Torus, plan: Plan) -> list[Value]:
    """Return amplifications, space against live data, ratios of latency and of reading."""
    _restart(torus, "0")
    torus.create(VOLUME, plan.volume_bytes)
    fill(torus.socket_path, VOLUME)
    with torus.client(VOLUME):
        fresh = _read(torus, plan)
        quiet = _random(torus, plan, seed=1)
    _restart(torus, "64MiB")
    with torus.client(VOLUME):
        beside = _random(torus, plan, seed=2)
    values = [
        Value(
            "collect-p99-over-without", "x", (beside.latency_us_p99 / quiet.latency_us_p99,),
            f"4 KiB random writes, QD{DEPTH}: {beside.latency_us_p99:.0f} us beside collection at "
            f"64 MiB/s, {quiet.latency_us_p99:.0f} us without",
        )
    ]  # fmt: skip
    values.append(_kept_at_target(torus, plan))
    values += _amplification(torus, plan)
    values += _afterwards(torus, plan, fresh)
    return values


def _kept_at_target(torus: Torus, plan: Plan) -> Value:
    """Amplification of a log that is never far from its target: some writes, then a collection,
    again and again."""
    _restart(torus, "0")
    share = plan.volume_bytes // 8
    with torus.client(VOLUME):
        torus.run("gc", VOLUME)
        before, used = _figures(torus), []
        for turn in range(5 * plan.overwrites):  # until it does not change any more
            load = fio.Load(
                "randwrite", BLOCK_BYTES, DEPTH, 0.0, plan.volume_bytes,
                seed=1000 + turn, total_bytes=share,
            )  # fmt: skip
            fio.run(load, [torus.uri(VOLUME)], plan.work_dir)
            used.append(_utilisation(_figures(torus)))
            torus.run("gc", VOLUME)
            used.append(_utilisation(_figures(torus)))
        ratio = _ratio(before, _figures(torus))
    return Value(
        "collect-amplification-at-target", "x", (ratio,),
        f"log bytes for each byte that clients wrote, map pages included; {min(used):.0%} to "
        f"{max(used):.0%} of the log was live",
    )  # fmt: skip


def _amplification(torus: Torus, plan: Plan) -> list[Value]:
    _restart(torus, FAST)
    with torus.client(VOLUME):
        blocks = plan.overwrites * plan.volume_bytes // 2
        _write(torus, plan, "randwrite", BLOCK_BYTES, blocks, seed=3)
        before = _figures(torus)
        _write(torus, plan, "randwrite", BLOCK_BYTES, blocks, seed=4)
        after = _figures(torus)
        random = _ratio(before, after)
        used = [_utilisation(before), _utilisation(after)]
        for seed in range(2):  # the first takes away what random overwriting left
            _write(torus, plan, "write", MIB, plan.volume_bytes, seed=seed)
        before = _figures(torus)
        for seed in range(2):
            _write(torus, plan, "write", MIB, plan.volume_bytes, seed=seed)
        sequential = _ratio(before, _figures(torus))
    note = "log bytes for each byte that clients wrote"
    ends = f"{note}; {used[0]:.0%} of the log was live at the beginning, {used[1]:.0%} at the end"
    return [
        Value("collect-random-amplification", "x", (random,), ends),
        Value("collect-sequential-amplification", "x", (sequential,), note),
    ]


def _afterwards(torus: Torus, plan: Plan, fresh: float) -> list[Value]:
    """Scatter the volume once more, then collect and defragment it on demand."""
    _restart(torus, "0")
    with torus.client(VOLUME):
        _write(torus, plan, "randwrite", BLOCK_BYTES, 2 * plan.volume_bytes, seed=5)
        scattered = _read(torus, plan)
        began = time.monotonic()
        torus.run("gc", VOLUME)
        collecting_s = time.monotonic() - began
        figures = _figures(torus)
        space = 1 + figures["dead_bytes"] / figures["live_bytes"]
        torus.run("gc", VOLUME, "--defragment")
        again = _read(torus, plan)
    return [
        Value(
            "collect-space-over-live", "x", (space,),
            f"chunks over live bytes after 'torus gc', which took {collecting_s:.1f} s",
        ),
        Value(
            "collect-defragmented-over-fresh", "x", (again / fresh,),
            f"1 MiB sequential reads: fresh {fresh / 1e6:.0f} MB/s, after random overwriting "
            f"{scattered / 1e6:.0f}, after 'torus gc --defragment' {again / 1e6:.0f}",
        ),
    ]  # fmt: skip


def _restart(torus: Torus, rate: str) -> None:
    torus.stop()
    torus.node_options = ["--gc-rate", rate]
    torus.start_node()


def _read(torus: Torus, plan: Plan) -> float:
    load = fio.Load("read", MIB, 8, 0.0, plan.volume_bytes)
    runs = [fio.run(load, [torus.uri(VOLUME)], plan.work_dir).bytes_per_s for _ in range(3)]
    return sorted(runs)[1]


def _random(torus: Torus, plan: Plan, seed: int) -> fio.Measured:
    """Overwrite for a while, the first part of it unmeasured: the log fills with garbage."""
    measured = None
    for part in range(3):
        load = fio.Load(
            "randwrite", BLOCK_BYTES, DEPTH, plan.seconds, plan.volume_bytes, seed=10 * seed + part
        )
        measured = fio.run(load, [torus.uri(VOLUME)], plan.work_dir)
    assert measured is not None
    return measured


def _write(
    torus: Torus, plan: Plan, pattern: str, block_bytes: int, total_bytes: int, seed: int
) -> None:
    """Write so many bytes, in loads of the volume's size."""
    depth = DEPTH if block_bytes == BLOCK_BYTES else 8
    for part in range(max(1, total_bytes // plan.volume_bytes)):
        load = fio.Load(
            pattern, block_bytes, depth, 0.0, plan.volume_bytes, seed=100 * seed + part + 1
        )
        fio.run(load, [torus.uri(VOLUME)], plan.work_dir)


def _figures(torus: Torus) -> Figures:
    """Return the space figures of the volume.

    Raises:
        BenchError: It is not attached.
    """
    report = json.loads(torus.run("status", "-o", "json"))
    found = _find(report)
    if found is None:
        raise BenchError(f"'torus status' does not know volume {VOLUME!r}: it is not attached")
    return found


def _find(report: object) -> Figures | None:
    if isinstance(report, dict):
        if "client_bytes" in report and "log_bytes" in report:
            return report
        report = list(report.values())
    if isinstance(report, list):
        for part in report:
            found = _find(part)
            if found is not None:
                return found
    return None


def _utilisation(figures: Figures) -> float:
    return figures["live_bytes"] / (figures["live_bytes"] + figures["dead_bytes"])


def _ratio(before: Figures, after: Figures) -> float:
    return (after["log_bytes"] - before["log_bytes"]) / (
        after["client_bytes"] - before["client_bytes"]
    )
