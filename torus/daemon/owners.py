"""Whom a command asks about a volume: the process that owns it, the node, or nobody.

Decides when an owner can be asked, how long one that begins or ends is waited for, and what a
person is told when it cannot be asked.  A volume that nobody has is given to the node of this
machine where one runs: then clients can come while the work is done.  Free of asyncio, so that
commands start quickly.
"""

import time
from collections.abc import Callable
from typing import Any

from torus.errors import Busy, Interrupted, TimedOut, TorusError, Unavailable
from torus.metadata.base import MetadataStore
from torus.metadata.keys import NODES
from torus.metadata.schema import Node, Owner
from torus.node.control import control_path
from torus.node.control_task import run_task
from torus.volume.catalog import Catalog, Volume
from torus.volume.catalog_ask import describe
from torus.volume.owner import is_alive

_PATIENCE_S = 10.0  # an owner that stops finishes its clients first
_LOOK_AGAIN_S = 0.02


def living_owner(volume: Volume) -> Owner | None:
    """Return the process that has the volume, None when nobody has it.

    Raises: Busy when somebody has it, or may have, who cannot be asked from here.
    """
    owner = volume.head.owner
    living = False if owner is None else is_alive(owner)
    if owner is None or living is False:
        return None
    if living is None or not owner.control:
        raise Busy(
            f"volume {volume.spec.name!r} is attached by {describe(owner)}, "
            "which cannot be asked to do this",
            hint="wait until it has ended" if living else f"repeat this on {owner.host}",
        )
    return owner


def ask_owner(
    catalog: Catalog,
    name: str,
    task: str,
    arguments: dict[str, Any] | None = None,
    report: Callable[[int, int], None] | None = None,
    *,
    cancel: bool = True,
    store: MetadataStore | None = None,
) -> dict[str, Any] | None:
    """Have a volume's owner do a task and return the result; None when nobody owns it.

    With ``store`` a volume without owner is attached by the node that is registered there.

    Raises: NotFound, Busy, Interrupted, and what the task raises.
    """
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        owner = living_owner(catalog.get(name))
        path = _node_control(store) if owner is None else owner.control
        if not path:
            return None
        who = "the node" if owner is None else describe(owner)
        failure: TorusError = Busy(
            f"volume {name!r} is changing hands: {who} had it a moment ago", hint="try again"
        )
        given = {"attach": True, **(arguments or {})} if owner is None else arguments
        try:
            result = run_task(path, task, name, given, report, cancel=cancel)
            if result.get("attached", True):
                return result
        except TimedOut:
            raise  # it may be at work
        except Unavailable as exc:  # it begins or ends just now
            failure = exc
        except KeyboardInterrupt as exc:
            what = "was cancelled" if cancel else f"goes on in {who}"
            raise Interrupted(f"interrupted: the {task} of volume {name!r} {what}") from exc
        if time.monotonic() > deadline_s:
            raise failure
        time.sleep(_LOOK_AGAIN_S)


def _node_control(store: MetadataStore | None) -> str:
    """Return the control socket of the node of this machine; empty when none can be asked."""
    if store is None:
        return ""
    for entry in store.list(NODES).entries:
        node = Node.from_bytes(entry.value, entry.key)
        if is_alive(node) and node.peer_address.startswith("unix:"):
            return control_path(node)
    return ""
