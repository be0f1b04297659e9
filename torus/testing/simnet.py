"""A network in virtual time: streams that keep their order, and everything else that TCP may do.

Bytes arrive in order or not at all.  What is lost is sent again by the kernel, so loss is delay,
until it is a reset.  A link may be cut in one direction; a machine that loses power says nothing,
and knows nothing of its connections when it is back; a stopped process still has a kernel, which
accepts connections and fills its buffers.  Nothing is duplicated here: that is what a retry does.
"""

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any

from torus.testing.simloop import SimLoop, SimProcess, this_process
from torus.testing.simstream import KERNEL_BYTES, Pipe, SimTransport

_RETRY_S = 0.2  # a segment that found the link cut is sent again after this
_GIVE_UP_S = 20.0  # then the sender's kernel gives up
Factory = Callable[[], asyncio.BaseProtocol]


class Weather:
    """How the network is: all rates are chances for each segment or second."""

    def __init__(self) -> None:
        self.delay_s = 0.0002  # mean, one way
        self.slow = 0.0  # chance of a segment that was lost once or more
        self.slow_s = 0.25
        self.reset = 0.0  # chance of a reset in place of a segment
        self.split = 0.02  # chance that a read gets a part only


class SimServer:
    """What listens at an address."""

    def __init__(self, network: "SimNetwork", address: str, process: SimProcess, make: Factory):
        self.network = network
        self.address = address
        self.process = process
        self.make = make

    def close(self) -> None:
        if self.network.servers.get(self.address) is self:
            del self.network.servers[self.address]

    async def wait_closed(self) -> None:
        return


