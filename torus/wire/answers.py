"""The body of every answer of the peer protocol, packed and unpacked.

Decides the layout of each body and refuses every byte that does not belong.  Implements
docs/protocol.md, "Messages".
"""

import struct
from collections.abc import Callable

from torus import limits
from torus.wire import messages as m
from torus.wire.fields import (
    COUNT,
    Packed,
    check,
    exact,
    no_token,
    pack_chunks,
    pack_json,
    read_json,
    read_text,
    text,
    unpack_chunks,
)
from torus.wire.frames import Header
from torus.wire.messages import Message, MessageType

_BOOT = struct.Struct("<Q")
_SCANNED = struct.Struct("<II")
_LISTED = struct.Struct("<II")
_SPACE = struct.Struct("<IIIII")
_STATUS = struct.Struct("<QIIIIIII")
_REOPENED = struct.Struct("<QQIII")
_EXAMINED = struct.Struct("<IIII")

_Boot = m.Opened | m.Appended | m.Synced | m.Fenced | m.Installed | m.Pong


def _pack_boot(answer: _Boot) -> Packed:
    return 0, 0, [_BOOT.pack(answer.boot_id)]


def _boot_decoder(make: Callable[[int], Message]) -> Callable[[Header, memoryview], Message]:
    def unpack(header: Header, body: memoryview) -> Message:
        no_token(header)
        return make(exact(_BOOT, body)[0])

    return unpack


def _pack_read_done(answer: m.ReadDone) -> Packed:
    sizes = [len(piece) for piece in answer.pieces]
    return 0, 0, [struct.pack(f"<I{len(sizes)}I", len(sizes), *sizes), *answer.pieces]


def _unpack_read_done(header: Header, body: memoryview) -> m.ReadDone:
    no_token(header)
    (count,) = COUNT.unpack_from(body)
    check(count <= limits.PEER_READS_MAX, f"{count} pieces")
    sizes = struct.unpack_from(f"<{count}I", body, COUNT.size)
    at = COUNT.size * (1 + count)
    check(len(body) == at + sum(sizes), f"{len(body)} bytes for pieces of {sum(sizes)}")
    pieces = []
    for size in sizes:
        pieces.append(body[at : at + size])
        at += size
    return m.ReadDone(tuple(pieces))


def _pack_scanned(answer: m.Scanned) -> Packed:
    if answer.content is None:
        return 0, 0, [_SCANNED.pack(0, 0)]
    return 0, 0, [_SCANNED.pack(1, 0), answer.content]


def _unpack_scanned(header: Header, body: memoryview) -> m.Scanned:
    no_token(header)
    found, zero = _SCANNED.unpack_from(body)
    content = body[_SCANNED.size :]
    check(found <= 1 and not zero and (found == 1 or not content), "unknown flags")
    return m.Scanned(content if found else None)


def _pack_deleted(answer: m.Deleted) -> Packed:
    return 0, 0, [COUNT.pack(answer.count)]


def _unpack_deleted(header: Header, body: memoryview) -> m.Deleted:
    no_token(header)
    return m.Deleted(*exact(COUNT, body))


def _pack_listed(answer: m.Listed) -> Packed:
    return 0, 0, [_LISTED.pack(len(answer.chunks), answer.more) + pack_chunks(answer.chunks)]


def _unpack_listed(header: Header, body: memoryview) -> m.Listed:
    no_token(header)
    count, more = _LISTED.unpack_from(body)
    check(more <= 1 and (count > 0 or not more), "unknown flags")
    return m.Listed(unpack_chunks(count, body[_LISTED.size :]), bool(more))


def _space_fields(space: m.SpaceIs) -> tuple[int, int, int, int, int]:
    return space.limit, space.used, space.reserve, space.quarantined, space.slot_bytes


def _pack_space_is(answer: m.SpaceIs) -> Packed:
    return 0, 0, [_SPACE.pack(*_space_fields(answer))]


