"""Telling systemd how a service is: ready, stopping, and a line on what it does.

Decides nothing.  Without NOTIFY_SOCKET in the environment nobody is told.

Source: sd_notify(3): datagrams of NAME=VALUE lines; a socket name that begins with '@' is an
abstract one.
"""

import os
import socket

from torus.log import get_logger

log = get_logger("torus.process")


def notify(**fields: str) -> bool:
    """Tell systemd ``NAME=VALUE`` of each field; say whether somebody was told."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return False
    address = "\0" + name[1:] if name.startswith("@") else name
    text = "\n".join(f"{field.upper()}={value}" for field, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(text.encode(), address)
    except OSError as exc:
        log.warning("systemd.not_told", socket=name, error=str(exc))
        return False
    return True
