"""The body of every message of the peer protocol, packed and unpacked.

Decides the layout of each body and refuses every byte that does not belong: sizes, counts,
reserved fields and texts are checked before anything is made of them.  Implements
docs/protocol.md, "Messages".
"""

import struct
from collections.abc import Callable, Sequence

from torus import limits
from torus.errors import LocalProtocolError, RemoteProtocolError
from torus.ids import CHUNK_ID_SIZE, ChunkId
from torus.wire import messages as m
from torus.wire.frames import Header
from torus.wire.messages import Buffer, Message, MessageType

_CHUNK = struct.Struct("<QIHI")
_HELLO = struct.Struct("<16s16sQIIIII16s32s")
_ERROR = struct.Struct("<HHI")
_PROOF = struct.Struct("<32s")
_OPEN = struct.Struct("<QIHIBB")
_APPEND = struct.Struct("<QIHIHIII")  # 32 bytes: the record behind it stays aligned
_READ = struct.Struct("<QIHIII")
_SCAN = struct.Struct("<QIHIHI")
_LIST = struct.Struct("<IIQIHIH")
_COUNT = struct.Struct("<I")
_BOOT = struct.Struct("<Q")
_SCANNED = struct.Struct("<II")
_LISTED = struct.Struct("<II")
_SPACE = struct.Struct("<IIIII")
_STATUS = struct.Struct("<QIIIIIII")
_REOPEN = struct.Struct("<QIHIH")
_INSTALL = struct.Struct("<QIHIHI")
_EXAMINE = struct.Struct("<II")
_REOPENED = struct.Struct("<QQIII")
_EXAMINED = struct.Struct("<IIII")
assert _APPEND.size == 32


class Malformed(Exception):
    """A body that is not what its type says."""


Packed = tuple[int, int, Sequence[Buffer]]  # volume and epoch of the token, the body's pieces


def _check(right: bool, what: str) -> None:
    if not right:
        raise Malformed(what)


def _exact(layout: struct.Struct, body: memoryview) -> tuple[int, ...]:
    _check(len(body) == layout.size, f"{len(body)} bytes where {layout.size} are due")
    return layout.unpack(body)


def _no_token(header: Header) -> None:
    _check(not header.volume and not header.epoch, "it takes no fence token")


# --- texts and lists ----------------------------------------------------------------------


def _text(text: str) -> bytes:
    """Return text as bytes, cut to the bound between two characters."""
    data = text.encode(errors="replace")[: limits.PEER_TEXT_BYTES_MAX]
    return data.decode(errors="ignore").encode()


def _read_text(data: memoryview) -> str:
    _check(len(data) <= limits.PEER_TEXT_BYTES_MAX, f"text of {len(data)} bytes")
    return bytes(data).decode()


def _pack_chunks(chunks: Sequence[ChunkId]) -> bytes:
    if len(chunks) > limits.PEER_CHUNKS_MAX:
        raise LocalProtocolError(
            f"{len(chunks)} chunks in a message, the most is {limits.PEER_CHUNKS_MAX}"
        )
    return b"".join([_CHUNK.pack(*chunk) for chunk in chunks])


def _unpack_chunks(count: int, body: memoryview) -> tuple[ChunkId, ...]:
    _check(count <= limits.PEER_CHUNKS_MAX, f"{count} chunks")
    _check(len(body) == count * CHUNK_ID_SIZE, f"{len(body)} bytes for {count} chunks")
    return tuple([ChunkId(*fields) for fields in _CHUNK.iter_unpack(body)])


# --- hello and errors ---------------------------------------------------------------------


def _pack_hello(hello: m.Hello) -> Packed:
    name = _text(hello.name)
    fixed = _HELLO.pack(
        hello.cluster_id, hello.disk_id, hello.boot_id, hello.slot_bytes,
        hello.frame_bytes_max, hello.in_flight_bytes_max, hello.in_flight_requests_max, len(name),
        hello.nonce, hello.proof,
    )  # fmt: skip
    return 0, 0, [fixed + name]


def _unpack_hello(header: Header, body: memoryview) -> m.Hello:
    _no_token(header)
    *fields, name_bytes, nonce, proof = _HELLO.unpack_from(body)
    cluster, disk, boot_id, slot, frame, in_flight, requests = fields
    rest = body[_HELLO.size :]
    _check(len(rest) == name_bytes, "its name has another size")
    name = _read_text(rest)
    return m.Hello(
        cluster, disk, boot_id, slot, frame, in_flight, requests, name, nonce, proof
    )  # fmt: skip


