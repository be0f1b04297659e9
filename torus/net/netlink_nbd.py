"""The kernel's nbd driver through generic netlink: connect, give new sockets, resize, disconnect.

Decides how the driver's refusals are told to people.  Which device is meant and what becomes of
it is the caller's.

Source: linux/nbd-netlink.h and the driver's requests nbd_genl_connect, _reconfigure, _disconnect,
_status.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torus.errors import Busy, NotFound, RemoteProtocolError
from torus.net.netlink import (
    Datagrams,
    Family,
    GenericNetlink,
    KernelRefusal,
    attribute_text,
    attribute_u32,
    attribute_u64,
    generic_payload,
    nested,
    number_of,
    parse_attributes,
)

FAMILY = "nbd"

NBD_CMD_CONNECT = 1
NBD_CMD_DISCONNECT = 2
NBD_CMD_RECONFIGURE = 3
NBD_CMD_STATUS = 5

NBD_ATTR_INDEX = 1
NBD_ATTR_SIZE_BYTES = 2
NBD_ATTR_BLOCK_SIZE_BYTES = 3
NBD_ATTR_TIMEOUT = 4
NBD_ATTR_SERVER_FLAGS = 5
NBD_ATTR_CLIENT_FLAGS = 6
NBD_ATTR_SOCKETS = 7
NBD_ATTR_DEAD_CONN_TIMEOUT = 8
NBD_ATTR_DEVICE_LIST = 9
NBD_ATTR_BACKEND_IDENTIFIER = 10  # since Linux 5.14; older kernels ignore it

NBD_SOCK_ITEM = 1
NBD_SOCK_FD = 1
NBD_DEVICE_ITEM = 1
NBD_DEVICE_INDEX = 1
NBD_DEVICE_CONNECTED = 2

NO_MODULE_HINT = (
    "load the driver: modprobe nbd nbds_max=64; at every start: echo nbd >/etc/modules-load.d/"
    "nbd.conf (Debian's kernels have it, 'cloud' kernels may not: install linux-image-amd64)"
)


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """What a device is connected with, beside its sockets."""

    size_bytes: int
    block_bytes: int  # of one sector, as the device tells: 512 to the page size
    server_flags: int  # NBD transmission flags
    backend: str = ""  # who the device belongs to; the same has to be said at a reconnection
    timeout_s: int = 0  # after which an unanswered request costs its connection; 0: never
    dead_timeout_s: int = 0  # how long requests wait when every connection is dead
    client_flags: int = 0


class NbdFamily:
    """The nbd driver's netlink requests; blocks, one request at a time."""

    def __init__(self, sock: Datagrams | None = None) -> None:
        """Raises: NotFound when the driver is not loaded, PermissionDenied, Unavailable."""
        self._netlink = GenericNetlink(sock)
        try:
            self.family: Family = self._netlink.resolve(FAMILY)
        except NotFound as missing:
            self.close()
            raise NotFound(
                "the kernel's nbd driver is not loaded", hint=NO_MODULE_HINT
            ) from missing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back."""
        self._netlink.close()

    def connect(self, index: int | None, descriptors: Sequence[int], options: DeviceOptions) -> int:
        """Connect a device, made if there is none of that index; return its index.

        The kernel holds the sockets from then on: the caller may close its descriptors.

        Raises: Busy when the device is in use, KernelRefusal, PermissionDenied, NotFound.
        """
        what = "a free device" if index is None else f"/dev/nbd{index}"
        answer = self._call(NBD_CMD_CONNECT, connect_payload(index, descriptors, options), what)
        for body in answer:
            for kind, payload in generic_payload(body)[1]:
                if kind == NBD_ATTR_INDEX:
                    return number_of(payload, "a device's index")
        raise RemoteProtocolError(f"the kernel connected {what} without telling its index")

    def reconnect(self, index: int, descriptors: Sequence[int], backend: str) -> None:
        """Give a device new sockets in the place of dead ones; more than are dead are not taken.

        Raises: NotFound when it is not connected, Busy when its backend is another one,
            KernelRefusal, PermissionDenied.
        """
        payload = attribute_u32(NBD_ATTR_INDEX, index) + _backend(backend) + _sockets(descriptors)
        self._call(NBD_CMD_RECONFIGURE, payload, f"/dev/nbd{index}")

    def resize(self, index: int, size_bytes: int, block_bytes: int, backend: str) -> None:
        """Tell a connected device its new size.

        Raises: as `reconnect`.
        """
        payload = (
            attribute_u32(NBD_ATTR_INDEX, index)
            + attribute_u64(NBD_ATTR_SIZE_BYTES, size_bytes)
            + attribute_u64(NBD_ATTR_BLOCK_SIZE_BYTES, block_bytes)
            + _backend(backend)
        )
        self._call(NBD_CMD_RECONFIGURE, payload, f"/dev/nbd{index}")

    def disconnect(self, index: int) -> None:
        """Take a device's sockets away; what it has not answered fails with EIO.

        Nothing happens when it is not connected.

        Raises: KernelRefusal, PermissionDenied.
        """
        payload = attribute_u32(NBD_ATTR_INDEX, index)
        self._call(NBD_CMD_DISCONNECT, payload, f"/dev/nbd{index}")

    def connected(self) -> dict[int, bool]:
        """Return every device's index, and whether it is in use.

        Raises: KernelRefusal, PermissionDenied.
        """
        found: dict[int, bool] = {}
        for body in self._call(NBD_CMD_STATUS, b"", "the list of devices"):
            found.update(parse_status(body))
        return found

    def _call(self, command: int, payload: bytes, what: str) -> list[bytes]:
        try:
            return self._netlink.call(self.family.number, command, payload, what)
        except KernelRefusal as refused:
            raise _explained(command, what, refused) from refused


def connect_payload(index: int | None, descriptors: Sequence[int], options: DeviceOptions) -> bytes:
    """Return the attributes of a CONNECT."""
    parts = [] if index is None else [attribute_u32(NBD_ATTR_INDEX, index)]
    parts += [
        attribute_u64(NBD_ATTR_SIZE_BYTES, options.size_bytes),
        attribute_u64(NBD_ATTR_BLOCK_SIZE_BYTES, options.block_bytes),
        attribute_u64(NBD_ATTR_SERVER_FLAGS, options.server_flags),
        attribute_u64(NBD_ATTR_CLIENT_FLAGS, options.client_flags),
    ]
    if options.timeout_s:
        parts.append(attribute_u64(NBD_ATTR_TIMEOUT, options.timeout_s))
    if options.dead_timeout_s:
        parts.append(attribute_u64(NBD_ATTR_DEAD_CONN_TIMEOUT, options.dead_timeout_s))
    return b"".join([*parts, _backend(options.backend), _sockets(descriptors)])


def parse_status(body: bytes) -> dict[int, bool]:
    """Return the devices of one answer to STATUS.  Raises: RemoteProtocolError."""
    found: dict[int, bool] = {}
    for kind, payload in generic_payload(body)[1]:
        if kind != NBD_ATTR_DEVICE_LIST:
            continue
        for _, item in parse_attributes(payload):
            fields = dict(parse_attributes(item))
            if NBD_DEVICE_INDEX not in fields or NBD_DEVICE_CONNECTED not in fields:
                raise RemoteProtocolError(f"netlink: a device without index or state: {fields}")
            index = number_of(fields[NBD_DEVICE_INDEX], "a device's index")
            found[index] = number_of(fields[NBD_DEVICE_CONNECTED], "a device's state") != 0
    return found


def _backend(backend: str) -> bytes:
    return attribute_text(NBD_ATTR_BACKEND_IDENTIFIER, backend) if backend else b""


def _sockets(descriptors: Sequence[int]) -> bytes:
    items = [nested(NBD_SOCK_ITEM, attribute_u32(NBD_SOCK_FD, one)) for one in descriptors]
    return nested(NBD_ATTR_SOCKETS, *items)


def _explained(command: int, what: str, refused: KernelRefusal) -> KernelRefusal | NotFound | Busy:
    number = refused.errno
    if number == errno.EBUSY:
        return Busy(
            f"{what} is in use by somebody else",
            hint="leave --device away to get a free one, or see 'torus nbd list' and "
            "'cat /sys/block/nbd*/pid'",
        )
    if number in (errno.ENOTCONN, errno.ENODEV):
        return NotFound(f"{what} is not connected")
    if number == errno.ENOENT and command == NBD_CMD_CONNECT:
        return NotFound(f"{what}: every device is in use", hint=NO_MODULE_HINT)
    if number in (errno.EINVAL, errno.ENOENT) and command == NBD_CMD_RECONFIGURE:
        # not there, not connected, or connected by somebody who named another backend
        return NotFound(f"{what} is not connected to this volume ({refused.message})")
    return refused
