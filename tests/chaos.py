"""A cluster of real processes in which things fail: what can be done to it, and its guests.

Decides how each fault is made and undone, and which owner takes a volume when its own is gone.
Which faults happen when is a test's.
"""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.block_history import Violation
from tests.chaos_guest import Guest
from tests.clusters import Cluster, ClusterMachine
from tests.disk_client import DiskClient
from tests.etcd_members import EtcdCluster, running
from tests.networks import CENTRE, Network, can_make_networks, network_of
from tests.processes import Service
from torus.errors import TorusError
from torus.node.control_task import run_task

NODES = ("n0", "n1", "n2", "n3", "n4")
GATES = ("g0", "g1")
MEMBERS = 3
SIZE_BYTES = 8 << 20
TAKE_S = 60.0
BACK_S = 4.0
UNAVAILABLE = 69  # the exit code of who cannot reach the metadata store
NODE_OPTIONS = ("--trash-grace", "2s")
GATE_OPTIONS = ("--checkpoint-interval", "5s", "--standby")


class PlacedMachine(ClusterMachine):
    """A machine with a network of its own, where that is possible."""

    def __init__(self, folder: Path, meta_url: str, entrance: list[str]) -> None:
        super().__init__(folder, meta_url)
        self._entrance = entrance

    def command(self, *words: str | Path) -> list[str]:
        """Return the command line of `torus WORDS` on this machine."""
        return [*self._entrance, *super().command(*words)]


class PlacedCluster(Cluster):
    """Machines on a network, if there is one."""

    network: Network | None = None

    def machine(self, name: str) -> ClusterMachine:
        """Return a machine; made at the first call."""
        if name not in self.machines:
            known = self.network is not None and name in self.network.addresses
            entrance = self.network.enter(name) if self.network is not None and known else []
            self.machines[name] = PlacedMachine(self.folder / name, self.url, entrance)
        return self.machines[name]


