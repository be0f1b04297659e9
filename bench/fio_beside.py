"""fio that runs for as long as something else does: a mixed load, and one that is read back.

Decides the two loads; `bench.fio` has those that run for a time of their own.
"""

import argparse
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.processes import BenchError

RANKS = (50, 99, 99.9)  # percentiles that are shown
VERIFY_MIB = 32  # written and read back in one run of fio


class Client:
    """fio with 4 KiB reads and writes at random places, half and half."""

    def __init__(self, uri: str, folder: Path, options: argparse.Namespace) -> None:
        self._folder, self._seed = folder, 0
        self._words = [
            "fio", "--name=client", "--ioengine=nbd", f"--uri={uri}", "--thread=1", "--rw=randrw",
            "--bs=4k", f"--iodepth={options.depth}", f"--size={options.volume_mib}m",
            "--randrepeat=0", "--norandommap=1", "--time_based=1", "--output-format=json",
        ]  # fmt: skip
        if options.rate:
            half = max(1, options.rate // 2)
            self._words += [f"--rate_iops={half},{half}", "--rate_process=poisson"]

    def during(self, work: Callable[[], None]) -> dict[str, Any]:
        """Run the load until the work is done; return fio's account of it.

        Raises: BenchError when fio saw an error.
        """
        self._seed += 1
        path = self._folder / f"fio{self._seed}.json"
        words = [*self._words, f"--randseed={self._seed}", "--runtime=86400", f"--output={path}"]
        running = subprocess.Popen(words, cwd=self._folder, stdout=subprocess.DEVNULL)
        try:
            work()
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGINT)  # it ends and writes its account
            running.wait()
        return account(path.read_text())


def account(text: str) -> dict[str, Any]:
    """Return the only job of fio's output.

    Raises: BenchError when there is none, or it saw an error.
    """
    if "{" not in text:
        raise BenchError(f"fio said nothing but {text.strip()[-500:]!r}")
    [job] = json.loads(text[text.index("{") :])["jobs"]
    if job["error"]:
        raise BenchError(f"fio saw error {job['error']}")
    return dict(job)


def percentile_ms(job: dict[str, Any], kind: str, name: str = "99.000000") -> float:
    """Return a percentile of the latency of "read" or "write", in milliseconds."""
    return float(job[kind]["clat_ns"]["percentile"][name]) / 1e6


def operations(job: dict[str, Any]) -> int:
    """Return how many requests there were."""
    return int(job["read"]["total_ios"] + job["write"]["total_ios"])


def percentiles(job: dict[str, Any]) -> str:
    """Say how long the requests took."""
    return ", ".join(
        f"{kind} " + "/".join(f"{percentile_ms(job, kind, f'{one:.6f}'):.2f}" for one in RANKS)
        for kind in ("read", "write")
    ) + f" ms (p{'/'.join(f'{one:g}' for one in RANKS)})"  # fmt: skip


def write_and_read_back(uri: str, folder: Path, options: argparse.Namespace, seed: int) -> None:
    """Let fio write somewhere at random and compare.  Raises: BenchError."""
    words = [
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k",
        f"--iodepth={options.depth}", f"--size={options.volume_mib}m",
        f"--io_size={VERIFY_MIB}m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
        f"--randseed={seed}", "--randrepeat=0", "--output-format=json",
    ]  # fmt: skip
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"fio ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    account(done.stdout)
