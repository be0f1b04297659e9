"""`torus nbd attach`, `detach`, `restart`: volumes as disks of this machine's kernel.

Decides which options there are, what is checked before anything is started, and the words for
people.  The processes behind it are `torus.daemon.kernel_supervisor`'s and `kernel_gateway`'s.

Implements docs/cli.md, "torus nbd"; docs/attach.md.
"""

import argparse
import os
import time
from dataclasses import asdict, replace
from typing import Any

from torus import limits
from torus.cli.nbd_devices import find_device
from torus.cli.node import add_engine_options
from torus.cli.parser import Verbs, add_command
from torus.cli.session import Session
from torus.cli.sizes import parse_seconds
from torus.clock import SystemClock
from torus.config import GatewayConfig
from torus.daemon.kernel_state import (
    AttachedDevice,
    AttachOrder,
    AttachPlace,
    attach_folder,
    attached_devices,
    backend_name,
)
from torus.errors import (
    Busy,
    NotFound,
    PermissionDenied,
    TimedOut,
    TorusError,
    Unavailable,
    UsageError,
)
from torus.ids import check_volume_name, split_snapshot
from torus.net import block_device
from torus.net.netlink_nbd import NbdFamily
from torus.volume.catalog import Catalog
from torus.volume.catalog_ask import describe
from torus.volume.owner import is_alive

_END_S = 60.0  # how long a gateway may take to give its volume back
_IOCTL_VARIABLE = "TORUS_NBD_IOCTL"  # 1: as on a kernel whose driver has no netlink


def declare_kernel_verbs(below: Verbs) -> None:
    """Add attach, detach and restart."""
    attach = add_command(
        below, "attach", "make a volume a disk of this machine: /dev/nbdN", run_attach,
        description="Make a volume a disk of this machine's kernel, /dev/nbdN, served by a gateway "
        "process in the background.  The gateway may die or be replaced while the disk is mounted: "
        "the kernel waits, and asks the next one again.  A snapshot, VOLUME@SNAPSHOT, is attached "
        "read only.  Needs root and the kernel's nbd driver.",
        examples=(
            ("a disk; its name is printed", "torus nbd attach vm1"),
            ("make a file system on it and use it",
             "mkfs.ext4 /dev/nbd0 && mount /dev/nbd0 /mnt"),
            ("always the same device", "torus nbd attach vm1 --device /dev/nbd7"),
            ("an image with a partition table of 512-byte sectors",
             "torus nbd attach vm1 --block-size 512"),
            ("in front, for systemd (torus-attach@.service)", "torus nbd attach vm1 --foreground"),
            ("from the host that has it now; that one loses it",
             "torus nbd attach vm1 --takeover"),
            ("grow an ext4 file system in use, after 'torus volume resize vm1 20GiB'",
             "resize2fs /dev/nbd0"),
            ("a consistent snapshot of a mounted file system",
             "fsfreeze -f /mnt; torus volume snapshot create vm1@now; fsfreeze -u /mnt"),
        ),
    )  # fmt: skip
    add = attach.add_argument
    add("name", metavar="NAME")
    add("--device", metavar="DEVICE", help="/dev/nbdN (default: a free one)")
    add("--read-only", action="store_true", help="refuse writes")
    hour = limits.ATTACH_DEAD_TIMEOUT_S
    add("--timeout", metavar="TIME", help="how long requests wait for a gateway that is gone, "
        f"before they fail (default {hour}s)")  # fmt: skip
    add("--connections", metavar="N", type=int, default=1,
        help="sockets between kernel and gateway (default 1)")  # fmt: skip
    add("--block-size", metavar="BYTES", type=int, choices=(512, 4096),
        help="of the device's sectors: 4096 (default) or 512")  # fmt: skip
    add("--foreground", action="store_true", help="stay, and log to standard error")
    add("--takeover", action="store_true", help="take the volume from whoever has it")
    add_engine_options(attach)
    _declare_ends(below)


def _declare_ends(below: Verbs) -> None:
    detach = add_command(
        below, "detach", "take a disk away from this machine's kernel", run_detach,
        description="Take a disk away from this machine's kernel and end its gateway.  What the "
        "kernel's cache holds is written first.  A disk that is in use (mounted, swap, below a "
        "mapping) is refused.",
        examples=(
            ("by its volume", "torus nbd detach vm1"),
            ("by its device", "torus nbd detach /dev/nbd0"),
            ("in use or not: its users get errors", "torus nbd detach vm1 --force"),
        ),
    )  # fmt: skip
    detach.add_argument("name", metavar="NAME|DEVICE")
    detach.add_argument("--force", action="store_true", help="also when it is in use")
    restart = add_command(
        below, "restart", "replace the gateways of disks, while they are in use", run_restart,
        description="Run the gateways of this machine's disks anew, as torus is installed now.  "
        "File systems on them stay mounted; their requests wait for a moment.",
        examples=(
            ("after an upgrade of torus", "torus nbd restart --all"),
            ("one of them", "torus nbd restart vm1"),
        ),
    )  # fmt: skip
    restart.add_argument("name", metavar="NAME|DEVICE", nargs="?")
    restart.add_argument("--all", action="store_true", help="every disk of this machine")


