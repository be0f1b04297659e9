"""How long a writer waits when a node dies or hangs, and a volume when its gateway is killed.

Three nodes, three copies, two of them enough to go on; so every node that fails is one that is
written to.  Where this process may make network namespaces, every process has a host of its own
and the peer protocol goes over TCP; else all share this one.  The writer has four 4 KiB writes in
flight on random places, through a gateway.

`python -m bench.cases.failover` prints the table; it needs etcd.
"""

import argparse
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.results import Value
from tests.chaos import GATES, SIZE_BYTES, Chaos, chaos_in
from tests.chaos_guest import Replies
from tests.disk_client import DiskClient, RequestFailed
from tests.processes import Service, wait_until
from torus.nbd import constants as nbd

VOLUME = "failover"
NODES = ("n0", "n1", "n2")
DEPTH = 4
BLOCK_BYTES = 4096
WATCH_S = 3.0  # after a fault the longest write is looked for so long
BEFORE_S = 1.0
CALM_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each of them."""

    kills: int = 20
    hangs: int = 20
    takeovers: int = 10
    seed: int = 5


class Writer:
    """Four writes in flight for ever; remembers how long each took and when it ended."""

    def __init__(self, path: Path) -> None:
        self.failure = ""
        self._client = DiskClient(path, VOLUME)
        self._replies = Replies(self._client)
        self._rng = random.Random(11)
        self._began: dict[int, float] = {}
        self._took: deque[tuple[float, float]] = deque(maxlen=200_000)  # ended, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer")
        self._thread.start()

    def _run(self) -> None:
        payload = self._rng.randbytes(BLOCK_BYTES)
        blocks = SIZE_BYTES // BLOCK_BYTES
        try:
            while not self._stop.is_set():
                while len(self._began) < DEPTH:
                    offset = self._rng.randrange(blocks) * BLOCK_BYTES
                    cookie = self._client.send(nbd.NBD_CMD_WRITE, offset, payload=payload)
                    self._began[cookie] = time.monotonic()
                if not self._replies.wait(0.05):
                    continue
                now = time.monotonic()
                for cookie, error, _ in self._replies.take():
                    if error:
                        raise RequestFailed(error)
                    self._took.append((now, now - self._began.pop(cookie)))
        except (OSError, RequestFailed) as exc:
            self.failure = repr(exc)

    def longest_ms(self, since: float, until: float) -> float:
        """Return the longest write that was in flight in that time, in milliseconds."""
        took = [
            took for ended, took in tuple(self._took) if ended >= since and ended - took < until
        ]
        under_way = [until - began for began in tuple(self._began.values()) if began < until]
        return 1000 * max([0.0, *took, *under_way])

    def rate(self, since: float, until: float) -> float:
        """Return writes a second."""
        return sum(since <= ended < until for ended, _ in tuple(self._took)) / (until - since)

    def close(self) -> None:
        """End; whatever is in flight is given up."""
        self._stop.set()
        self._thread.join()
        self._client.close()


def run(plan: Plan, say: Callable[[str], None] = print) -> list[Value]:
    """Return the stalls of a killed and of a hanging node, and takeovers."""
    rng = random.Random(plan.seed)
    values: list[Value] = []
    with chaos_in(rng, {VOLUME: "replica:3"}, NODES, load=False) as chaos:
        gate = GATES[0]
        writer = Writer(chaos.gate_socket(gate))
        try:
            for how, count in (("kill", plan.kills), ("hang", plan.hangs)):
                if count:
                    values.append(_stalls(chaos, writer, how, count, say))
        finally:
            writer.close()
        if plan.takeovers:
            values += _takeovers(chaos, plan.takeovers, say)
    return values


def _stalls(
    chaos: Chaos, writer: Writer, how: str, count: int, say: Callable[[str], None]
) -> Value:
    gateway = chaos.services[GATES[0]]
    stalls, calm, rates = [], [], []
    for number in range(count):
        name = chaos.nodes[number % len(chaos.nodes)]
        _wait_whole(gateway, writer)
        began = time.monotonic()
        threading.Event().wait(BEFORE_S)
        fault = time.monotonic()
        calm.append(writer.longest_ms(began, fault))
        rates.append(writer.rate(began, fault))
        if how == "kill":
            chaos.services[name].process.kill()
        else:
            chaos.stop(name)
        threading.Event().wait(WATCH_S)
        stalls.append(writer.longest_ms(fault, time.monotonic()))
        if writer.failure:
            return Value(f"{how}-stall", "ms", (), error=f"the client saw {writer.failure}")
        if how == "kill":
            chaos.kill(name)
            chaos.restart(name)
        else:
            chaos.resume(name)
        say(f"{how} {name}: {stalls[-1]:.0f} ms; before it {calm[-1]:.0f} ms, {rates[-1]:.0f}/s")
    note = (
        f"longest 4 KiB write of a client with 4 in flight within {WATCH_S:g} s of it; in the "
        f"second before {statistics.median(calm):.0f} (at most {max(calm):.0f}) ms at "
        f"{statistics.median(rates):.0f} writes/s; 99th percentile = {max(stalls):.0f} ms"
    )
    return Value(f"{how}-stall-milliseconds", "ms", tuple(stalls), note)


def _wait_whole(gateway: Service, writer: Writer) -> None:
    """Wait until the open span leaves nobody out, so that the next failure is one."""

    def whole() -> bool:
        begun = gateway.events("volume.span.begun")
        return not writer.failure and (not begun or not begun[-1]["left_out"])

    wait_until(whole, f"a span without losses; {writer.failure}", CALM_S)


def _takeovers(chaos: Chaos, count: int, say: Callable[[str], None]) -> list[Value]:
    by_command: list[float] = []
    by_control: list[float] = []
    gate = GATES[0]
    for number in range(2 * count):
        with DiskClient(chaos.gate_socket(gate), VOLUME) as client:
            for block in range(256):
                client.write(block * BLOCK_BYTES, os.urandom(BLOCK_BYTES))
        other = chaos.other_gate(gate)
        began = time.monotonic()
        chaos.services[gate].process.kill()
        if number % 2:
            chaos.ask_to_take(VOLUME, other)
        else:
            address = f"unix:{chaos.gate_socket(other)}"
            chaos.cluster.machine(other).run("nbd", "move", VOLUME, "--to", address, "--force")
        with DiskClient(chaos.gate_socket(other), VOLUME) as client:
            client.write(0, bytes(BLOCK_BYTES))
            took = time.monotonic() - began
        (by_control if number % 2 else by_command).append(took)
        say(f"takeover {'asked' if number % 2 else 'commanded'}: {took:.2f} s")
        chaos.kill(gate)
        chaos.restart(gate)
        gate = other
    return [
        Value(
            "takeover-seconds", "s", tuple(by_command),
            "kill -9 of the gateway to the first write answered by another host's, which "
            "`torus nbd move --force` told to take it",
        ),
        Value("takeover-asked-seconds", "s", tuple(by_control), "without the command's start"),
    ]  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--hangs", type=int, default=20)
    parser.add_argument("--takeovers", type=int, default=10)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    load = os.getloadavg()[0]
    values = run(Plan(options.kills, options.hangs, options.takeovers))
    print(f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    for value in values:
        if value.error:
            print(f"{value.name}: failed: {value.error}")
            continue
        low, high = min(value.values), max(value.values)
        print(f"{value.name}: {value.median():.3g} {value.unit} ({low:.3g} to {high:.3g})")
        print(f"    {value.note}")


if __name__ == "__main__":
    main()