def _pack_proof(proof: m.Proof) -> Packed:
    return 0, 0, [_PROOF.pack(proof.proof)]


def _unpack_proof(header: Header, body: memoryview) -> m.Proof:
    _no_token(header)
    _check(len(body) == _PROOF.size, f"proof of {len(body)} bytes")
    return m.Proof(bytes(body))


def _pack_error(error: m.Error) -> Packed:
    message, hint = _text(error.message), _text(error.hint or "")
    return 0, 0, [_ERROR.pack(error.wire_code, len(hint), len(message)) + message + hint]


def _unpack_error(header: Header, body: memoryview) -> m.Error:
    _no_token(header)
    code, hint_bytes, message_bytes = _ERROR.unpack_from(body)
    rest = body[_ERROR.size :]
    _check(len(rest) == message_bytes + hint_bytes, "its texts have other sizes")
    hint = _read_text(rest[message_bytes:])
    return m.Error(code, _read_text(rest[:message_bytes]), hint or None)


# --- requests -----------------------------------------------------------------------------


def _pack_open(request: m.Open) -> Packed:
    chunk = request.chunk
    return chunk.volume, chunk.epoch, [_OPEN.pack(*chunk, request.from_reserve, 0)]


def _unpack_open(header: Header, body: memoryview) -> m.Open:
    *fields, from_reserve, zero = _exact(_OPEN, body)
    _check(from_reserve <= 1 and not zero, "unknown flags")
    chunk = ChunkId(*fields)
    _check_owner(header, chunk)
    return m.Open(chunk, bool(from_reserve))


def _check_owner(header: Header, chunk: ChunkId) -> None:
    _check(
        (header.volume, header.epoch) == chunk[:2],
        f"fence token {header.volume}:{header.epoch} for chunk {chunk}",
    )


def _pack_append(request: m.Append) -> Packed:
    chunk = request.chunk
    place = _APPEND.pack(*chunk, 0, request.index, request.offset, 0)
    return chunk.volume, chunk.epoch, [place, request.record]


def _unpack_append(header: Header, body: memoryview) -> m.Append:
    volume, epoch, tag, sequence, zero, index, offset, zero2 = _APPEND.unpack_from(body)
    _check(not zero and not zero2, "reserved bytes are used")
    _check(len(body) > _APPEND.size, "it has no record")
    chunk = ChunkId(volume, epoch, tag, sequence)
    _check_owner(header, chunk)
    return m.Append(chunk, index, offset, body[_APPEND.size :])


def _pack_sync(request: m.Sync) -> Packed:
    return 0, 0, [_COUNT.pack(len(request.chunks)) + _pack_chunks(request.chunks)]


def _unpack_sync(header: Header, body: memoryview) -> m.Sync:
    _no_token(header)
    (count,) = _COUNT.unpack_from(body)
    return m.Sync(_unpack_chunks(count, body[_COUNT.size :]))


def _pack_read(request: m.Read) -> Packed:
    reads = request.reads
    size = sum([size for _, _, size in reads])
    if len(reads) > limits.PEER_READS_MAX or size > limits.PEER_READ_BYTES_MAX:
        raise LocalProtocolError(
            f"READ of {len(reads)} pieces and {size} bytes, the most is "
            f"{limits.PEER_READS_MAX} and {limits.PEER_READ_BYTES_MAX}"
        )
    pieces = [_READ.pack(*chunk, offset, size) for chunk, offset, size in reads]
    return 0, 0, [_COUNT.pack(len(reads)) + b"".join(pieces)]


def _unpack_read(header: Header, body: memoryview) -> m.Read:
    _no_token(header)
    (count,) = _COUNT.unpack_from(body)
    rest = body[_COUNT.size :]
    _check(count <= limits.PEER_READS_MAX, f"{count} pieces")
    _check(len(rest) == count * _READ.size, f"{len(rest)} bytes for {count} pieces")
    reads = tuple([(ChunkId(*f[:4]), f[4], f[5]) for f in _READ.iter_unpack(rest)])
    total = sum([size for _, _, size in reads])
    _check(total <= limits.PEER_READ_BYTES_MAX, f"it asks for {total} bytes")
    return m.Read(reads)