@dataclass
class Chaos:
    """The cluster, its volumes' clients, and the faults that are there now."""

    cluster: PlacedCluster
    network: Network | None
    rng: random.Random
    nodes: tuple[str, ...] = NODES
    guests: dict[str, Guest] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)  # volume: machine
    services: dict[str, Service] = field(default_factory=dict)  # machine: its process
    takeovers_s: list[float] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    late_answers: int = 0  # to changes that the next owner had found, by the one before

    @property
    def etcd(self) -> EtcdCluster:
        """The metadata store."""
        return self.cluster.etcd

    # --- processes ----------------------------------------------------------------------

    def gate_socket(self, name: str) -> Path:
        """Return where a gateway's clients connect."""
        return self.cluster.machine(name).folder / "g.sock"

    def start_nodes(self, *names: str) -> None:
        """Start nodes, without waiting for them."""
        for name in names:
            machine = self.cluster.machine(name)
            self.services[name] = machine.node(*NODE_OPTIONS, size="1GiB", ready=False)

    def start_gate(self, name: str) -> None:
        """Start a gateway that can serve every volume, without waiting for it."""
        machine = self.cluster.machine(name)
        self.services[name] = machine.gateway(
            *self.guests, "--socket", self.gate_socket(name), *GATE_OPTIONS, ready=False
        )

    def ready(self, *names: str) -> None:
        """Wait until these are up; who found no metadata store is started again, as by systemd."""
        for name in names:
            while True:
                try:
                    self.services[name].wait_for("gateway.ready" if name in GATES else "node.ready")
                    break
                except AssertionError:
                    if self.services[name].process.poll() != UNAVAILABLE:
                        raise
                self.start_gate(name) if name in GATES else self.start_nodes(name)

    def kill(self, *names: str) -> None:
        """kill -9."""
        for name in names:
            self.services[name].process.kill()
        for name in names:
            self.services[name].kill()
            self.stopped.discard(name)

    def restart(self, *names: str) -> None:
        """Start again what was killed, and wait until it is up."""
        self.start_nodes(*(name for name in names if name in NODES))
        for name in names:
            if name in GATES:
                self.start_gate(name)
        self.ready(*names)

    def stop(self, name: str) -> None:
        """SIGSTOP: it hangs, and keeps its connections."""
        self.services[name].signal(signal.SIGSTOP)
        self.stopped.add(name)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        if name in self.stopped:
            self.services[name].signal(signal.SIGCONT)
            self.stopped.discard(name)

    # --- owners -------------------------------------------------------------------------

    def take(self, volume: str, gate: str) -> float:
        """Have a gateway take a volume from whoever has it, and its client go on there.

        Returns the seconds from now to the first change that was answered there.
        """
        guest = self.guests[volume]
        guest.expect_loss()
        began = time.monotonic()
        self.ask_to_take(volume, gate)
        guest.go_on_at(self.gate_socket(gate))
        self.owners[volume] = gate
        guest.wait_answers(1)
        assert guest.first_answer is not None
        self.takeovers_s.append(guest.first_answer - began)
        return self.takeovers_s[-1]

    def ask_to_take(self, volume: str, gate: str) -> None:
        """Have a gateway take a volume by force, again and again while that cannot be done."""
        (ready,) = self.services[gate].events("gateway.ready")
        deadline = time.monotonic() + TAKE_S
        while True:
            try:
                run_task(str(ready["control"]), "take", volume, {"force": True})
                return
            except TorusError as exc:
                if time.monotonic() > deadline:
                    raise Violation(f"{volume} could not be taken by {gate}: {exc}") from exc

    def other_gate(self, gate: str) -> str:
        """Return the gateway that is not this one."""
        return GATES[1 - GATES.index(gate)]

    def progress(self, count: int = 40) -> None:
        """Wait until every client got on."""
        for guest in self.guests.values():
            guest.wait_answers(count)

    # --- begin and end ------------------------------------------------------------------

    def begin(self, volumes: dict[str, str], *, load: bool) -> None:
        """Start everything; ``volumes``: redundancy by name."""
        self.start_nodes(*self.nodes)
        self.ready(*self.nodes)
        self.cluster.wait_ring(set(self.cluster.disks()))
        for name, redundancy in volumes.items():
            size = str(SIZE_BYTES)
            self.cluster.any.run("volume", "create", name, size, "--redundancy", redundancy)
            rng = random.Random(f"{self.rng.random()}:{name}")
            self.guests[name] = Guest(name, SIZE_BYTES, rng, self.gate_socket(GATES[0]))
            self.owners[name] = GATES[0]
        for gate in GATES:
            self.start_gate(gate)
        self.ready(*GATES)
        if not load:
            return
        for guest in self.guests.values():
            guest.start()
        self.progress(10)

    def end(self) -> None:
        """Every client ends in order, and nobody's log has a traceback."""
        for guest in self.guests.values():
            if guest.started:
                guest.stop()
        for machine in self.cluster.machines.values():
            for service in machine.services:
                text = service.text
                lines = [line for line in text.splitlines() if "raceback" in line]
                assert not lines, f"{service.log}: {lines}"

    def undo(self) -> None:
        """Let everything run that was stopped, so that it can be ended."""
        for name in tuple(self.stopped):
            with contextlib.suppress(ProcessLookupError):
                self.resume(name)
        for guest in self.guests.values():
            if guest.started:
                guest.abandon()


