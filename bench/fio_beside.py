"""fio that runs for as long as something else does: a mixed load, and one that is read back.

Decides the two loads; `bench.fio` has those that run for a time of their own.
"""

import argparse
import json
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.processes import BenchError

RANKS = (50, 99, 99.9)  # percentiles that are shown
VERIFY_MIB = 32  # written and read back in one run of fio


class Request(NamedTuple):
    """One request that was answered."""

    at_s: float  # when it ended, since 1970
    took_ms: float
    write: bool


class Turn(NamedTuple):
    """Seconds, since 1970, in which data moved, or did not."""

    moving: bool
    from_s: float
    to_s: float


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

    def during(self, work: Callable[[], None]) -> list[Request]:
        """Run the load until the work is done; return every request in the order of their ends.

        Raises: BenchError when fio saw an error.
        """
        self._seed += 1
        path = self._folder / f"fio{self._seed}.json"
        words = [
            *self._words, f"--randseed={self._seed}", "--runtime=86400", f"--output={path}",
            f"--write_lat_log={path.with_suffix('')}", "--log_unix_epoch=1",
        ]  # fmt: skip
        running = subprocess.Popen(words, cwd=self._folder, stdout=subprocess.DEVNULL)
        try:
            work()
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGINT)  # it ends and writes its account
            running.wait()
        account(path.read_text())
        return list(_logged(path.with_name(f"{path.stem}_clat.1.log")))


def _logged(path: Path) -> Iterator[Request]:
    with path.open() as lines:
        for line in lines:
            ended_ms, took_ns, direction, *_ = line.split(",")
            yield Request(int(ended_ms) / 1e3, int(took_ns) / 1e6, int(direction) == 1)


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


def in_turns(requests: Sequence[Request], turns: Sequence[Turn]) -> dict[bool, list[Request]]:
    """Return the requests that ended in turns of each kind."""
    found: dict[bool, list[Request]] = {False: [], True: []}
    for one in requests:
        for turn in turns:
            if turn.from_s < one.at_s < turn.to_s:
                found[turn.moving].append(one)
    return found


def percentile_ms(requests: Sequence[Request], rank: float) -> float:
    """Return a percentile of how long requests took.  Raises: BenchError when there are none."""
    if not requests:
        raise BenchError("no requests in the time that was to be measured")
    took = sorted(one.took_ms for one in requests)
    return took[min(len(took) - 1, int(len(took) * rank / 100))]


def percentiles(requests: Sequence[Request]) -> str:
    """Say how long requests took."""
    shown = []
    for kind in ("read", "write"):
        some = [one for one in requests if one.write == (kind == "write")]
        shown.append(f"{kind} " + "/".join(f"{percentile_ms(some, rank):.2f}" for rank in RANKS))
    return ", ".join(shown) + f" ms (p{'/'.join(f'{one:g}' for one in RANKS)})"


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
