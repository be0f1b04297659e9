"""The body of every hello, error and request of the peer protocol, packed and unpacked.

Decides the layout of each body and refuses every byte that does not belong: sizes, counts,
reserved fields and texts are checked before anything is made of them.  Implements
docs/protocol.md, "Messages".
"""

import struct
from collections.abc import Callable

from torus import limits
from torus.errors import LocalProtocolError, RemoteProtocolError
from torus.ids import ChunkId, volume_of
from torus.wire import messages as m
from torus.wire.answers import ANSWERS
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

_HELLO = struct.Struct("<16s16sQIIIII16s32s")
_ERROR = struct.Struct("<HHI")
_PROOF = struct.Struct("<32s")
_OPEN = struct.Struct("<QIHIBB")
_APPEND = struct.Struct("<QIHIHIII")  # 32 bytes: the record behind it stays aligned
_READ = struct.Struct("<QIHIII")
_SCAN = struct.Struct("<QIHIHI")
_LIST = struct.Struct("<IIQIHIH")
_REOPEN = struct.Struct("<QIHIH")
_INSTALL = struct.Struct("<QIHIHI")
_EXAMINE = struct.Struct("<II")
assert _APPEND.size == 32


# --- hello and errors ---------------------------------------------------------------------


def _pack_hello(hello: m.Hello) -> Packed:
    name = text(hello.name)
    fixed = _HELLO.pack(
        hello.cluster_id, hello.disk_id, hello.boot_id, hello.slot_bytes,
        hello.frame_bytes_max, hello.in_flight_bytes_max, hello.in_flight_requests_max, len(name),
        hello.nonce, hello.proof,
    )  # fmt: skip
    return 0, 0, [fixed + name]


def _unpack_hello(header: Header, body: memoryview) -> m.Hello:
    no_token(header)
    *fields, name_bytes, nonce, proof = _HELLO.unpack_from(body)
    cluster, disk, boot_id, slot, frame, in_flight, requests = fields
    rest = body[_HELLO.size :]
    check(len(rest) == name_bytes, "its name has another size")
    name = read_text(rest)
    return m.Hello(
        cluster, disk, boot_id, slot, frame, in_flight, requests, name, nonce, proof
    )  # fmt: skip


def _pack_proof(proof: m.Proof) -> Packed:
    return 0, 0, [_PROOF.pack(proof.proof)]


def _unpack_proof(header: Header, body: memoryview) -> m.Proof:
    no_token(header)
    check(len(body) == _PROOF.size, f"proof of {len(body)} bytes")
    return m.Proof(bytes(body))


def _pack_error(error: m.Error) -> Packed:
    message, hint = text(error.message), text(error.hint or "")
    return 0, 0, [_ERROR.pack(error.wire_code, len(hint), len(message)) + message + hint]


def _unpack_error(header: Header, body: memoryview) -> m.Error:
    no_token(header)
    code, hint_bytes, message_bytes = _ERROR.unpack_from(body)
    rest = body[_ERROR.size :]
    check(len(rest) == message_bytes + hint_bytes, "its texts have other sizes")
    hint = read_text(rest[message_bytes:])
    return m.Error(code, read_text(rest[:message_bytes]), hint or None)


# --- requests -----------------------------------------------------------------------------


def _pack_open(request: m.Open) -> Packed:
    chunk = request.chunk
    return chunk.volume, chunk.epoch, [_OPEN.pack(*chunk, request.from_reserve, 0)]


def _unpack_open(header: Header, body: memoryview) -> m.Open:
    *fields, from_reserve, zero = exact(_OPEN, body)
    check(from_reserve <= 1 and not zero, "unknown flags")
    chunk = ChunkId(*fields)
    _check_owner(header, chunk)
    return m.Open(chunk, bool(from_reserve))


def _check_owner(header: Header, chunk: ChunkId) -> None:
    check(
        (header.volume, header.epoch) == chunk[:2],
        f"fence token {header.volume}:{header.epoch} for chunk {chunk}",
    )


def _pack_append(request: m.Append) -> Packed:
    chunk = request.chunk
    place = _APPEND.pack(*chunk, 0, request.index, request.offset, 0)
    return chunk.volume, chunk.epoch, [place, request.record]


def _unpack_append(header: Header, body: memoryview) -> m.Append:
    volume, epoch, tag, sequence, zero, index, offset, zero2 = _APPEND.unpack_from(body)
    check(not zero and not zero2, "reserved bytes are used")
    check(len(body) > _APPEND.size, "it has no record")
    chunk = ChunkId(volume, epoch, tag, sequence)
    _check_owner(header, chunk)
    return m.Append(chunk, index, offset, body[_APPEND.size :])


def _pack_sync(request: m.Sync) -> Packed:
    return 0, 0, [COUNT.pack(len(request.chunks)) + pack_chunks(request.chunks)]


def _unpack_sync(header: Header, body: memoryview) -> m.Sync:
    no_token(header)
    (count,) = COUNT.unpack_from(body)
    return m.Sync(unpack_chunks(count, body[COUNT.size :]))


def _pack_read(request: m.Read) -> Packed:
    reads = request.reads
    size = sum([size for _, _, size in reads])
    if len(reads) > limits.PEER_READS_MAX or size > limits.PEER_READ_BYTES_MAX:
        raise LocalProtocolError(
            f"READ of {len(reads)} pieces and {size} bytes, the most is "
            f"{limits.PEER_READS_MAX} and {limits.PEER_READ_BYTES_MAX}"
        )
    pieces = [_READ.pack(*chunk, offset, size) for chunk, offset, size in reads]
    return 0, 0, [COUNT.pack(len(reads)) + b"".join(pieces)]


