"""Disks of kernels, for people and programs: found by a name, shown in a list.

Decides what a name means and how a disk is shown.
"""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torus.cli.session import Session
from torus.cli.sizes import format_size
from torus.daemon.kernel_state import AttachedDevice, attached_devices
from torus.errors import NotFound
from torus.net import block_device
from torus.volume.catalog import Volume


def device_documents(session: Session) -> list[dict[str, Any]]:
    """Return this machine's devices, for `torus nbd list`."""
    return [
        {
            "device": one.device, "host": socket.gethostname(),
            "volume": one.volume, "size_bytes": one.size_bytes,
            "state": one.state, "gateway_pid": one.gateway_pid or None,
            "supervisor_pid": one.supervisor_pid or None,
            "read_only": bool(one.known and one.known.read_only),
            "connections": one.known.connections if one.known else None,
            "gateway_starts": one.known.gateway_starts if one.known else None,
            "problem": one.known.problem if one.known else "",
            "log": one.known.log if one.known else "",
        }
        for one in attached_devices(session.common().home)
    ]  # fmt: skip


def devices_elsewhere(volumes: Sequence[Volume]) -> list[dict[str, Any]]:
    """Return the volumes that the metadata says are disks of other machines' kernels."""
    here = socket.gethostname()
    return [
        {
            "device": owner.address, "host": owner.host, "volume": one.spec.name,
            "size_bytes": one.spec.size_bytes, "state": f"on {owner.host}",
            "gateway_pid": owner.pid, "supervisor_pid": None, "read_only": None,
            "connections": None, "gateway_starts": None, "problem": "", "log": "",
        }
        for one in volumes
        if (owner := one.head.owner) is not None
        and owner.host != here
        and owner.address.startswith("/dev/")
    ]  # fmt: skip


def render_devices(documents: list[dict[str, Any]], session: Session) -> None:
    """Show the devices as a table."""
    session.output.table(
        ("DEVICE", "VOLUME", ">SIZE", ">GATEWAY", "STATE"),
        [
            (
                one["device"] or "-",
                one["volume"] or "(of another TORUS_HOME)",
                format_size(one["size_bytes"]),
                str(one["gateway_pid"] or "-"),
                one["state"] + (f": {one['problem']}" if one["problem"] else ""),
            )
            for one in documents
        ],
    )


def find_device(text: str, home: Path) -> AttachedDevice:
    """Return the attachment that a volume's or a device's name means.

    Raises: NotFound, UsageError.
    """
    known = attached_devices(home)
    if text.startswith("/dev/"):
        index = block_device.parse_device(text)
        meant = [one for one in known if one.index == index]
        if not meant and block_device.connector_of(index) is not None:
            raise NotFound(
                f"{text} is not torus's",
                hint=f"who connected it takes it away: nbd-client -d {text}, qemu-nbd -d {text}",
            )
    else:
        meant = [one for one in known if one.volume == text]
    if not meant:
        raise NotFound(f"{text!r} is not attached on this machine", hint="see 'torus nbd list'")
    return meant[0]