@contextlib.contextmanager
def chaos_in(
    rng: random.Random,
    volumes: dict[str, str],
    nodes: tuple[str, ...] = NODES,
    *,
    load: bool = True,
) -> Iterator[Chaos]:
    """Give a running cluster with a client on each volume, unless it is without ``load``."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="tc-", dir=memory if memory.is_dir() else None))
    with contextlib.ExitStack() as stack:
        network = None
        if can_make_networks():
            network = stack.enter_context(network_of((*nodes, *GATES), inner=MEMBERS))
        etcd = stack.enter_context(running(MEMBERS, network.inner if network else ()))
        cluster = PlacedCluster(folder, etcd, "chaos")
        cluster.network = network
        stack.callback(cluster.close)
        chaos = Chaos(cluster, network, rng, nodes)
        stack.callback(chaos.undo)
        try:
            chaos.begin(volumes, load=load)
            yield chaos
            chaos.end()
        except BaseException:
            kept = Path(tempfile.gettempdir()) / f"torus-chaos-{folder.name}"
            _keep_logs(folder, kept)
            with contextlib.suppress(AssertionError, OSError, subprocess.TimeoutExpired):
                said = (cluster.node_list(), cluster.any.status())
                (kept / "said.json").write_text(json.dumps(said, indent=1))
            print(f"logs: {kept}", file=sys.stderr)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _keep_logs(folder: Path, kept: Path) -> None:
    kept.mkdir(exist_ok=True)
    for log in folder.glob("*/*.log"):
        shutil.copy(log, kept / f"{log.parent.name}.{log.name}")


# --- faults -----------------------------------------------------------------------------

Fault = Callable[[Chaos], str]
"""Makes a fault, lets the clients go on, undoes it; returns what it was."""


def _dwell(chaos: Chaos, longest_s: float) -> None:
    """Let time pass while the fault is there: the clients may be waiting for its end."""
    until = time.monotonic() + chaos.rng.uniform(0.1, longest_s)
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
        for guest in chaos.guests.values():
            guest.check()


def kill_node(chaos: Chaos) -> str:
    """One node is killed, and started again at once or a while later."""
    name = chaos.rng.choice(chaos.nodes)
    chaos.kill(name)
    if chaos.rng.random() < 0.6:
        chaos.progress(20)
    chaos.restart(name)
    return f"kill node {name}"


def hang_node(chaos: Chaos) -> str:
    """One node hangs for a moment, or for longer than the others wait."""
    name = chaos.rng.choice(chaos.nodes)
    chaos.stop(name)
    _dwell(chaos, chaos.rng.choice((0.3, 3.0)))
    if chaos.rng.random() < 0.5:
        chaos.progress(20)
    chaos.resume(name)
    return f"hang node {name}"


def cut_node(chaos: Chaos) -> str:
    """The network of a node is gone, in both directions or in one, to all or to a gateway."""
    if chaos.network is None:
        return hang_node(chaos)
    name = chaos.rng.choice(chaos.nodes)
    gate = chaos.rng.choice(GATES)
    how = chaos.rng.choice(("all", "out", "in", "gate", "to gate", "from gate", "etcd"))
    others = [one for one in (*chaos.nodes, *GATES, CENTRE) if one != name]
    match how:
        case "all":
            chaos.network.isolate(name)
        case "out":
            for other in others:
                chaos.network.cut(name, other)
        case "in":
            for other in others:
                chaos.network.cut(other, name)
        case "gate" | "to gate" | "from gate":
            if how != "from gate":
                chaos.network.cut(name, gate)
            if how != "to gate":
                chaos.network.cut(gate, name)
        case _:
            chaos.network.cut(name, CENTRE)
            chaos.network.cut(CENTRE, name)
    _dwell(chaos, 2.0)
    if chaos.rng.random() < 0.5:
        chaos.progress(20)
    chaos.network.heal()
    return f"cut node {name}: {how} ({gate})"


def kill_gate(chaos: Chaos) -> str:
    """The gateway of a volume is killed and the other one takes what it had."""
    gate = chaos.rng.choice(list(chaos.owners.values()))
    for volume, owner in chaos.owners.items():
        if owner == gate:
            chaos.guests[volume].expect_loss()
    chaos.kill(gate)
    for volume, owner in tuple(chaos.owners.items()):
        if owner == gate:
            chaos.take(volume, chaos.other_gate(gate))
    chaos.restart(gate)
    return f"kill gateway {gate}"


def lose_gate(chaos: Chaos, how: str = "") -> str:
    """A gateway hangs or is cut off, another takes its volume; then it is there again."""
    volume = chaos.rng.choice(list(chaos.owners))
    gate = chaos.owners[volume]
    kinds = ("stop", "cut", "cut out", "cut from nodes") if chaos.network else ("stop",)
    idle = DiskClient(chaos.gate_socket(gate), volume)  # asks for nothing, and must be told too
    how = how or chaos.rng.choice(kinds)
    if how == "stop":
        chaos.stop(gate)
    elif chaos.network is not None:
        _cut_gate(chaos, chaos.network, gate, how)
    if chaos.rng.random() < 0.5:
        _dwell(chaos, 1.0)
    chaos.take(volume, chaos.other_gate(gate))
    ghost = chaos.guests[volume].ghost
    if ghost is not None:
        ghost.provoke()
    chaos.guests[volume].wait_answers(20)
    chaos.resume(gate)
    if chaos.network is not None:
        chaos.network.heal()
    try:
        if not idle.is_closed():
            raise Violation(f"gateway {gate}, which lost {volume}, answers who asked nothing")
    except TimeoutError as exc:
        raise Violation(f"gateway {gate}, which lost {volume}, keeps an idle client") from exc
    finally:
        idle.close()
    if ghost is not None:
        ghost.end()
        chaos.late_answers += ghost.late
        chaos.guests[volume].ghost = None
    return f"lose gateway {gate} of {volume}: {how}"


def _cut_gate(chaos: Chaos, network: Network, gate: str, how: str) -> None:
    if how == "cut":
        network.isolate(gate)
        return
    for node in chaos.nodes:
        network.cut(gate, node)
        if how == "cut from nodes":
            network.cut(node, gate)
    if how == "cut out":
        network.cut(gate, CENTRE)


def lose_member(chaos: Chaos) -> str:
    """A member of the metadata store is killed, hangs or is cut off; or all are gone."""
    how = chaos.rng.choice(("kill", "pause", "cut", "all"))
    member = chaos.rng.choice(chaos.etcd.members)
    match how:
        case "kill":
            member.kill()
            _dwell(chaos, 1.5)
            member.start()
        case "pause":
            member.pause()
            _dwell(chaos, 1.5)
            member.resume()
        case "cut":
            chaos.etcd.partition(member)
            _dwell(chaos, 1.5)
            chaos.etcd.heal()
        case _:
            for one in chaos.etcd.members:
                one.kill()
            _dwell(chaos, 2.0)
            for one in chaos.etcd.members:
                one.start()
    chaos.etcd.wait(lambda: chaos.etcd.leader() is not None, "a leader")
    return f"{how} member {member.name}"


def lose_power(chaos: Chaos) -> str:
    """All nodes are killed at once, sometimes the gateways and etcd with them."""
    with_gates = chaos.rng.random() < 0.5
    if with_gates:
        for guest in chaos.guests.values():
            guest.expect_loss()
        chaos.kill(*chaos.nodes, *GATES)
        for member in chaos.etcd.members:
            member.kill()
        for member in chaos.etcd.members:
            member.start()
    else:
        chaos.kill(*chaos.nodes)
    chaos.restart(*chaos.nodes, *(GATES if with_gates else ()))
    if with_gates:
        for volume in chaos.guests:
            chaos.take(volume, chaos.rng.choice(GATES))
    return "kill everything" if with_gates else "kill all nodes"


def two_at_once(chaos: Chaos) -> str:
    """A node is gone or hangs while a volume changes hands; it is back after some seconds, as it
    may have the only whole copy of what was written when another node failed."""
    name = chaos.rng.choice(chaos.nodes)
    killed = chaos.rng.random() < 0.5
    if killed:
        chaos.kill(name)
    else:
        chaos.stop(name)
    with _back_later(lambda: chaos.start_nodes(name) if killed else chaos.resume(name)):
        said = chaos.rng.choice((kill_gate, lose_gate))(chaos)
    chaos.ready(name)
    return f"{'kill' if killed else 'hang'} node {name}, and {said}"


@contextlib.contextmanager
def _back_later(back: Callable[[], None]) -> Iterator[None]:
    """Have something back at the end of a block, or when it takes long."""
    lock = threading.Lock()
    done: list[bool] = []

    def once() -> None:
        with lock:
            if not done:
                done.append(True)
                back()

    later = threading.Timer(BACK_S, once)
    later.start()
    try:
        yield
    finally:
        later.cancel()
        once()
        later.join()


def hang_in_turn(chaos: Chaos) -> str:
    """One node hangs, then another instead of it, while a volume changes hands: who was away
    must not be believed about what was written meanwhile."""
    first, second = chaos.rng.sample(chaos.nodes, 2)
    chaos.stop(first)
    if chaos.rng.random() < 0.7:
        chaos.progress(20)
    chaos.stop(second)
    volume = chaos.rng.choice(list(chaos.owners))
    gate = chaos.owners[volume]
    for other, owner in chaos.owners.items():
        if owner == gate:
            chaos.guests[other].expect_loss()
    chaos.kill(gate)
    chaos.resume(first)
    with _back_later(lambda: chaos.resume(second)):
        for other, owner in tuple(chaos.owners.items()):
            if owner == gate:
                chaos.take(other, chaos.other_gate(gate))
    chaos.restart(gate)
    return f"hang nodes {first}, {second} in turn, and kill gateway {gate}"


FAULTS: tuple[tuple[Fault, int], ...] = (
    (kill_node, 4), (hang_node, 3), (cut_node, 4), (kill_gate, 3), (lose_gate, 4),
    (lose_member, 2), (lose_power, 2), (two_at_once, 3), (hang_in_turn, 3),
)  # fmt: skip


def events_of(service: Service, name: str) -> list[dict[str, object]]:
    """Return the events of a log, also while it is being written to."""
    found = []
    for line in service.text.splitlines():
        if f'"{name}"' in line:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
