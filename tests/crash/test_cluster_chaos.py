"""Real processes of a cluster are killed, stopped and cut off under clients that check.

Nothing that was answered is lost, flushed or not, because no kernel dies here; after a takeover
the image is a prefix; a client sees no error unless its own gateway is gone; and an owner that
lost its volume answers nothing any more.

TORUS_CHAOS_CYCLES and TORUS_CHAOS_ROUNDS set how often, TORUS_CHAOS_FAULTS names the only faults
(of `tests.chaos.FAULTS`, with commas); TORUS_SEED repeats the order of faults.
Without root there are no partitions, only kills and hangs.
"""

import os
import random
import statistics
import sys
import time

import pytest

from tests.chaos import FAULTS, Chaos, chaos_in, lose_gate

pytestmark = [
    pytest.mark.crash, pytest.mark.slow, pytest.mark.interop, pytest.mark.timeout(4 * 3600),
]  # fmt: skip

CYCLES = int(os.environ.get("TORUS_CHAOS_CYCLES", "12"))
ROUNDS = int(os.environ.get("TORUS_CHAOS_ROUNDS", "6"))
ONLY = os.environ.get("TORUS_CHAOS_FAULTS", "").split(",")
VOLUMES = {"three": "replica:3", "two": "replica:2"}


def say(text: str) -> None:
    """Print where a long run is, so that it can be watched."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def summary(chaos: Chaos) -> str:
    """Return what the clients went through."""
    answers = sum(guest.history.answers for guest in chaos.guests.values())
    images = sum(guest.images for guest in chaos.guests.values())
    took = sorted(chaos.takeovers_s) or [0.0]
    return (
        f"{answers} changes answered, {images} images compared, {len(took)} takeovers: "
        f"median {statistics.median(took):.2f} s, longest {took[-1]:.2f} s; "
        f"{chaos.late_answers} late answers to what the next owner had found"
    )


def test_chaos(seed: int) -> None:
    """Cycles of random faults; each ends with every client getting on."""
    rng = random.Random(f"{seed}:chaos")
    chosen = [one for one in FAULTS if ONLY == [""] or one[0].__name__ in ONLY]
    faults = [fault for fault, weight in chosen for _ in range(weight)]
    with chaos_in(rng, VOLUMES) as chaos:
        for cycle in range(CYCLES):
            rng.seed(f"{seed}:{cycle}")
            fault = chosen[cycle][0] if cycle < len(chosen) else rng.choice(faults)
            for guest in chaos.guests.values():
                guest.longest_s = 0.0
            began = time.monotonic()
            try:
                said = fault(chaos)
                chaos.progress()
            except BaseException:
                say(f"cycle {cycle}, {fault.__name__}: failed; {summary(chaos)}")
                raise
            longest = max(guest.longest_s for guest in chaos.guests.values())
            took = time.monotonic() - began
            say(f"cycle {cycle}: {said}; {took:.1f} s, longest request {longest:.2f} s")
        text = summary(chaos)
    say(f"{CYCLES} cycles: {text}; nothing lost")


def test_two_writers(seed: int) -> None:
    """A gateway that is paused or cut off while another takes its volume answers nothing more."""
    rng = random.Random(f"{seed}:two writers")
    with chaos_in(rng, {"two": "replica:2"}) as chaos:
        for number in range(ROUNDS):
            kinds = ["stop"] if chaos.network is None else ["stop", "cut", "cut out"]
            how = kinds[number % len(kinds)]
            old = chaos.owners["two"]
            before = len(chaos.services[old].events("volume.taken_over"))
            said = lose_gate(chaos, how)
            new = chaos.owners["two"]
            pid = chaos.services[new].pid
            while len(found := chaos.services[old].events("volume.taken_over")) <= before:
                chaos.guests["two"].wait_answers(1)
            assert str(pid) in str(found[-1]["owner"]), found[-1]
            say(f"round {number}: {said}, told: {found[-1]['owner']}")
        text = summary(chaos)
    say(f"{ROUNDS} rounds of two writers: {text}; no answer by who had lost the volume")