class SimNetwork:
    """All connections between all processes."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self.loop = loop
        self.rng = rng
        self.weather = Weather()
        self.cuts: set[tuple[str, str]] = set()  # (from, to): machines
        self.dark: set[str] = set()  # machines without power
        self.servers: dict[str, SimServer] = {}
        self.transports: dict[SimProcess, dict[int, SimTransport]] = {}
        self._numbers = itertools.count()
        self.resets = 0

    def cut(self, source: str, target: str) -> None:
        """Let nothing pass in this direction."""
        self.cuts.add((source, target))

    def heal(self) -> None:
        """Let everything pass."""
        self.cuts.clear()

    def is_cut(self, source: SimProcess, target: SimProcess) -> bool:
        """Say whether bytes of one process cannot reach the other."""
        return (source.machine, target.machine) in self.cuts

    # --- connections --------------------------------------------------------------------

    def listen(self, address: str, make: Factory) -> SimServer:
        """Accept connections at ``address`` in the process that asks."""
        process = this_process()
        found = self.servers.get(address)
        if found is not None and found.process.alive:
            raise OSError(98, f"address {address} is in use")
        server = self.servers[address] = SimServer(self, address, process, make)
        return server

    async def connect(self, address: str, make: Factory) -> tuple[SimTransport, Any]:
        """Connect the process that asks to whoever listens at ``address``."""
        process = this_process()
        await asyncio.sleep(self._delay())
        server = self.servers.get(address)
        began_s = self.loop.time()
        while True:
            server = self.servers.get(address)
            if server is None or not server.process.alive:
                if server is not None and server.process.machine in self.dark:
                    await self._wait(began_s)  # nobody there who would refuse
                    continue
                raise ConnectionRefusedError(111, "Connection refused")
            there = server.process
            if not (self.is_cut(process, there) or self.is_cut(there, process)):
                break
            await self._wait(began_s)
        near, far = self._transport(process), self._transport(there)
        near.out = far.into = Pipe(near, far)
        far.out = near.into = Pipe(far, near)
        protocol = make()
        near.protocol = protocol
        there.call_at(self.loop.time(), self._accept, server, far)
        protocol.connection_made(near)
        return near, protocol

    async def _wait(self, began_s: float) -> None:
        if self.loop.time() - began_s > _GIVE_UP_S:
            raise TimeoutError(110, "Connection timed out")
        await asyncio.sleep(_RETRY_S * (0.5 + self.rng.random()))

    def _accept(self, server: SimServer, transport: SimTransport) -> None:
        if not transport.open:
            return
        transport.protocol = protocol = server.make()
        protocol.connection_made(transport)
        transport._read_soon()

    def _transport(self, process: SimProcess) -> SimTransport:
        transport = SimTransport(self, process, next(self._numbers))
        mine = self.transports.get(process)
        if mine is None:
            mine = self.transports[process] = {}
            process.on_kill.append(lambda power: self._on_kill(process, power))
        mine[transport.number] = transport
        return transport

    def forget(self, transport: SimTransport) -> None:
        """Drop an end that nobody uses any more."""
        self.transports.get(transport.process, {}).pop(transport.number, None)

    def _on_kill(self, process: SimProcess, power: bool) -> None:
        for transport in list(self.transports.pop(process, {}).values()):
            transport.die(power=power)
        for address in [a for a, server in self.servers.items() if server.process is process]:
            if not power:
                del self.servers[address]

    def disturb(self, process: SimProcess) -> None:
        """Reset one of a process's connections."""
        mine = list(self.transports.get(process, {}).values())
        if mine:
            victim = self.rng.choice(mine)
            self.reset(victim)
            victim.received_reset()

    # --- bytes --------------------------------------------------------------------------

    def _delay(self) -> float:
        weather = self.weather
        delay_s = self.rng.expovariate(1 / weather.delay_s) + weather.delay_s / 4
        if weather.slow and self.rng.random() < weather.slow:
            delay_s += self.rng.random() * weather.slow_s
        return delay_s

    def send(self, pipe: Pipe) -> None:
        """Let bytes fly as far as the other end has room."""
        if pipe.flying:
            return
        room = KERNEL_BYTES - pipe.receiver.arrived_bytes
        if not (pipe.unsent and room > 0) and not (pipe.ended and not pipe.unsent):
            return
        pipe.flying = 1
        self.loop.call_at(
            self.loop.time() + self._delay(), self._arrive, pipe, context=self.loop.outside.context
        )

    def _arrive(self, pipe: Pipe) -> None:
        now_s = self.loop.time()
        if not pipe.sender.known:
            pipe.flying = 0  # the machine is gone with what it had
            return
        dark = pipe.receiver.process.machine in self.dark
        if dark or self.is_cut(pipe.sender.process, pipe.receiver.process):
            since_s = pipe.cut_since_s = pipe.cut_since_s or now_s
            if now_s - since_s > _GIVE_UP_S:
                pipe.flying = 0
                pipe.sender.received_reset()
                return
            retry_s = now_s + _RETRY_S * (0.5 + self.rng.random())
            self.loop.call_at(retry_s, self._arrive, pipe, context=self.loop.outside.context)
            return
        pipe.cut_since_s = None
        pipe.flying = 0
        if not pipe.receiver.known:
            self._answer_reset(pipe)
            return
        if self.weather.reset and self.rng.random() < self.weather.reset:
            self.resets += 1
            pipe.sender.received_reset()
            pipe.receiver.received_reset()
            return
        self._deliver(pipe)

    def _deliver(self, pipe: Pipe) -> None:
        room = KERNEL_BYTES - pipe.receiver.arrived_bytes
        pieces, size = [], 0
        while pipe.unsent and size < room:
            piece = pipe.unsent.popleft()
            if size + len(piece) > room:
                pipe.unsent.appendleft(piece[room - size :])
                piece = piece[: room - size]
            pieces.append(piece)
            size += len(piece)
        pipe.unsent_bytes -= size
        if pieces:
            pipe.receiver.receive(b"".join(pieces))
            pipe.sender.drained()
        if pipe.ended and not pipe.unsent:
            pipe.ended = False
            pipe.receiver.received_eof()
        else:
            self.send(pipe)

    def _answer_reset(self, pipe: Pipe) -> None:
        """Nobody there knows the connection: say so, if the way back is open."""
        if not self.is_cut(pipe.receiver.process, pipe.sender.process):
            pipe.sender.received_reset()

    def reset(self, transport: SimTransport) -> None:
        """Tell the other end that the connection is gone; arrives when the link lets it."""
        transport.known = False
        self._carry_reset(transport.out)

    def _carry_reset(self, pipe: Pipe) -> None:
        def arrive() -> None:
            if not pipe.receiver.known:
                return
            dark = pipe.sender.process.machine in self.dark
            if not dark and not self.is_cut(pipe.sender.process, pipe.receiver.process):
                pipe.receiver.received_reset()

        self.loop.call_at(
            self.loop.time() + self._delay(), arrive, context=self.loop.outside.context
        )
