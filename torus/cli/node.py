"""`torus node`: the store and the NBD server in one process.

Decides which options there are and which of their values can be meant.  Running is
`torus.daemon.app`'s.

Implements docs/cli.md, "torus node".
"""

import argparse

from torus.cli.disk_options import weight_number, zone_name
from torus.cli.node_verbs import declare_verbs
from torus.cli.parser import Verbs, add_command
from torus.cli.session import Session, rate
from torus.cli.sizes import format_size, parse_seconds
from torus.config import NodeConfig
from torus.errors import UsageError
from torus.limits import STORE_BYTES_MIN
from torus.net.address import TcpAddress, parse_address


def declare(verbs: Verbs, noun: str, summary: str) -> None:
    """Add `torus node`."""
    parser = add_command(
        verbs,
        noun,
        summary,
        run_node_command,
        description="Run a node: it keeps segments in a folder and serves every volume over NBD "
        "under its name.  It runs until SIGTERM or Ctrl-C, then finishes what is in flight.",
        examples=(
            ("on this machine, with defaults", "torus node --size 20GiB"),
            (
                "on a unix socket as well",
                "torus node --size 20GiB --nbd 127.0.0.1:10809 --nbd unix:/run/torus.sock",
            ),
            ("without TCP", "torus node --size 20GiB --nbd unix:/run/torus.sock --http none"),
        ),
    )
    add = parser.add_argument
    add("--data-dir", metavar="DIR", action="append", help="the node's segments (default "
        "TORUS_HOME/data); in a cluster it may be repeated: each is a disk of its own")  # fmt: skip
    add("--size", metavar="SIZE", help="limit of each data directory; kept once it is made")
    add(
        "--nbd",
        metavar="ADDRESS",
        action="append",
        help="HOST:PORT, unix:PATH or none; may be repeated (default 127.0.0.1:10809)",
    )
    add("--http", metavar="ADDRESS", help="/metrics and /healthz (default 127.0.0.1:9809) or none")
    add(
        "--no-punch",
        dest="punch",
        action="store_false",
        default=None,
        help="keep freed slots allocated in the host's file system",
    )
    add("--trash-grace", metavar="TIME", help="keep deleted chunks so long (default 30s), or none")
    _add_cluster_options(parser)
    add_engine_options(parser)
    declare_verbs(parser)


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("in a cluster").add_argument
    add(
        "--peer",
        metavar="ADDRESS",
        help="HOST:PORT where nodes of other hosts reach this one, or none; by default the address "
        "of this host on the way to the metadata store, and a free port",
    )
    add("--zone", metavar="ZONE", help="where the disks stand: copies go to distinct zones")
    add("--weight", metavar="N", help="share of the data of each disk (default its size in GiB)")
    add(
        "--no-join",
        dest="join",
        action="store_false",
        default=None,
        help="new disks get no data before 'torus node join'",
    )
    add(
        "--auto-out",
        metavar="TIME",
        help="put a disk out of the ring when it is gone so long (default 10m), or none",
    )
    add(
        "--repair-rate",
        metavar="SIZE",
        help="each disk pulls so much in a second that it lacks (default 128MiB), or none; half of "
        "it and less while clients are slow",
    )
    add(
        "--scrub-rate",
        metavar="SIZE",
        help="each disk reads so much in a second to find damage, or none; auto (default) is what "
        "a week for all of it takes",
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add what every process that attaches volumes can be told."""
    add = parser.add_argument
    add("--map-cache", metavar="SIZE", help="bound of the block maps in memory (default 256MiB)")
    add("--on-full", metavar="WHAT", help="writes on a full pool: pause (default) or error")
    add("--checkpoint-interval", metavar="TIME", help="longest time between two (default 60s)")
    add("--gc-rate", metavar="SIZE", help="background collection moves so much in a second "
        "(default 64MiB), or none")  # fmt: skip
    add("--erasure", metavar="ENGINE", help="computes shards: auto (default), kernel or zfec")
    add("--log-level", metavar="LEVEL", help="debug, info (default), warning or error")
    add("--log-format", metavar="FORMAT", help="auto (default), human or json")


def run_node_command(arguments: argparse.Namespace, session: Session) -> int:
    """Check the options and run the node until it is told to stop."""
    config = node_config(session)
    from torus.daemon.app import run_node

    return run_node(config)


def _grace_s(text: str, what: str) -> float:
    return 0.0 if text.strip().lower() in ("none", "0") else parse_seconds(text, what)


def _out_s(text: str, what: str) -> float:
    return 0.0 if text.strip().lower() == "none" else parse_seconds(text, what)


def _scrub_rate(text: str, what: str) -> int | None:
    return None if text.strip().lower() == "auto" else rate(text, what)


def _peer(text: str, what: str) -> str:
    if text in ("auto", "none"):
        return text
    address = parse_address(text)
    if not isinstance(address, TcpAddress):
        raise UsageError(
            f"{what} {text!r} is not HOST:PORT",
            hint="the unix socket for peers of this host is always there, in TORUS_HOME",
        )
    return str(address)


def node_config(session: Session) -> NodeConfig:
    """Return what the arguments, the environment and the file say together.

    Raises: UsageError or ConfigError for what cannot be meant.
    """
    size_bytes = session.size("node.size")
    if size_bytes is not None and size_bytes < STORE_BYTES_MIN:
        raise session.blame(
            "node.size",
            f"{session.setting('node.size').origin} {format_size(size_bytes)} is too small for a "
            f"store; the least is {format_size(STORE_BYTES_MIN)}",
        )
    common = session.common()
    return NodeConfig(
        common=common,
        size_bytes=size_bytes,
        nbd_addresses=session.addresses("node.nbd"),
        http_address=(*session.addresses("node.http"), None)[0],
        punch=session.switch("node.punch"),
        trash_grace_s=session.value("node.trash-grace", _grace_s) or 0.0,
        data_dirs=session.paths("data-dir") or (common.data_dir,),
        peer_address=session.value("node.peer", _peer) or "none",
        zone=session.value("node.zone", zone_name),
        weight=session.value("node.weight", weight_number),
        join=session.switch("node.join"),
        auto_out_s=session.value("node.auto-out", _out_s) or 0.0,
        repair_rate_bytes=session.value("node.repair-rate", rate) or 0,
        scrub_rate_bytes=session.value("node.scrub-rate", _scrub_rate),
    )
