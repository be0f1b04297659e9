"""Run one load with fio's nbd engine and read what it measured.

Decides how a row becomes fio options.  The final flush of a sequential write is
``end_fsync=1``; that fio's nbd engine sends NBD_CMD_FLUSH for it, and for ``fsync=1``, was
seen with ``nbdkit --filter=log``; that fio's runtime contains the final flush was
seen with a server whose flush sleeps.  Run times are given in milliseconds, because fio reads
"0.3s" as none at all.
"""

import json
import resource
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError

DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients do; ``seconds`` of 0 means: once over the whole volume."""

    pattern: str  # fio's --rw
    block_bytes: int
    depth: int
    seconds: float
    size_bytes: int
    flush_each: bool = False
    flush_at_end: bool = False
    seed: int = 1
    total_bytes: int = 0  # what is written or read; 0: the size


@dataclass(frozen=True, slots=True)
class Measured:
    """What all clients of one load did together."""

    operations: int
    operations_per_s: float
    bytes_per_s: float
    latency_us_p50: float
    latency_us_p99: float
    client_cpu_s: float


def run(load: Load, uris: Sequence[str], work_dir: Path) -> Measured:
    """Put ``load`` on every URI at the same time, one connection each.

    Raises:
        BenchError: fio failed or the server answered an error.
    """
    job_path = work_dir / "load.fio"
    output_path = work_dir / "fio.json"
    output_path.unlink(missing_ok=True)
    job_path.write_text(_job_file(load, uris))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        finished = subprocess.run(
            ["fio", "--output-format=json", f"--output={output_path}", str(job_path)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S + load.seconds,
            check=False,
            cwd=work_dir,
        )
    except subprocess.TimeoutExpired as exc:
        raise BenchError(f"fio did not end within {DEADLINE_S + load.seconds:.0f} s") from exc
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    text = output_path.read_text() if output_path.exists() else ""
    jobs = json.loads(text[text.index("{") :])["jobs"] if "{" in text else []
    failed = [job["error"] for job in jobs if job["error"]]
    if finished.returncode != 0 or failed or len(jobs) != len(uris):
        said = " | ".join((finished.stderr.strip() or text.strip()).splitlines()[-3:])
        raise BenchError(f"fio ended with status {finished.returncode}, errors {failed}: {said}")
    return _summary(load, jobs, cpu_s)


def _job_file(load: Load, uris: Sequence[str]) -> str:
    lines = [
        "[global]",
        "ioengine=nbd",
        "thread=1",
        f"rw={load.pattern}",
        f"bs={load.block_bytes}",
        f"iodepth={load.depth}",
        f"size={load.size_bytes}",
        "randrepeat=0",  # else fio ignores the seed: every load has the same offsets
        f"randseed={load.seed}",
        "norandommap=1",
    ]
    if load.total_bytes:
        lines.append(f"io_size={load.total_bytes}")
    if load.seconds:
        lines += ["time_based=1", f"runtime={round(load.seconds * 1000)}ms"]
    if load.flush_each:
        lines.append("fsync=1")
    if load.flush_at_end:
        lines.append("end_fsync=1")
    for index, uri in enumerate(uris):
        lines += [f"[client{index}]", f"uri={uri}"]
    return "\n".join(lines) + "\n"


def _summary(load: Load, jobs: Sequence[dict[str, object]], cpu_s: float) -> Measured:
    kind = "read" if "read" in load.pattern else "write"
    operations = 0
    rate = 0.0
    p50: list[float] = []
    p99: list[float] = []
    for job in jobs:
        side = job[kind]
        assert isinstance(side, dict)
        operations += side["total_ios"]
        rate += side["total_ios"] * 1000.0 / max(side["runtime"], 1)
        percentiles = side["clat_ns"].get("percentile", {})
        p50.append(percentiles.get("50.000000", 0) / 1000.0)
        p99.append(percentiles.get("99.000000", 0) / 1000.0)
    return Measured(
        operations=operations,
        operations_per_s=rate,
        bytes_per_s=rate * load.block_bytes,
        latency_us_p50=sorted(p50)[len(p50) // 2],
        latency_us_p99=max(p99),
        client_cpu_s=cpu_s,
    )
