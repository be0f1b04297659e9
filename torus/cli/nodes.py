"""Registered nodes, whether they live, and what the living ones say.

Decides how a node that does not answer is shown: as one that does not, never as an error of
the command that asked.
"""

from dataclasses import dataclass
from typing import Any

from torus.errors import TorusError
from torus.metadata.base import MetadataStore
from torus.metadata.keys import NODES
from torus.metadata.schema import Node
from torus.volume.owner import is_alive


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as it can be seen from here."""

    node: Node
    alive: bool | None  # None: on another host, cannot be told from here
    status: dict[str, Any] | None  # `torus.daemon.reports.NodeStatus`; None: not asked, no answer
    problem: str | None = None  # why a living node did not answer


def node_views(store: MetadataStore, *, ask: bool = False) -> tuple[NodeView, ...]:
    """Return all registered nodes; with ``ask``, living ones are asked for their status."""
    views = []
    for entry in store.list(NODES).entries:
        node = Node.from_bytes(entry.value, entry.key)
        alive = is_alive(node)
        status, problem = _ask(node) if ask and alive else (None, None)
        views.append(NodeView(node, alive, status, problem))
    return tuple(views)


def _ask(node: Node) -> tuple[dict[str, Any] | None, str | None]:
    from torus.node.control import ask, control_path

    try:
        return ask(control_path(node), {"ask": "status"}), None
    except TorusError as exc:
        return None, exc.message
