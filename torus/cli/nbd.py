"""`torus nbd`: serve volumes from a gateway process, move them, list what is served where.

Decides the form of NBD addresses for people.  Serving is `torus.daemon.app`'s, moving
`torus.daemon.move`'s; disks of the kernel are `torus.cli.nbd_kernel`'s.

Implements docs/cli.md, "torus nbd".
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from torus.cli.nbd_devices import device_documents, devices_elsewhere, render_devices
from torus.cli.nbd_kernel import declare_kernel_verbs
from torus.cli.node import add_engine_options
from torus.cli.nodes import NodeView, node_views
from torus.cli.parser import Verbs, add_command, add_noun
from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.clock import SystemClock
from torus.config import GatewayConfig
from torus.errors import UsageError
from torus.ids import check_volume_name, split_snapshot
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
            (
                "the destination of a live migration",
                "torus nbd serve disk --standby --socket /run/disk2.sock",
            ),
        ),
    )
    add = serve.add_argument
    add("names", metavar="NAME", nargs="+")
    add("--listen", metavar="HOST:PORT", action="append", help="TCP address; may be repeated")
    add("--socket", metavar="PATH", action="append", help="unix socket; may be repeated")
    add("--read-only", action="store_true", default=None, help="refuse writes from clients")
    standby = "attach only at a client's first request, and take the volume from its owner then"
    add("--standby", action="store_true", default=None, help=standby)
    add("--http", metavar="ADDRESS", help="/metrics and /healthz (default none)")
    add_engine_options(serve)
    declare_kernel_verbs(below)
    _declare_move(below)
    add_command(
        below,
        "list",
        "list what is served, and where, and the disks of this machine",
        run_list,
        examples=(("for a program", "torus nbd list -o json"),),
    )


def _declare_move(below: Verbs) -> None:
    move = add_command(
        below,
        "move",
        "move a volume to another gateway, or to the node, while it is used",
        run_move,
        description="Move a volume to another process.  Its present owner writes a checkpoint "
        "while clients go on, answers what is in flight, closes their connections and gives the "
        "volume up; the other one attaches it.  Clients that reconnect there go on after a "
        "fraction of a second; everything that was answered is there.",
        examples=(
            ("to the gateway on that socket", "torus nbd move disk --to unix:/run/disk2.sock"),
            ("back to the node", "torus nbd move disk --to node"),
        ),
    )
    move.add_argument("name", metavar="NAME")
    where = "its NBD address, its pid, its host if nothing else is there, or 'node'"
    move.add_argument("--to", metavar="TARGET", required=True, help=where)
    force = "also from an owner that cannot be asked; what it did not flush may be lost"
    move.add_argument("--force", action="store_true", help=force)


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
        standby=session.switch("gateway.standby"),
        http_address=(*session.addresses("gateway.http"), None)[0],
    )


def run_move(arguments: argparse.Namespace, session: Session) -> int:
    """Move a volume."""
    from torus.daemon.move import find_target, move, targets

    name, said = check_volume_name(arguments.name), session.output
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        catalog.get(name)
        target = find_target(targets(store), arguments.to)
        steps = ["its owner is asked for it", "it is attached"]

        def report(done: int, _total: int) -> None:
            while steps and len(steps) >= 2 - done:
                said.note(f"volume {name!r}: {steps.pop(0)}")

        moved = move(catalog, target, name, report, force=arguments.force)
    document = {"volume": name, "from": moved.source, "to": str(target), **asdict(moved)}
    del document["target"], document["source"]

    def render() -> None:
        if not moved.moved:
            said.line(f"volume {name!r} is at {target} already")
            return
        source = moved.source or "nobody"
        said.line(f"volume {name!r} moved from {source} to {target}")
        if moved.forced:
            said.line("taken by force; its former owner is fenced")
        elif moved.clients:
            said.line(f"{moved.clients} connections were closed; paused {moved.pause_ms} ms")
        else:
            said.line(f"no client was connected; paused {moved.pause_ms} ms")

    said.show({"move": document}, render)
    return 0


def run_list(arguments: argparse.Namespace, session: Session) -> int:
    """List every (volume, address) pair that a living process serves, and this machine's disks."""
    with session.metadata() as store:
        volumes = Catalog(store, SystemClock()).list()
        nodes = node_views(store)
    exports = list_exports(volumes, nodes)
    devices = device_documents(session) + devices_elsewhere(volumes)

    def render() -> None:
        if devices:
            render_devices(devices, session)
            if not exports:
                return
            session.output.line("")
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

    session.output.show({"exports": exports, "devices": devices}, render)
    return 0


def list_exports(volumes: Sequence[Volume], nodes: Sequence[NodeView]) -> list[dict[str, Any]]:
    """Return what is served: by nodes every volume, except those that a gateway holds."""
    exports: list[dict[str, Any]] = []
    for volume in sorted(volumes, key=lambda one: one.spec.name):
        owner = volume.head.owner
        held = owner is not None and owner.role == "gateway" and is_alive(owner) is not False
        if owner is not None and held and owner.address.startswith("/dev/"):
            continue  # a disk of a kernel: nobody else can open it
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
