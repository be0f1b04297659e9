"""`torus nbd`: serve volumes from a gateway process; list what is served where.

Decides the form of NBD addresses for people.  Serving is `torus.daemon.app`'s.

Implements docs/cli.md, "torus nbd".
"""

import argparse
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from torus.cli.node import add_engine_options
from torus.cli.nodes import NodeView, node_views
from torus.cli.parser import Verbs, add_command, add_noun
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.clock import SystemClock
from torus.config import GatewayConfig
from torus.errors import UsageError
from torus.ids import split_snapshot
from torus.volume.catalog import Catalog, Volume
from torus.volume.owner import is_alive


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus nbd` and its verbs."""
    _, below = add_noun(verbs, noun, summary)
    serve = add_command(
        below,
        "serve",
        "serve volumes from a process of its own",
        run_serve,
        description="Serve volumes over NBD from a gateway process.  It attaches them: no other "
        "process can write them meanwhile.  A snapshot, VOLUME@SNAPSHOT, is served read only and "
        "by any number of processes; it cannot be deleted meanwhile.  A node serves all of its "
        "volumes' snapshots anyway.",
        examples=(
            ("on a unix socket", "torus nbd serve disk --socket /run/disk.sock"),
            ("read only, on TCP", "torus nbd serve disk --listen 127.0.0.1:10810 --read-only"),
            ("a snapshot", "torus nbd serve disk@monday --socket /run/monday.sock"),
        ),
    )
    add = serve.add_argument
    add("names", metavar="NAME", nargs="+")
    add("--listen", metavar="HOST:PORT", action="append", help="TCP address; may be repeated")
    add("--socket", metavar="PATH", action="append", help="unix socket; may be repeated")
    add("--read-only", action="store_true", default=None, help="refuse writes from clients")
    add("--http", metavar="ADDRESS", help="/metrics and /healthz (default none)")
    add_engine_options(serve)
    add_command(
        below,
        "list",
        "list what is served, and where",
        run_list,
        examples=(("for a program", "torus nbd list -o json"),),
    )


def run_serve(arguments: argparse.Namespace, session: Session) -> int:
    """Check that the volumes exist, then serve them until told to stop."""
    config = gateway_config(arguments.names, session)
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        for name in config.volumes:
            if "@" in name:
                catalog.get_snapshot(*split_snapshot(name))
            else:
                catalog.get(name)
    from torus.daemon.app import run_gateway

    return run_gateway(config)


def gateway_config(names: Sequence[str], session: Session) -> GatewayConfig:
    """Return what the arguments, the environment and the file say together.

    Raises: UsageError when there is no address, or a name twice.
    """
    twice = {name for name in names if list(names).count(name) > 1}
    if twice:
        raise UsageError(f"volume {min(twice)!r} is named twice")
    addresses = (
        *session.addresses("gateway.listen"),
        *session.addresses("gateway.socket", "unix:"),
    )
    if not addresses:
        raise UsageError(
            "there is no address to serve on", hint="give --listen HOST:PORT or --socket PATH"
        )
    return GatewayConfig(
        common=session.common(),
        volumes=tuple(names),
        nbd_addresses=addresses,
        read_only=session.switch("gateway.read-only"),
        http_address=(*session.addresses("gateway.http"), None)[0],
    )


def run_list(arguments: argparse.Namespace, session: Session) -> int:
    """List every (volume, address) pair that a living process serves."""
    with session.metadata() as store:
        volumes = Catalog(store, SystemClock()).list()
        nodes = node_views(store)
    exports = list_exports(volumes, nodes)

    def render() -> None:
        if not exports:
            session.output.note("nothing is served; start 'torus node' or 'torus nbd serve NAME'")
            return
        session.output.table(
            ("VOLUME", ">SIZE", "SERVED BY", "URI"),
            [
                (
                    one["volume"],
                    format_size(one["size_bytes"]),
                    f"{one['role']} {one['host']}:{one['pid']}",
                    one["uri"],
                )
                for one in exports
            ],
        )

    session.output.show({"exports": exports}, render)
    return 0


def list_exports(volumes: Sequence[Volume], nodes: Sequence[NodeView]) -> list[dict[str, Any]]:
    """Return what is served: by nodes every volume, except those that a gateway holds."""
    exports: list[dict[str, Any]] = []
    for volume in sorted(volumes, key=lambda one: one.spec.name):
        owner = volume.head.owner
        held = owner is not None and owner.role == "gateway" and is_alive(owner) is not False
        if owner is not None and held:
            servers = [("gateway", owner.host, owner.pid, owner.address.split(","))]
        else:
            servers = [
                ("node", view.node.host, view.node.pid, list(view.node.nbd_addresses))
                for view in nodes
                if view.alive is not False
            ]
        for role, host, pid, addresses in servers:
            for address in addresses:
                exports.append(
                    {
                        "volume": volume.spec.name,
                        "size_bytes": volume.spec.size_bytes,
                        "role": role,
                        "host": host,
                        "pid": pid,
                        "address": address,
                        "uri": nbd_uri(address, volume.spec.name),
                    }
                )
    return exports


def nbd_uri(address: str, name: str) -> str:
    """Return the NBD URI of an export.  Source: the NBD project's doc/uri.md."""
    if address.startswith("unix:"):
        return f"nbd+unix:///{quote(name)}?socket={quote(address.removeprefix('unix:'))}"
    return f"nbd://{address}/{quote(name)}"
