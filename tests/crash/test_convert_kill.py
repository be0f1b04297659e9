"""Nodes are killed with -9, again and again, while volumes are converted to shards and back.

One volume is written all the time, through a gateway that lives; the other lies still.  Nothing
that was answered is lost, no read is wrong, and at the end every part lies as the redundancy
wants it.  Some conversions are interrupted by the next one.

TORUS_CONVERT_ROUNDS sets how many conversions; TORUS_SEED repeats their order, and the kills'.
"""

import contextlib
import os
import random
import subprocess
import sys
import time

import pytest

from tests.chaos import NODES, Chaos, chaos_in
from tests.processes import wait_until
from torus.redundancy.scheme import parse

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(3600)]

ROUNDS = int(os.environ.get("TORUS_CONVERT_ROUNDS", "4"))
KINDS = ("erasure:2+1", "replica:2", "erasure:2+2", "replica:3")
MIB = 1 << 20
STILL_MIB = 40
_LONG_S = 180.0


def say(text: str) -> None:
    """Print where a long run is, so that it can be watched."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def content(index: int) -> bytes:
    """Return a MiB of the volume that lies still."""
    return random.Random(f"still:{index}").randbytes(MIB)


def fill(chaos: Chaos) -> None:
    """Write the volume that lies still, and let it go."""
    machine = chaos.cluster.machine("n0")
    machine.run("volume", "create", "still", "64MiB", "--redundancy", "replica:2")
    with machine.open("still") as client:
        for index in range(STILL_MIB):
            client.write(index * MIB, content(index))
        client.flush()


def check_still(chaos: Chaos, name: str) -> None:
    """Compare it whole, through any node."""
    with chaos.cluster.machine(name).open("still") as client:
        for index in range(STILL_MIB):
            assert client.read(index * MIB, MIB) == content(index), f"MiB {index} by node {name}"


def convert(chaos: Chaos, volume: str, redundancy: str) -> "subprocess.Popen[str]":
    """Begin to convert a volume; the process ends when all disks are done."""
    machine = chaos.cluster.any
    return subprocess.Popen(
        machine.command("volume", "convert", volume, "--redundancy", redundancy, "--wait"),
        env=machine.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def interrupted(running: "subprocess.Popen[str]") -> None:
    """Let a conversion go on without anybody who waits for it; nothing where it is over."""
    if running.poll() is None:
        running.kill()
        running.communicate()


def done(running: "subprocess.Popen[str]") -> None:
    """Wait for the end of a conversion."""
    said, _ = running.communicate(timeout=_LONG_S)
    assert running.returncode == 0, said


def kill_some(chaos: Chaos) -> str:
    """Kill one or two nodes a random while into what goes on, and start them again."""
    names = chaos.rng.sample(chaos.nodes, chaos.rng.choice((1, 1, 2)))
    until = time.monotonic() + chaos.rng.uniform(0.0, 1.2)
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.02))
        chaos.guests["hot"].check()
    chaos.kill(*names)
    if len(names) == 1 and chaos.rng.random() < 0.5:
        chaos.progress(10)
    chaos.restart(*names)
    return "+".join(names)


def wait_parts(chaos: Chaos, redundancy: str) -> None:
    """Wait until the disks have of the volume that lies still what they should, and nothing else.

    It was attached again before, so that no owner that was killed keeps a span open.
    """
    scheme = parse(redundancy)
    words = ("volume", "info", "still", "--parts", "-o", "json")

    def look() -> bool:
        found = chaos.cluster.any.run(*words).document["parts"]
        chunks = found["chunks"]
        assert chunks >= STILL_MIB // 4
        expected = (0, chunks * scheme.shards) if scheme.erasure else (chunks * scheme.copies, 0)
        return bool((found["copies"], found["shards"]) == expected)

    wait_until(look, f"all parts are those of {redundancy}", _LONG_S)


def test_nodes_killed_while_volumes_are_converted(seed: int) -> None:
    """To shards and back, each step of it interrupted by kills at random moments; half of the
    conversions are not over when the next one begins."""
    rng = random.Random(f"{seed}:convert")
    with chaos_in(rng, {"hot": "replica:2"}, NODES[:4]) as chaos:
        fill(chaos)
        for number in range(ROUNDS):
            rng.seed(f"{seed}:convert:{number}")
            kind = KINDS[number % len(KINDS)]
            with contextlib.ExitStack() as stack:
                running = [convert(chaos, volume, kind) for volume in ("hot", "still")]
                for one in running:
                    stack.callback(interrupted, one)
                kills = [kill_some(chaos) for _ in range(rng.randrange(2, 4))]
                chaos.progress()
                waits = number in (0, ROUNDS - 1) or rng.random() < 0.5
                for one in running if waits else ():
                    done(one)
            check_still(chaos, rng.choice(chaos.nodes))
            if waits:
                wait_parts(chaos, kind)
            say(f"round {number}: {kind}, killed {', '.join(kills)}{', done' if waits else ''}")
        chaos.progress()
        answers = chaos.guests["hot"].history.answers
    say(f"{ROUNDS} conversions under {answers} answered changes: nothing lost")