# --- attach -------------------------------------------------------------------------------


def run_attach(arguments: argparse.Namespace, session: Session) -> int:
    """Check what can be checked, then start the supervisor, or be it."""
    from torus.daemon.kernel_start import Resume, become_supervisor, resumed, start_in_background

    resume = resumed()
    name = arguments.name
    order = _order(arguments, session)
    place = AttachPlace(attach_folder(session.common().home), name)
    if resume is not None:
        return _supervise(order, place, resume, session)
    _require_root("attach")
    _require_driver(order.driver)
    order = replace(order, backend=_backend(name, session))
    lock = place.lock()
    try:
        taken = _check_owner(order, session)
    except TorusError:
        os.close(lock)
        raise
    resume = Resume(order.backend, lock, takeover=taken, folder=os.getcwd())
    if arguments.foreground:
        become_supervisor(resume)
    state = start_in_background(place, resume)
    document = asdict(state)

    def render() -> None:
        session.output.line(state.device)

    session.output.show({"attached": document}, render)
    return 0


def _supervise(order: AttachOrder, place: AttachPlace, resume: Any, session: Session) -> int:
    from torus import log
    from torus.daemon.kernel_start import announcer, become_supervisor
    from torus.daemon.kernel_supervisor import Wanted, supervise

    order = replace(order, backend=resume.backend, takeover=resume.takeover)
    common = session.common()
    config = GatewayConfig(common, volumes=(order.volume,), nbd_addresses=(),
                           read_only=order.read_only)  # fmt: skip
    log.configure(common.log_level, common.log_format)
    announce, fail = announcer(resume.ready)
    again = replace(resume, ready=-1, takeover=False)
    wanted = Wanted(
        order, config, place, str(place.log_path) if resume.background else "",
        lambda: become_supervisor(again),
    )  # fmt: skip
    os.chdir("/")  # a daemon must not be what keeps a file system in use
    try:
        return supervise(wanted, announce)
    except TorusError as failure:
        fail(failure)
        if resume.background:
            return failure.exit_code  # the command that waits says it
        raise


def _order(arguments: argparse.Namespace, session: Session) -> AttachOrder:
    name: str = arguments.name
    snapshot = "@" in name
    if snapshot:
        split_snapshot(name)
    else:
        check_volume_name(name)
    connections: int = arguments.connections
    if not 1 <= connections <= limits.ATTACH_CONNECTIONS_MAX:
        raise UsageError(
            f"--connections {connections} is not from 1 to {limits.ATTACH_CONNECTIONS_MAX}"
        )
    dead_timeout_s = limits.ATTACH_DEAD_TIMEOUT_S
    if arguments.timeout is not None:
        dead_timeout_s = int(parse_seconds(arguments.timeout, "--timeout"))
    if dead_timeout_s < 1:
        raise UsageError(
            f"--timeout {arguments.timeout} is too short",
            hint="without time to wait, a gateway's death would break the file system",
        )
    device = arguments.device
    return AttachOrder(
        volume=name, backend="",
        index=None if device is None else block_device.parse_device(device),
        read_only=arguments.read_only or snapshot, connections=connections,
        dead_timeout_s=dead_timeout_s, block_bytes=arguments.block_size,
        takeover=arguments.takeover,
        driver="ioctl" if session.environment.get(_IOCTL_VARIABLE) == "1" else "netlink",
    )  # fmt: skip


def _backend(name: str, session: Session) -> str:
    """Return what the kernel is told of whom the device belongs to.

    Raises: NotFound when there is no such volume or snapshot.
    """
    with session.metadata() as store:
        catalog = Catalog(store, SystemClock())
        cluster = catalog.get_cluster()
        if "@" in name:
            volume, snapshot = split_snapshot(name)
            catalog.get_snapshot(volume, snapshot)
            return backend_name(cluster.cluster_id, catalog.get(volume).spec.volume, snapshot)
        return backend_name(cluster.cluster_id, catalog.get(name).spec.volume)


def _check_owner(order: AttachOrder, session: Session) -> bool:
    """Refuse a volume that somebody has, before a process is started for it; tell whether it is
    to be taken from somebody.

    Safety rests on the epoch; this is for the message.  Who keeps it for clients that may come
    back is asked to let go by the gateway.

    Raises: Busy.
    """
    if "@" in order.volume:
        return False
    with session.metadata() as store:
        owner = Catalog(store, SystemClock()).get(order.volume).head.owner
    if owner is None or is_alive(owner) is False:
        return False
    if order.takeover or owner.role == "node":
        return order.takeover
    raise Busy(
        f"volume {order.volume!r} is attached by {describe(owner)}",
        hint="detach it there, or take it from there with --takeover: its users there get errors",
    )


