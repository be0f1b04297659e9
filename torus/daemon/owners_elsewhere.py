"""Owners of volumes in a cluster: whether they live, and asking those of other hosts to let go.

Decides what a missing registration means: a node or a gateway that does not hold its lease is
not there, even if its process can be seen on this host: it hangs.  That is for people and for
attaching without force; safety rests on the epoch.

Implements docs/operations-cluster.md, "Who counts as alive".
"""

import json
from collections.abc import Callable

from torus.cluster.membership import Membership
from torus.cluster.peer import PeerChunks
from torus.cluster.pool import DiskPool
from torus.errors import TorusError
from torus.log import get_logger
from torus.metadata.schema import Node, Owner
from torus.volume.owner import ProcessIdentity, is_alive, same_process

log = get_logger("torus.reach")
REGISTERED = ("node", "gateway")  # roles of processes that hold a lease


def alive_in(membership: Membership) -> Callable[[ProcessIdentity], bool | None]:
    """Return what tells whether a process of the cluster lives."""

    def alive(process: ProcessIdentity) -> bool | None:
        known = is_alive(process)
        if known is False or membership.away_since_ns is not None:
            return known
        registered: list[ProcessIdentity] = [
            *membership.nodes().values(),
            *membership.gateways().values(),
        ]
        if any(same_process(process, one) for one in registered):
            return True
        role = process.role if isinstance(process, Owner) else ""
        return False if role in REGISTERED else known

    return alive


def node_of(membership: Membership, owner: Owner) -> Node | None:
    """Return the node that an owner is."""
    nodes = membership.nodes().values()
    return next((node for node in nodes if same_process(owner, node)), None)


async def ask_to_let_go(membership: Membership, pool: DiskPool, owner: Owner, volume: str) -> bool:
    """Ask a node of another host for a volume that it keeps for clients that might come back.

    Tells whether it gave it up.  One that cannot be asked did not.
    """
    node = node_of(membership, owner)
    if node is None or not node.disks:
        return False
    question = json.dumps({"ask": "release", "volume": volume}).encode()
    try:
        chunks = await pool.get(node.disks[0])
        if not isinstance(chunks, PeerChunks):
            return False  # this very process
        answer = json.loads(await chunks.report(question))
    except (TorusError, ValueError) as exc:
        log.debug("reach.not_released", volume=volume, error=str(exc))
        return False
    return isinstance(answer, dict) and answer.get("released") is True
