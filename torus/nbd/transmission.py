"""The rules of the transmission phase: why requests are refused, which error means what.

The rules run compiled, in ``RequestBatch.judge`` of torus/_fast/frame.pyx, once per request and
before anything else sees it.  ``validate_request`` is the same table in Python: tests hold the two
against each other, and ``explain`` takes the message of a refusal from it.

| rule, in this order                                                  | error   |
|----------------------------------------------------------------------|---------|
| DISC is always accepted                                              | -       |
| the command is not known                                             | EINVAL  |
| a flag is not documented for the command; FUA is allowed on all      | EINVAL  |
| extended headers: a WRITE without PAYLOAD_LEN                        | EINVAL  |
| FLUSH with an offset or a length                                     | EINVAL  |
| BLOCK_STATUS although no metadata context was selected               | EINVAL  |
| WRITE, TRIM, WRITE_ZEROES on a read-only export                      | EPERM   |
| length is zero                                                       | EINVAL  |
| offset or length is no multiple of 512                               | EINVAL  |
| READ or WRITE of more than the announced maximum                     | EINVAL  |
| past the end: WRITE, WRITE_ZEROES                                    | ENOSPC  |
| past the end: any other                                              | EINVAL  |
| WRITE_ZEROES, FAST_ZERO with NO_HOLE: allocating is as slow as writing | ENOTSUP |

A refused payload is read and dropped.  A wrong magic number, or a payload larger than can be
dropped (twice the maximum; the maximum with extended headers), ends the connection.
"""

import errno
from dataclasses import dataclass

from torus.errors import TorusError
from torus.limits import NBD_REQUEST_BYTES_MAX, SECTOR_BYTES
from torus.nbd.constants import (
    COMMAND_NAMES,
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_DISC,
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLAG_PAYLOAD_LEN,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES,
    NBD_EINVAL,
    NBD_EIO,
    NBD_ENOMEM,
    NBD_ENOSPC,
    NBD_ENOTSUP,
    NBD_EOVERFLOW,
    NBD_EPERM,
    NBD_ESHUTDOWN,
)

_NBD_ERRORS = {
    errno.EPERM: NBD_EPERM,
    errno.EACCES: NBD_EPERM,
    errno.EROFS: NBD_EPERM,
    errno.EIO: NBD_EIO,
    errno.ENOMEM: NBD_ENOMEM,
    errno.EINVAL: NBD_EINVAL,
    errno.ENOSPC: NBD_ENOSPC,
    errno.EDQUOT: NBD_ENOSPC,
    errno.EFBIG: NBD_ENOSPC,
    errno.EOVERFLOW: NBD_EOVERFLOW,
    errno.EOPNOTSUPP: NBD_ENOTSUP,
    errno.ESHUTDOWN: NBD_ESHUTDOWN,
}


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What the handshake agreed on, as far as it decides which requests are legal."""

    size_bytes: int
    read_only: bool = False
    structured: bool = False
    extended: bool = False
    contexts: bool = False


def nbd_error(failure: TorusError) -> int:
    """Return the NBD error of a failure: the nearest in the protocol's set, else EIO."""
    return _NBD_ERRORS.get(failure.nbd_errno, NBD_EIO)


def command_name(command: int) -> str:
    """Return a command's name for messages and counters, ``unknown`` if it has none."""
    return COMMAND_NAMES[command] if command < len(COMMAND_NAMES) else "unknown"


def validate_request(
    terms: SessionTerms, command: int, flags: int, offset: int, length: int
) -> tuple[int, str]:
    """Return (0, "") for a legal request, else the NBD error and the reason."""
    if command == NBD_CMD_DISC:
        return 0, ""
    if command >= len(COMMAND_NAMES):
        return NBD_EINVAL, f"command {command} is not known"
    name = COMMAND_NAMES[command]
    unknown = flags & ~_allowed_flags(terms, command)
    if unknown:
        return NBD_EINVAL, f"flags {unknown:#x} are not allowed on {name}"
    if command == NBD_CMD_WRITE and terms.extended and not flags & NBD_CMD_FLAG_PAYLOAD_LEN:
        return NBD_EINVAL, "write with extended headers needs the flag PAYLOAD_LEN"
    if command == NBD_CMD_FLUSH:
        if offset or length:
            return NBD_EINVAL, "flush takes neither an offset nor a length"
        return 0, ""
    if command == NBD_CMD_BLOCK_STATUS and not terms.contexts:
        return NBD_EINVAL, "block status needs a metadata context, none was selected"
    writes = command in (NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES)
    if terms.read_only and writes:
        return NBD_EPERM, "the export is read-only"
    return _judge_range(terms, command, flags, offset, length)


def _allowed_flags(terms: SessionTerms, command: int) -> int:
    allowed = NBD_CMD_FLAG_FUA
    if command == NBD_CMD_READ and (terms.structured or terms.extended):
        allowed |= NBD_CMD_FLAG_DF
    elif command == NBD_CMD_WRITE and terms.extended:
        allowed |= NBD_CMD_FLAG_PAYLOAD_LEN
    elif command == NBD_CMD_WRITE_ZEROES:
        allowed |= NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO
    elif command == NBD_CMD_BLOCK_STATUS:
        allowed |= NBD_CMD_FLAG_REQ_ONE
    return allowed


def _judge_range(
    terms: SessionTerms, command: int, flags: int, offset: int, length: int
) -> tuple[int, str]:
    name = COMMAND_NAMES[command]
    if not length:
        return NBD_EINVAL, f"{name} of no bytes"
    if (offset | length) % SECTOR_BYTES:
        return NBD_EINVAL, (
            f"{name} of {length} bytes at {offset} is not aligned to {SECTOR_BYTES} bytes"
        )
    if command <= NBD_CMD_WRITE and length > NBD_REQUEST_BYTES_MAX:
        return NBD_EINVAL, f"{name} of {length} bytes, the most is {NBD_REQUEST_BYTES_MAX}"
    if offset + length > terms.size_bytes:
        error = NBD_ENOSPC if command in (NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES) else NBD_EINVAL
        return error, (
            f"{name} of {length} bytes at {offset} is past the end at {terms.size_bytes}"
        )
    if flags & NBD_CMD_FLAG_FAST_ZERO and flags & NBD_CMD_FLAG_NO_HOLE:
        return NBD_ENOTSUP, "allocating zeroes is not faster than writing them"
    return 0, ""


def explain(terms: SessionTerms, command: int, flags: int, offset: int, length: int) -> str:
    """Return the reason for which a refused request was refused, for people to read."""
    reason = validate_request(terms, command, flags, offset, length)[1]
    return reason or f"{command_name(command)} was refused"