def check_bounds(request: m.Read | m.Sync) -> None:
    """Refuse a request that was unpacked elsewhere and asks for too much.

    Raises: RemoteProtocolError.
    """
    if isinstance(request, m.Sync):
        right = len(request.chunks) <= limits.PEER_CHUNKS_MAX
    else:
        size = sum([size for _, _, size in request.reads])
        right = len(request.reads) <= limits.PEER_READS_MAX and size <= limits.PEER_READ_BYTES_MAX
    if not right:
        raise RemoteProtocolError(f"{type(request).__name__.upper()} asks for too much")


def _pack_fence(request: m.Fence) -> Packed:
    return request.volume, request.epoch, []


def _unpack_fence(header: Header, body: memoryview) -> m.Fence:
    _check(not body, "it has a body")
    return m.Fence(header.volume, header.epoch)


def _pack_scan(request: m.Scan) -> Packed:
    chunk = request.chunk
    return chunk.volume, request.epoch, [_SCAN.pack(*chunk, 0, request.offset)]


def _unpack_scan(header: Header, body: memoryview) -> m.Scan:
    volume, epoch, tag, sequence, zero, offset = _exact(_SCAN, body)
    _check(not zero, "reserved bytes are used")
    _check(volume == header.volume, f"fence token of volume {header.volume}")
    return m.Scan(ChunkId(volume, epoch, tag, sequence), header.epoch, offset)


def _pack_delete(request: m.Delete) -> Packed:
    body = _COUNT.pack(len(request.chunks)) + _pack_chunks(request.chunks)
    return request.volume, request.epoch, [body]


def _unpack_delete(header: Header, body: memoryview) -> m.Delete:
    (count,) = _COUNT.unpack_from(body)
    chunks = _unpack_chunks(count, body[_COUNT.size :])
    for chunk in chunks:
        _check(chunk.volume == header.volume, f"fence token of volume {header.volume}")
    return m.Delete(header.volume, header.epoch, chunks)


def _pack_list(request: m.List) -> Packed:
    after = request.after or ChunkId(0, 0, 0, 0)
    if request.limit > limits.PEER_CHUNKS_MAX:
        raise LocalProtocolError(f"a page of {request.limit} chunks is too large")
    return request.volume, 0, [_LIST.pack(request.limit, request.after is not None, *after, 0)]


def _unpack_list(header: Header, body: memoryview) -> m.List:
    limit, follows, volume, epoch, tag, sequence, zero = _exact(_LIST, body)
    after = ChunkId(volume, epoch, tag, sequence)
    _check(follows <= 1 and not zero and (follows == 1 or not any(after)), "unknown flags")
    _check(0 < limit <= limits.PEER_CHUNKS_MAX, f"page of {limit} chunks")
    _check(not header.epoch, "it takes no epoch")
    return m.List(header.volume, after if follows else None, limit)


def _pack_reopen(request: m.Reopen) -> Packed:
    chunk = request.chunk
    return chunk.volume, request.epoch, [_REOPEN.pack(*chunk, 0)]


def _unpack_reopen(header: Header, body: memoryview) -> m.Reopen:
    volume, epoch, tag, sequence, zero = _exact(_REOPEN, body)
    _check(not zero, "reserved bytes are used")
    _check(volume == header.volume, f"fence token of volume {header.volume}")
    return m.Reopen(ChunkId(volume, epoch, tag, sequence), header.epoch)


def _pack_install(request: m.Install) -> Packed:
    chunk = request.chunk
    place = _INSTALL.pack(*chunk, 0, request.end)
    return chunk.volume, request.epoch, [place, request.content]


def _unpack_install(header: Header, body: memoryview) -> m.Install:
    volume, epoch, tag, sequence, zero, end = _INSTALL.unpack_from(body)
    _check(not zero, "reserved bytes are used")
    _check(volume == header.volume, f"fence token of volume {header.volume}")
    chunk = ChunkId(volume, epoch, tag, sequence)
    return m.Install(chunk, header.epoch, end, body[_INSTALL.size :])


def _pack_examine(request: m.Examine) -> Packed:
    if len(request.chunks) > limits.PEER_EXAMINE_CHUNKS_MAX:
        raise LocalProtocolError(f"EXAMINE of {len(request.chunks)} chunks is too large")
    fixed = _EXAMINE.pack(len(request.chunks), request.afresh)
    return 0, 0, [fixed + _pack_chunks(request.chunks)]


