"""The kernel's nbd driver through ioctl: the way of kernels whose driver has no netlink.

Decides nothing; a device that was connected so is gone when its sockets are: it cannot be given
new ones.

Source: linux/nbd.h; the driver's __nbd_ioctl.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Sequence

from torus.errors import Busy, PermissionDenied
from torus.log import get_logger
from torus.net.block_device import HERE, Machine, device_path
from torus.net.netlink import KernelRefusal
from torus.net.netlink_nbd import DeviceOptions

log = get_logger(__name__)

NBD_SET_SOCK = 0xAB00
NBD_SET_BLKSIZE = 0xAB01
NBD_DO_IT = 0xAB03
NBD_CLEAR_SOCK = 0xAB04
NBD_SET_SIZE_BLOCKS = 0xAB07
NBD_DISCONNECT = 0xAB08
NBD_SET_TIMEOUT = 0xAB09
NBD_SET_FLAGS = 0xAB0A


class IoctlDevice:
    """One device, connected as long as a thread of this process stays in the kernel for it."""

    def __init__(self, index: int, machine: Machine = HERE) -> None:
        """Raises: PermissionDenied, KernelRefusal."""
        self._path = str(device_path(index, machine))
        self._fd = self._try(
            lambda: os.open(self._path, os.O_RDWR | os.O_CLOEXEC), "the device's node"
        )
        self._thread: threading.Thread | None = None

    def connect(self, descriptors: Sequence[int], options: DeviceOptions) -> None:
        """Connect the device.

        Raises: Busy when it is in use, KernelRefusal, PermissionDenied.
        """
        for descriptor in descriptors:
            self._set(NBD_SET_SOCK, descriptor)
        self._set(NBD_SET_BLKSIZE, options.block_bytes)
        self._set(NBD_SET_SIZE_BLOCKS, options.size_bytes // options.block_bytes)
        self._set(NBD_SET_FLAGS, options.server_flags)
        self._set(NBD_SET_TIMEOUT, options.timeout_s)
        self._thread = threading.Thread(target=self._stay, name=f"{self._path} in the kernel")
        self._thread.daemon = True
        self._thread.start()

    def resize(self, size_bytes: int, block_bytes: int) -> None:
        """Tell the device its new size.  Raises: KernelRefusal."""
        self._set(NBD_SET_SIZE_BLOCKS, size_bytes // block_bytes)

    def disconnect(self) -> None:
        """Take the device's sockets away.  Raises: KernelRefusal."""
        self._set(NBD_DISCONNECT, 0)

    def close(self) -> None:
        """Give the device's node back; the device is gone when its sockets are."""
        os.close(self._fd)

    def _stay(self) -> None:
        """Be the process that the driver works in, until the device is disconnected."""
        try:
            fcntl.ioctl(self._fd, NBD_DO_IT)
        except OSError as ended:
            log.info("device.ended", device=self._path, reason=str(ended))
        try:
            fcntl.ioctl(self._fd, NBD_CLEAR_SOCK)
        except OSError as refused:
            log.debug("device.not_cleared", device=self._path, error=str(refused))

    def _set(self, request: int, value: int) -> None:
        self._try(lambda: fcntl.ioctl(self._fd, request, value), f"ioctl {request:#x} of {value}")

    def _try(self, call: Callable[[], int], what: str) -> int:
        try:
            return call()
        except OSError as failure:
            number = failure.errno or errno.EIO
            if number == errno.EBUSY:
                raise Busy(f"{self._path} is in use by somebody else") from failure
            if number in (errno.EPERM, errno.EACCES):
                raise PermissionDenied(
                    f"{self._path}: {what}: {os.strerror(number)}", hint="run it as root"
                ) from failure
            message = f"{self._path}: {what}: {os.strerror(number)}"
            raise KernelRefusal(message, number=number) from failure
