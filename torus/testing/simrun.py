"""One life of a simulated cluster for each seed, and what it showed.

Decides which kind of cluster a seed makes.  The same seed shows the same again, to the last
callback.
"""

import gc
import random
import secrets
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

from torus.errors import TorusError
from torus.testing.simcluster import Cluster
from torus.testing.simloop import Stuck
from torus.testing.simreplicas import LargeCluster, ReplicatedCluster
from torus.testing.simshards import ShardCluster

Make = Callable[..., Cluster]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one life showed."""

    seed: int
    violations: tuple[str, ...]
    takeovers: int
    answers: int
    flushes: int
    faults: int
    turns: int
    virtual_s: float
    trace: tuple[str, ...]


def kind_of(seed: int) -> type[Cluster]:
    """Return which kind of cluster a seed makes."""
    if seed % 2 == 0:
        return ShardCluster
    if seed % 20 == 7:
        return Cluster
    return LargeCluster if seed % 100 == 19 else ReplicatedCluster


def run(
    seed: int, make: Make | None = None, *, tell: Callable[[str], None] | None = None
) -> Outcome:
    """Live the life of one seed; ``tell`` gets each line of its trace."""
    chance = random.Random(f"secrets:{seed}")
    with (
        mock.patch.object(secrets, "randbits", chance.getrandbits),
        mock.patch.object(secrets, "token_hex", lambda count=32: chance.randbytes(count).hex()),
        mock.patch.object(secrets, "token_bytes", lambda count=32: chance.randbytes(count)),
    ):
        # Cycles are collected once, behind the life, and only those that it left: what there was
        # before is frozen, and nothing of the life may be in reach any more.
        gc.disable()
        gc.freeze()
        try:
            return _live(make or kind_of(seed), seed, tell)
        finally:
            _bury()


def _live(make: Make, seed: int, tell: Callable[[str], None] | None) -> Outcome:
    cluster = make(seed, tell=tell)
    try:
        with ExitStack() as patched:
            for owner, name, value in cluster.patches():
                patched.enter_context(mock.patch.object(owner, name, value))
            cluster.loop.run_until_complete(cluster.loop.outside.run(cluster.live()))
    except (Stuck, TorusError) as exc:
        cluster.loop.errors.append(f"the story ended: {exc!r}")
    finally:
        outcome = _outcome(cluster)
        cluster.loop.close()
    return outcome


def _bury() -> None:
    """Collect what processes left that were ended in the middle of something: views of buffers
    that others still hold complain, to nobody's use."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _unraisable: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
        gc.unfreeze()
        gc.enable()


def _outcome(cluster: Cluster) -> Outcome:
    checks = cluster.checks.values()
    violations = [text for check in checks for text in check.violations]
    violations += [f"an error that nobody took: {error}" for error in cluster.loop.errors]
    return Outcome(
        cluster.seed, tuple(violations), sum(check.takeovers for check in checks),
        sum(check.answers for check in checks), sum(check.flushes for check in checks),
        cluster.faults, cluster.loop.turns, cluster.loop.time(), tuple(cluster.lines),
    )  # fmt: skip