def _unpack_examine(header: Header, body: memoryview) -> m.Examine:
    _no_token(header)
    count, afresh = _EXAMINE.unpack_from(body)
    _check(afresh <= 1, "unknown flags")
    _check(count <= limits.PEER_EXAMINE_CHUNKS_MAX, f"{count} chunks")
    return m.Examine(_unpack_chunks(count, body[_EXAMINE.size :]), bool(afresh))


def _pack_nothing(_: m.Space | m.Status | m.Ping) -> Packed:
    return 0, 0, []


def _unpack_ping(header: Header, body: memoryview) -> m.Ping:
    _no_token(header)
    _check(not body, "it has a body")
    return m.Ping()


def _pack_json(body: Buffer) -> Packed:
    if len(body) > limits.PEER_REPORT_BYTES_MAX:
        raise LocalProtocolError(f"a report of {len(body)} bytes is too large")
    return 0, 0, [_COUNT.pack(len(body)), body]


def _read_json(header: Header, body: memoryview) -> bytes:
    _no_token(header)
    (size,) = _COUNT.unpack_from(body)
    rest = body[_COUNT.size :]
    _check(size == len(rest) <= limits.PEER_REPORT_BYTES_MAX, f"{len(rest)} bytes, not {size}")
    return bytes(rest)


def _pack_report(request: m.Report) -> Packed:
    return _pack_json(request.question)


def _unpack_report(header: Header, body: memoryview) -> m.Report:
    return m.Report(_read_json(header, body))


def _unpack_space(header: Header, body: memoryview) -> m.Space:
    _no_token(header)
    _check(not body, "it has a body")
    return m.Space()


def _unpack_status(header: Header, body: memoryview) -> m.Status:
    _no_token(header)
    _check(not body, "it has a body")
    return m.Status()


# --- answers ------------------------------------------------------------------------------

_Boot = m.Opened | m.Appended | m.Synced | m.Fenced | m.Installed | m.Pong


def _pack_boot(answer: _Boot) -> Packed:
    return 0, 0, [_BOOT.pack(answer.boot_id)]


def _boot_decoder(make: Callable[[int], Message]) -> Callable[[Header, memoryview], Message]:
    def unpack(header: Header, body: memoryview) -> Message:
        _no_token(header)
        return make(_exact(_BOOT, body)[0])

    return unpack


def _pack_read_done(answer: m.ReadDone) -> Packed:
    sizes = [len(piece) for piece in answer.pieces]
    return 0, 0, [struct.pack(f"<I{len(sizes)}I", len(sizes), *sizes), *answer.pieces]


def _unpack_read_done(header: Header, body: memoryview) -> m.ReadDone:
    _no_token(header)
    (count,) = _COUNT.unpack_from(body)
    _check(count <= limits.PEER_READS_MAX, f"{count} pieces")
    sizes = struct.unpack_from(f"<{count}I", body, _COUNT.size)
    at = _COUNT.size * (1 + count)
    _check(len(body) == at + sum(sizes), f"{len(body)} bytes for pieces of {sum(sizes)}")
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
    _no_token(header)
    found, zero = _SCANNED.unpack_from(body)
    content = body[_SCANNED.size :]
    _check(found <= 1 and not zero and (found == 1 or not content), "unknown flags")
    return m.Scanned(content if found else None)


def _pack_deleted(answer: m.Deleted) -> Packed:
    return 0, 0, [_COUNT.pack(answer.count)]


def _unpack_deleted(header: Header, body: memoryview) -> m.Deleted:
    _no_token(header)
    return m.Deleted(*_exact(_COUNT, body))


def _pack_listed(answer: m.Listed) -> Packed:
    return 0, 0, [_LISTED.pack(len(answer.chunks), answer.more) + _pack_chunks(answer.chunks)]


def _unpack_listed(header: Header, body: memoryview) -> m.Listed:
    _no_token(header)
    count, more = _LISTED.unpack_from(body)
    _check(more <= 1 and (count > 0 or not more), "unknown flags")
    return m.Listed(_unpack_chunks(count, body[_LISTED.size :]), bool(more))


def _space_fields(space: m.SpaceIs) -> tuple[int, int, int, int, int]:
    return space.limit, space.used, space.reserve, space.quarantined, space.slot_bytes


def _pack_space_is(answer: m.SpaceIs) -> Packed:
    return 0, 0, [_SPACE.pack(*_space_fields(answer))]


