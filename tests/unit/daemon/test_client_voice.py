"""Owners tell nodes how their clients are; disks hear it from the nodes that they pull from."""

import random
from collections.abc import Callable, Coroutine
from typing import Any

from tests.unit.cluster.replicas import let_pass
from torus import limits
from torus._fast.stats import Histogram
from torus.cluster.membership import Place
from torus.cluster.pool import DiskPool
from torus.daemon.client_voice import OwnersVoice, PullersVoice
from torus.errors import TimedOut
from torus.ring.builder import first_ring
from torus.ring.table import RingMember
from torus.testing.membership import StaticMembership
from torus.testing.simloop import SimClock, SimLoop
from torus.upkeep.node import NodeUpkeep

MS = 1_000_000
NAMES = "ab"


class _Peer:
    """A connected disk of a node."""

    def __init__(self, node: NodeUpkeep) -> None:
        self.node = node
        self.hangs = False
        self.questions = 0

    async def report(self, question: bytes) -> bytes:
        self.questions += 1
        if self.hangs:
            await let_pass(3600)
        return await self.node.answer(question)

    async def close(self) -> None:
        pass


class _Net:
    """Two nodes with two disks each, as another process reaches them."""

    def __init__(self, loop: SimLoop) -> None:
        self.clock = SimClock(loop)
        self.nodes = {name: NodeUpkeep(self.clock) for name in NAMES}
        self.peers = {name: _Peer(self.nodes[name]) for name in NAMES}
        disks = [name + number for name in NAMES for number in "12"]
        ring = first_ring([RingMember(disk * 16, disk[0], "", 1) for disk in disks])
        places = [Place(disk * 16, disk[0], "h", "", f"unix:{disk}", "in") for disk in disks]
        self.view = StaticMembership(places, ring)
        self.disks = [disk * 16 for disk in disks]

    async def pool(self, *connected: str) -> DiskPool:
        """Return a pool that is connected with both disks of some nodes."""

        async def connect(place: Place) -> Any:
            return self.peers[place.node_id]

        pool = DiskPool(self.view, {}, connect, self.clock)
        for disk in self.disks:
            if disk[0] in connected:
                await pool.get(disk)
        return pool


def _run(scenario: Callable[[SimLoop], Coroutine[Any, Any, None]]) -> None:
    loop = SimLoop(random.Random(1))
    try:
        loop.run_until_complete(scenario(loop))
    finally:
        loop.close()


def test_owners_are_heard_by_the_nodes_they_use_and_by_who_pulls_from_those() -> None:
    async def scenario(loop: SimLoop) -> None:
        net = _Net(loop)
        times = Histogram()
        voice = OwnersVoice(lambda: [times], await net.pool("a"), net.clock)
        voice.start()
        puller = NodeUpkeep(net.clock)
        share = 0.0
        puller.moving_share = lambda: share  # type: ignore[method-assign]
        pulling = PullersVoice(puller, await net.pool("a", "b"), net.clock)
        pulling.start()

        async def requests(seconds: float, each_ms: int) -> None:
            for _ in range(int(seconds * 10)):
                times.observe(each_ms * MS, 10)
                await let_pass(0.1)

        await requests(10, 2)
        assert net.peers["a"].questions > 10, "one disk of a node is asked, twice a second"
        assert net.peers["b"].questions == 0
        assert net.nodes["a"].clients_hurt() is False
        assert net.nodes["b"].clients_hurt() is None
        assert puller.clients_hurt() is None
        share = 0.5
        await requests(3, 2)
        assert puller.clients_hurt() is False
        assert net.nodes["a"].own_clients.word.share == 0.5
        await requests(2, 6)
        assert net.nodes["a"].clients_hurt() is True
        assert puller.clients_hurt() is True
        assert net.nodes["b"].clients_hurt() is None, "nobody passes on what it did not hear itself"
        await requests(4, 2)
        assert puller.clients_hurt() is False
        asked = net.peers["a"].questions
        share = 0.0
        await let_pass(5)
        assert puller.clients_hurt() is None, "without requests there are no clients"
        before = net.peers["a"].questions
        await let_pass(5)
        assert asked < before + 8
        assert net.peers["a"].questions == before, "and nobody says anything"
        await voice.close()
        await pulling.close()

    _run(scenario)


def test_a_node_that_hangs_or_does_not_know_the_question_holds_nobody_up() -> None:
    async def scenario(loop: SimLoop) -> None:
        net = _Net(loop)
        net.peers["a"].hangs = True
        times = Histogram()
        voice = OwnersVoice(lambda: [times], await net.pool("a", "b"), net.clock)
        voice.start()
        for _ in range(100):
            times.observe(2 * MS, 10)
            await let_pass(0.1)
        assert net.nodes["b"].clients_hurt() is False

        async def refuse(question: bytes) -> bytes:
            raise TimedOut("no")

        net.peers["b"].report = refuse  # type: ignore[method-assign]
        for _ in range(50):
            times.observe(2 * MS, 10)
            await let_pass(0.1)
        assert net.nodes["b"].clients_hurt() is None
        await voice.close()

    _run(scenario)


def test_an_owner_in_a_node_is_heard_by_the_disks_of_that_node() -> None:
    async def scenario(loop: SimLoop) -> None:
        net = _Net(loop)
        times, own = Histogram(), NodeUpkeep(net.clock)
        voice = OwnersVoice(lambda: [times], await net.pool(), net.clock, own)
        voice.start()
        for _ in range(50):
            times.observe(2 * MS, 10)
            await let_pass(0.1)
        assert own.clients_hurt() is False
        for _ in range(20):
            times.observe(2 * MS, limits.CLIENT_REQUESTS_MIN // 20)
            await let_pass(0.1)
        await let_pass(3)
        assert own.clients_hurt() is None, "hardly any requests say nothing"
        await voice.close()

    _run(scenario)
