"""The whole exception tree of torus.

Decides, once for the whole project, what an error means outside Python: the process exit
code, the NBD error number, the wire code of the peer protocol, and whether asking again may
help.  Nothing else maps errors.  The table in docs/operations.md is compared with this
module by tests/tidy.

A message says what failed, on which thing, what was expected and what was found.  ``hint``
says what the operator can do next; people see both, clients and peers only the message.
"""

import errno as _errno


class TorusError(Exception):
    """Base of every error that torus raises on purpose."""

    code = "error"
    exit_code = 1
    nbd_errno = _errno.EIO
    wire_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TorusError):
    """The command line or a request's argument cannot be meant."""

    code = "usage"
    exit_code = 64
    nbd_errno = _errno.EINVAL
    wire_code = 2


class ConfigError(TorusError):
    """A configuration file or environment variable is wrong."""

    code = "config"
    exit_code = 78
    nbd_errno = _errno.EINVAL
    wire_code = 3


class NotFound(TorusError):
    """A named thing does not exist."""

    code = "not-found"
    exit_code = 5
    nbd_errno = _errno.ENOENT
    wire_code = 4


class AlreadyExists(TorusError):
    """A thing of that name exists already."""

    code = "exists"
    exit_code = 3
    nbd_errno = _errno.EEXIST
    wire_code = 5


class Busy(TorusError):
    """The thing is in use by someone else: attached, locked, being deleted."""

    code = "busy"
    exit_code = 75
    nbd_errno = _errno.EBUSY
    wire_code = 6
    retryable = True


class PoolFull(TorusError):
    """No slot is free for new data, or the host file system is full."""

    code = "full"
    exit_code = 4
    nbd_errno = _errno.ENOSPC
    wire_code = 7
    retryable = True


class DiskFailed(TorusError):
    """A write or an fdatasync failed: this disk takes no more data and promises nothing."""

    code = "disk-failed"
    exit_code = 74
    wire_code = 8


class Fenced(TorusError):
    """A newer epoch of the volume exists: this writer has lost the volume and must stop."""

    code = "fenced"
    exit_code = 76
    nbd_errno = _errno.ESHUTDOWN
    wire_code = 9


class Unavailable(TorusError):
    """A node or the metadata store cannot be reached; the answer is unknown, not 'no'."""

    code = "unavailable"
    exit_code = 69
    wire_code = 10
    retryable = True


class TimedOut(Unavailable):
    """A deadline passed before the answer came."""

    code = "timeout"
    exit_code = 124
    wire_code = 11


class Corruption(TorusError):
    """Bytes are not what a checksum, an identity or a format says they must be."""

    code = "corrupt"
    exit_code = 65
    wire_code = 12


class ForeignData(Corruption):
    """The data belongs to another cluster, disk or volume."""

    code = "foreign"
    wire_code = 13


class UnknownVersion(TorusError):
    """A file, record or peer has a format version that this torus does not know."""

    code = "version"
    exit_code = 70
    wire_code = 14


class PermissionDenied(TorusError):
    """The operating system or a read-only export refuses."""

    code = "permission"
    exit_code = 77
    nbd_errno = _errno.EPERM
    wire_code = 15


class LocalProtocolError(TorusError):
    """This side tried to send what the protocol forbids: a bug in torus."""

    code = "local-protocol"
    exit_code = 70
    wire_code = 16


class RemoteProtocolError(TorusError):
    """The other side sent what the protocol forbids; its connection ends."""

    code = "remote-protocol"
    exit_code = 76
    nbd_errno = _errno.EINVAL
    wire_code = 17


class ShuttingDown(TorusError):
    """The process is stopping and takes no new work."""

    code = "shutdown"
    exit_code = 75
    nbd_errno = _errno.ESHUTDOWN
    wire_code = 18
    retryable = True


class Interrupted(TorusError):
    """A person or a signal ended the command before it was done."""

    code = "interrupted"
    exit_code = 130
    wire_code = 19
