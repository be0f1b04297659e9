"""Moving a volume from a command: which process is meant, and what becomes of it if that dies.

Decides what names a target (an NBD address, a pid, a host, the word `node`) and who is asked to
take the volume back when the target ends in the middle.  What the two owners do is
`torus.daemon.handover`'s.  Free of asyncio, so that the command starts quickly.

Implements docs/operations.md, "Moving a volume".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torus.daemon.owners import living_owner
from torus.errors import Busy, Interrupted, NotFound, TimedOut, TorusError, Unavailable, UsageError
from torus.metadata.base import MetadataStore
from torus.metadata.keys import GATEWAYS, NODES
from torus.metadata.schema import Gateway, Node, Owner
from torus.node.control import control_path
from torus.node.control_task import run_task
from torus.volume.catalog import Catalog
from torus.volume.catalog_ask import describe
from torus.volume.owner import is_alive, same_process

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A process that can become a volume's owner."""

    role: str  # "node" or "gateway"
    host: str
    pid: int
    addresses: tuple[str, ...]
    control: str  # the path of its control socket; empty: it has none
    alive: bool | None  # None: on another host

    def __str__(self) -> str:
        where = ", ".join(self.addresses) or "no address"
        return f"{self.role} pid {self.pid} on {self.host} ({where})"


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of a move."""

    target: Target
    moved: bool  # False: it was there already
    source: str  # who had it, for people; empty: nobody
    forced: bool
    clients: int  # connections that were closed
    pause_ms: int  # in which no request was served
    prepare_ms: int  # of checkpoints before that, while clients went on
    total_ms: int


def targets(store: MetadataStore) -> list[Target]:
    """Return the processes that are registered and not known to be dead."""
    found = []
    for entry in store.list(NODES).entries:
        node = Node.from_bytes(entry.value, entry.key)
        control = control_path(node) if node.peer_address.startswith("unix:") else ""
        found.append(
            Target("node", node.host, node.pid, node.nbd_addresses, control, is_alive(node))
        )
    for entry in store.list(GATEWAYS).entries:
        gateway = Gateway.from_bytes(entry.value, entry.key)
        found.append(
            Target(
                "gateway", gateway.host, gateway.pid, gateway.nbd_addresses, gateway.control,
                is_alive(gateway),
            )
        )  # fmt: skip
    return [target for target in found if target.alive is not False]


def find_target(known: Sequence[Target], wanted: str) -> Target:
    """Return the process that ``wanted`` names.

    Raises: NotFound when none does, UsageError when several do; both list the processes.
    """
    address = wanted.removeprefix("nbd://").rstrip("/")
    meant = [
        target
        for target in known
        if wanted in (target.role, str(target.pid), target.host)
        or address in target.addresses
        or f"unix:{address}" in target.addresses
    ]
    if len(meant) == 1:
        return meant[0]
    listed = "; ".join(map(str, meant or known)) or "none"
    if meant:
        raise UsageError(
            f"{wanted!r} may be any of: {listed}", hint="name one by its NBD address or its pid"
        )
    raise NotFound(
        f"no process is known as {wanted!r}; those that can take a volume: {listed}",
        hint="start one there: torus nbd serve NAME --standby",
    )


def move(
    catalog: Catalog,
    target: Target,
    name: str,
    report: Report | None = None,
    *,
    force: bool = False,
) -> Moved:
    """Make ``target`` the volume's owner.

    Raises: NotFound, Busy, Unavailable, Interrupted; the message says who has it then.
    """
    found = catalog.get(name)
    if target.alive is None or not target.control:
        raise Busy(f"{target} cannot be asked from here", hint=f"repeat this on {target.host}")
    before = found.head.owner if force else living_owner(found)
    try:
        answer = run_task(
            target.control, "take", name, {"force": force}, report, cancel=False
        )  # fmt: skip
    except TimedOut:
        raise  # it may be at work
    except Unavailable as exc:
        outcome = _take_back(catalog, name, before, target)
        raise Unavailable(exc.message + outcome, hint=exc.hint) from exc
    except KeyboardInterrupt as exc:
        raise Interrupted(f"interrupted: the move of volume {name!r} goes on in {target}") from exc
    return _moved(target, answer)


def _take_back(catalog: Catalog, name: str, before: Owner | None, target: Target) -> str:
    """Have the former owner take the volume again if nobody has it; return what became of it.

    The target may have died before, while or after it became the owner, also while the former
    owner is still about to hand the volume over.
    """
    try:
        owner = living_owner(catalog.get(name))
        if owner is not None and not same_process(owner, before):
            return f"; volume {name!r} is at {describe(owner)}"
        if before is not None and before.control and is_alive(before):
            run_task(before.control, "take", name)
            return f"; volume {name!r} is back at {describe(before)}"
    except TorusError as exc:
        return f"; and volume {name!r} could not be given back: {exc.message}"
    return f"; nobody has volume {name!r} now, nothing is lost: serve it anew"


def _moved(target: Target, answer: dict[str, Any]) -> Moved:
    return Moved(
        target=target,
        moved=answer.get("moved") is True,
        source=str(answer.get("from") or ""),
        forced=answer.get("forced") is True,
        clients=int(answer.get("clients", 0)),
        pause_ms=int(answer.get("pause_ms", 0)),
        prepare_ms=int(answer.get("prepare_ms", 0)),
        total_ms=int(answer.get("total_ms", 0)),
    )