def _unpack_space_is(header: Header, body: memoryview) -> m.SpaceIs:
    no_token(header)
    return m.SpaceIs(*exact(_SPACE, body))


def _pack_status_is(answer: m.StatusIs) -> Packed:
    failure = text(answer.failure)
    fixed = _STATUS.pack(
        answer.boot_id, *_space_fields(answer.space), answer.damaged_slots, len(failure)
    )
    return 0, 0, [fixed + failure]


def _unpack_status_is(header: Header, body: memoryview) -> m.StatusIs:
    no_token(header)
    boot_id, *space, damaged, failure_bytes = _STATUS.unpack_from(body)
    rest = body[_STATUS.size :]
    check(len(rest) == failure_bytes, "its text has another size")
    return m.StatusIs(boot_id, m.SpaceIs(*space), damaged, read_text(rest))


def _pack_reopened(answer: m.Reopened) -> Packed:
    body = _REOPENED.pack(
        answer.boot_id, answer.lsn, answer.next_index, answer.end, answer.found
    )  # fmt: skip
    return 0, 0, [body]


def _unpack_reopened(header: Header, body: memoryview) -> m.Reopened:
    no_token(header)
    boot_id, lsn, next_index, end, found = exact(_REOPENED, body)
    check(found <= 1 and (found == 1 or not (lsn or next_index or end)), "unknown flags")
    return m.Reopened(boot_id, bool(found), next_index, end, lsn)


def _pack_examined(answer: m.Examined) -> Packed:
    copies = [_EXAMINED.pack(*copy) for copy in answer.copies]
    return 0, 0, [COUNT.pack(len(copies)) + b"".join(copies)]


def _unpack_examined(header: Header, body: memoryview) -> m.Examined:
    no_token(header)
    (count,) = COUNT.unpack_from(body)
    rest = body[COUNT.size :]
    check(count <= limits.PEER_EXAMINE_CHUNKS_MAX, f"{count} chunks")
    check(len(rest) == count * _EXAMINED.size, f"{len(rest)} bytes for {count} chunks")
    copies = tuple(_EXAMINED.iter_unpack(rest))
    for state, end, records, crc in copies:
        check(state <= 2 and (state == 1 or not (end or records or crc)), f"state {state}")
    return m.Examined(copies)


def _pack_reported(answer: m.Reported) -> Packed:
    return pack_json(answer.answer)


def _unpack_reported(header: Header, body: memoryview) -> m.Reported:
    return m.Reported(read_json(header, body))


_T = MessageType
ANSWERS: tuple[
    tuple[MessageType, type, Callable[..., Packed], Callable[[Header, memoryview], Message]], ...
] = (
    (_T.OPENED, m.Opened, _pack_boot, _boot_decoder(m.Opened)),
    (_T.APPENDED, m.Appended, _pack_boot, _boot_decoder(m.Appended)),
    (_T.SYNCED, m.Synced, _pack_boot, _boot_decoder(m.Synced)),
    (_T.READ_DONE, m.ReadDone, _pack_read_done, _unpack_read_done),
    (_T.FENCED, m.Fenced, _pack_boot, _boot_decoder(m.Fenced)),
    (_T.SCANNED, m.Scanned, _pack_scanned, _unpack_scanned),
    (_T.DELETED, m.Deleted, _pack_deleted, _unpack_deleted),
    (_T.LISTED, m.Listed, _pack_listed, _unpack_listed),
    (_T.SPACE_IS, m.SpaceIs, _pack_space_is, _unpack_space_is),
    (_T.STATUS_IS, m.StatusIs, _pack_status_is, _unpack_status_is),
    (_T.REOPENED, m.Reopened, _pack_reopened, _unpack_reopened),
    (_T.INSTALLED, m.Installed, _pack_boot, _boot_decoder(m.Installed)),
    (_T.EXAMINED, m.Examined, _pack_examined, _unpack_examined),
    (_T.PONG, m.Pong, _pack_boot, _boot_decoder(m.Pong)),
    (_T.REPORTED, m.Reported, _pack_reported, _unpack_reported),
)