def _require_root(verb: str) -> None:
    if os.geteuid() != 0:
        raise PermissionDenied(
            f"'torus nbd {verb}' needs root: disks of the kernel are root's business",
            hint="run it with sudo, and with the --home or --meta of the node, if it is not root's",
        )


def _require_driver(driver: str) -> None:
    """Raises: NotFound when the kernel has no nbd driver; says how to load it."""
    if driver == "netlink":
        NbdFamily().close()


# --- detach -------------------------------------------------------------------------------


def run_detach(arguments: argparse.Namespace, session: Session) -> int:
    """Take a device away."""
    from torus.daemon.kernel_start import end_process

    _require_root("detach")
    home = session.common().home
    found = find_device(arguments.name, home)
    place = AttachPlace(attach_folder(home), found.volume) if found.volume else None
    if found.index >= 0 and block_device.connector_of(found.index) is not None:
        _check_unused(found, force=arguments.force)
        _write_back(found, force=arguments.force)
        if found.known is not None and found.known.driver == "ioctl":
            end_process(found.supervisor_pid, force=False)
        else:
            with NbdFamily() as family:
                family.disconnect(found.index)
    elif found.supervisor_pid:
        end_process(found.supervisor_pid, force=False)
    if place is not None:
        _see_it_end(place, found, force=arguments.force)
    if found.index >= 0:
        block_device.forget_partitions(found.index)
    document = {"volume": found.volume, "device": found.device}

    def render() -> None:
        session.output.line(f"{found.device or found.volume} is detached")

    session.output.show({"detached": document}, render)
    return 0


def _check_unused(found: AttachedDevice, *, force: bool) -> None:
    uses = block_device.uses_of(found.index)
    if uses and not force:
        raise Busy(
            f"{found.device} (volume {found.volume!r}) is in use: {'; '.join(uses)}",
            hint="unmount it first; --force takes it away from its users, who get errors",
        )


def _write_back(found: AttachedDevice, *, force: bool) -> None:
    """Have the kernel write what it holds of a device; nobody can begin to use it meanwhile."""
    from torus.daemon.kernel_start import flush_device

    if not found.gateway_pid:
        if force:
            return
        raise Unavailable(
            f"{found.device} has no gateway just now: what was written to it may not be on disk",
            hint=f"start one with 'torus nbd attach {found.volume or 'NAME'}', or --force",
        )
    try:
        flush_device(found.index, _END_S / 6 if force else None)
    except OSError as failure:
        if force:
            return
        raise Busy(
            f"{found.device} could not be written back: {failure.strerror}",
            hint="see the log of its gateway; --force takes the device away as it is",
        ) from failure


def _see_it_end(place: AttachPlace, found: AttachedDevice, *, force: bool) -> None:
    from torus.daemon import kernel_start

    if not kernel_start.wait_until_over(place, found.index, _END_S / 6 if force else _END_S):
        for pid in (found.supervisor_pid, found.gateway_pid):
            kernel_start.end_process(pid, force=force)
        if not kernel_start.wait_until_over(place, found.index, _END_S / 6):
            raise TimedOut(
                f"the gateway of volume {found.volume!r} (pid {found.gateway_pid}) does not end",
                hint="it may wait for the node; --force ends it",
            )
    if force or not found.supervisor_pid:
        place.forget()


# --- restart ------------------------------------------------------------------------------


def run_restart(arguments: argparse.Namespace, session: Session) -> int:
    """Replace gateways, one after the other."""
    from torus.daemon.kernel_start import ask_for_restart

    _require_root("restart")
    home = session.common().home
    if (arguments.name is None) == (not arguments.all):
        raise UsageError("name one volume or device, or give --all")
    if arguments.all:
        meant = [one for one in attached_devices(home) if one.known is not None]
    else:
        meant = [find_device(arguments.name, home)]
    done: list[dict[str, Any]] = []
    for one in meant:
        if one.known is None:
            raise NotFound(f"{one.device} is served for another TORUS_HOME", hint="name its --home")
        began = time.monotonic()
        now = ask_for_restart(AttachPlace(attach_folder(home), one.volume), one.known)
        seconds = round(time.monotonic() - began, 3)
        session.output.note(f"{now.device}: gateway pid {now.gateway_pid} after {seconds:.1f} s")
        done.append({**asdict(now), "seconds": seconds})

    def render() -> None:
        if not done:
            session.output.note("no volume is attached on this machine")

    session.output.show({"restarted": done}, render)
    return 0