def _unpack_read(header: Header, body: memoryview) -> m.Read:
    no_token(header)
    (count,) = COUNT.unpack_from(body)
    rest = body[COUNT.size :]
    check(count <= limits.PEER_READS_MAX, f"{count} pieces")
    check(len(rest) == count * _READ.size, f"{len(rest)} bytes for {count} pieces")
    reads = tuple([(ChunkId(*f[:4]), f[4], f[5]) for f in _READ.iter_unpack(rest)])
    total = sum([size for _, _, size in reads])
    check(total <= limits.PEER_READ_BYTES_MAX, f"it asks for {total} bytes")
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
    check(not body, "it has a body")
    return m.Fence(header.volume, header.epoch)


def _pack_scan(request: m.Scan) -> Packed:
    chunk = request.chunk
    return chunk.volume, request.epoch, [_SCAN.pack(*chunk, 0, request.offset)]


def _unpack_scan(header: Header, body: memoryview) -> m.Scan:
    volume, epoch, tag, sequence, zero, offset = exact(_SCAN, body)
    check(not zero, "reserved bytes are used")
    check(volume == header.volume, f"fence token of volume {header.volume}")
    return m.Scan(ChunkId(volume, epoch, tag, sequence), header.epoch, offset)


def _pack_delete(request: m.Delete) -> Packed:
    body = COUNT.pack(len(request.chunks)) + pack_chunks(request.chunks)
    return request.volume, request.epoch, [body]


def _unpack_delete(header: Header, body: memoryview) -> m.Delete:
    (count,) = COUNT.unpack_from(body)
    chunks = unpack_chunks(count, body[COUNT.size :])
    token = ChunkId(header.volume, 0, 0, 0)
    for chunk in chunks:
        check(volume_of(chunk) == volume_of(token), f"fence token of volume {header.volume}")
    return m.Delete(header.volume, header.epoch, chunks)


def _pack_list(request: m.List) -> Packed:
    after = request.after or ChunkId(0, 0, 0, 0)
    if request.limit > limits.PEER_CHUNKS_MAX:
        raise LocalProtocolError(f"a page of {request.limit} chunks is too large")
    return request.volume, 0, [_LIST.pack(request.limit, request.after is not None, *after, 0)]


def _unpack_list(header: Header, body: memoryview) -> m.List:
    limit, follows, volume, epoch, tag, sequence, zero = exact(_LIST, body)
    after = ChunkId(volume, epoch, tag, sequence)
    check(follows <= 1 and not zero and (follows == 1 or not any(after)), "unknown flags")
    check(0 < limit <= limits.PEER_CHUNKS_MAX, f"page of {limit} chunks")
    check(not header.epoch, "it takes no epoch")
    return m.List(header.volume, after if follows else None, limit)


def _pack_reopen(request: m.Reopen) -> Packed:
    chunk = request.chunk
    return chunk.volume, request.epoch, [_REOPEN.pack(*chunk, 0)]


def _unpack_reopen(header: Header, body: memoryview) -> m.Reopen:
    volume, epoch, tag, sequence, zero = exact(_REOPEN, body)
    check(not zero, "reserved bytes are used")
    check(volume == header.volume, f"fence token of volume {header.volume}")
    return m.Reopen(ChunkId(volume, epoch, tag, sequence), header.epoch)


def _pack_install(request: m.Install) -> Packed:
    chunk = request.chunk
    place = _INSTALL.pack(*chunk, 0, request.end)
    return chunk.volume, request.epoch, [place, request.content]


def _unpack_install(header: Header, body: memoryview) -> m.Install:
    volume, epoch, tag, sequence, zero, end = _INSTALL.unpack_from(body)
    check(not zero, "reserved bytes are used")
    check(volume == header.volume, f"fence token of volume {header.volume}")
    chunk = ChunkId(volume, epoch, tag, sequence)
    return m.Install(chunk, header.epoch, end, body[_INSTALL.size :])


def _pack_examine(request: m.Examine) -> Packed:
    if len(request.chunks) > limits.PEER_EXAMINE_CHUNKS_MAX:
        raise LocalProtocolError(f"EXAMINE of {len(request.chunks)} chunks is too large")
    fixed = _EXAMINE.pack(len(request.chunks), request.afresh)
    return 0, 0, [fixed + pack_chunks(request.chunks)]


def _unpack_examine(header: Header, body: memoryview) -> m.Examine:
    no_token(header)
    count, afresh = _EXAMINE.unpack_from(body)
    check(afresh <= 1, "unknown flags")
    check(count <= limits.PEER_EXAMINE_CHUNKS_MAX, f"{count} chunks")
    return m.Examine(unpack_chunks(count, body[_EXAMINE.size :]), bool(afresh))


def _pack_nothing(_: m.Space | m.Status | m.Ping) -> Packed:
    return 0, 0, []


def _unpack_ping(header: Header, body: memoryview) -> m.Ping:
    no_token(header)
    check(not body, "it has a body")
    return m.Ping()


def _pack_report(request: m.Report) -> Packed:
    return pack_json(request.question)


def _unpack_report(header: Header, body: memoryview) -> m.Report:
    return m.Report(read_json(header, body))


def _unpack_space(header: Header, body: memoryview) -> m.Space:
    no_token(header)
    check(not body, "it has a body")
    return m.Space()


def _unpack_status(header: Header, body: memoryview) -> m.Status:
    no_token(header)
    check(not body, "it has a body")
    return m.Status()


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
    *ANSWERS,
)
ENCODERS = {made: (kind, pack) for kind, made, pack, _ in _TABLE}
DECODERS = {int(kind): (kind.name, unpack) for kind, _, _, unpack in _TABLE}