def _unpack_space_is(header: Header, body: memoryview) -> m.SpaceIs:
    _no_token(header)
    return m.SpaceIs(*_exact(_SPACE, body))


def _pack_status_is(answer: m.StatusIs) -> Packed:
    failure = _text(answer.failure)
    fixed = _STATUS.pack(
        answer.boot_id, *_space_fields(answer.space), answer.damaged_slots, len(failure)
    )
    return 0, 0, [fixed + failure]


def _unpack_status_is(header: Header, body: memoryview) -> m.StatusIs:
    _no_token(header)
    boot_id, *space, damaged, failure_bytes = _STATUS.unpack_from(body)
    rest = body[_STATUS.size :]
    _check(len(rest) == failure_bytes, "its text has another size")
    return m.StatusIs(boot_id, m.SpaceIs(*space), damaged, _read_text(rest))


def _pack_reopened(answer: m.Reopened) -> Packed:
    body = _REOPENED.pack(
        answer.boot_id, answer.lsn, answer.next_index, answer.end, answer.found
    )  # fmt: skip
    return 0, 0, [body]


def _unpack_reopened(header: Header, body: memoryview) -> m.Reopened:
    _no_token(header)
    boot_id, lsn, next_index, end, found = _exact(_REOPENED, body)
    _check(found <= 1 and (found == 1 or not (lsn or next_index or end)), "unknown flags")
    return m.Reopened(boot_id, bool(found), next_index, end, lsn)


def _pack_examined(answer: m.Examined) -> Packed:
    copies = [_EXAMINED.pack(*copy) for copy in answer.copies]
    return 0, 0, [_COUNT.pack(len(copies)) + b"".join(copies)]


def _unpack_examined(header: Header, body: memoryview) -> m.Examined:
    _no_token(header)
    (count,) = _COUNT.unpack_from(body)
    rest = body[_COUNT.size :]
    _check(count <= limits.PEER_EXAMINE_CHUNKS_MAX, f"{count} chunks")
    _check(len(rest) == count * _EXAMINED.size, f"{len(rest)} bytes for {count} chunks")
    copies = tuple(_EXAMINED.iter_unpack(rest))
    for state, end, records, crc in copies:
        _check(state <= 2 and (state == 1 or not (end or records or crc)), f"state {state}")
    return m.Examined(copies)


def _pack_reported(answer: m.Reported) -> Packed:
    return _pack_json(answer.answer)


def _unpack_reported(header: Header, body: memoryview) -> m.Reported:
    return m.Reported(_read_json(header, body))


_T = MessageType
_Decoder = Callable[[Header, memoryview], Message]
_TABLE: tuple[tuple[MessageType, type, Callable[..., Packed], _Decoder], ...] = (
    (_T.HELLO, m.Hello, _pack_hello, _unpack_hello),
    (_T.ERROR, m.Error, _pack_error, _unpack_error),
    (_T.PROOF, m.Proof, _pack_proof, _unpack_proof),
    (_T.OPEN, m.Open, _pack_open, _unpack_open),
    (_T.APPEND, m.Append, _pack_append, _unpack_append),
    (_T.SYNC, m.Sync, _pack_sync, _unpack_sync),
    (_T.READ, m.Read, _pack_read, _unpack_read),
    (_T.FENCE, m.Fence, _pack_fence, _unpack_fence),
    (_T.SCAN, m.Scan, _pack_scan, _unpack_scan),
    (_T.DELETE, m.Delete, _pack_delete, _unpack_delete),
    (_T.LIST, m.List, _pack_list, _unpack_list),
    (_T.SPACE, m.Space, _pack_nothing, _unpack_space),
    (_T.STATUS, m.Status, _pack_nothing, _unpack_status),
    (_T.REOPEN, m.Reopen, _pack_reopen, _unpack_reopen),
    (_T.INSTALL, m.Install, _pack_install, _unpack_install),
    (_T.EXAMINE, m.Examine, _pack_examine, _unpack_examine),
    (_T.PING, m.Ping, _pack_nothing, _unpack_ping),
    (_T.REPORT, m.Report, _pack_report, _unpack_report),
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
ENCODERS = {made: (kind, pack) for kind, made, pack, _ in _TABLE}
DECODERS = {int(kind): (kind.name, unpack) for kind, _, _, unpack in _TABLE}
