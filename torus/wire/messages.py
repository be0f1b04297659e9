"""The messages of the peer protocol, as values.

Decides what can be said and how large an answer may be.  Bytes are made in
`torus.wire.codec`; who may say what when is decided in `torus.wire.states`.
Implements docs/protocol.md, "Messages".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from torus import limits
from torus.ids import ChunkId

Buffer = bytes | bytearray | memoryview


class MessageType(IntEnum):
    """The type field of a frame; an answer is its request plus 128."""

    HELLO = 1
    ERROR = 2
    PROOF = 3
    OPEN = 16
    APPEND = 17
    SYNC = 18
    READ = 19
    FENCE = 20
    SCAN = 21
    DELETE = 22
    LIST = 23
    SPACE = 24
    STATUS = 25
    REOPEN = 26
    INSTALL = 27
    EXAMINE = 28
    PING = 29
    REPORT = 30
    OPENED = 144
    APPENDED = 145
    SYNCED = 146
    READ_DONE = 147
    FENCED = 148
    SCANNED = 149
    DELETED = 150
    LISTED = 151
    SPACE_IS = 152
    STATUS_IS = 153
    REOPENED = 154
    INSTALLED = 155
    EXAMINED = 156
    PONG = 157
    REPORTED = 158


ANSWER = 128  # added to a request's type


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks and what it accepts; the first message of either side.

    A client says which disk it wants, zeroes for the only one there is, and has zeroes for boot
    id, slot size and proof.
    """

    cluster_id: bytes  # 16 bytes
    disk_id: bytes  # 16 bytes
    boot_id: int
    slot_bytes: int
    frame_bytes_max: int
    in_flight_bytes_max: int
    in_flight_requests_max: int
    name: str  # for logs
    nonce: bytes = bytes(16)  # drawn for this connection
    proof: bytes = bytes(32)  # the server's, see torus.wire.proof


@dataclass(frozen=True, slots=True)
class Proof:
    """A client's proof that it knows the cluster's secret; its second message."""

    proof: bytes  # 32 bytes


@dataclass(frozen=True, slots=True)
class Error:
    """A request's failure; of the whole connection when it carries request 0."""

    wire_code: int  # of a class in torus.errors
    message: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class Open:
    """Give a chunk a slot, so that it can be appended to."""

    chunk: ChunkId
    from_reserve: bool


@dataclass(frozen=True, slots=True)
class Append:
    """Write a finished record as number ``index`` of a chunk at ``offset``."""

    chunk: ChunkId
    index: int
    offset: int
    record: Buffer


@dataclass(frozen=True, slots=True)
class Sync:
    """Make all that was appended to the chunks durable."""

    chunks: Sequence[ChunkId]


@dataclass(frozen=True, slots=True)
class Read:
    """Return the bytes of each (chunk, offset, size)."""

    reads: Sequence[tuple[ChunkId, int, int]]


@dataclass(frozen=True, slots=True)
class Fence:
    """Refuse older epochs of a volume from now on."""

    volume: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Scan:
    """Fence with ``epoch`` and return a chunk's bytes from ``offset`` to its slot's end."""

    chunk: ChunkId
    epoch: int
    offset: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Free chunks of a volume."""

    volume: int
    epoch: int
    chunks: Sequence[ChunkId]


@dataclass(frozen=True, slots=True)
class List:
    """Return up to ``limit`` chunks of a volume, in order, behind ``after``."""

    volume: int
    after: ChunkId | None
    limit: int


@dataclass(frozen=True, slots=True)
class Space:
    """Answer when slots may have become free, or after about a second."""


@dataclass(frozen=True, slots=True)
class Status:
    """Return how the disk is."""


@dataclass(frozen=True, slots=True)
class Reopen:
    """Find where a chunk's valid records end, so that it can be appended to again."""

    chunk: ChunkId
    epoch: int


@dataclass(frozen=True, slots=True)
class Install:
    """Have a copy of a chunk whose records end at ``end``, durably."""

    chunk: ChunkId
    epoch: int
    end: int
    content: Buffer


@dataclass(frozen=True, slots=True)
class Examine:
    """Say of each chunk whether it is there and what it holds; ``afresh``: read it again."""

    chunks: Sequence[ChunkId]
    afresh: bool


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer at once."""


@dataclass(frozen=True, slots=True)
class Report:
    """A question of one node's background work to another's, in JSON."""

    question: Buffer


@dataclass(frozen=True, slots=True)
class Opened:
    """The chunk has a slot."""

    boot_id: int


@dataclass(frozen=True, slots=True)
class Appended:
    """The record is in the page cache of the node."""

    boot_id: int


@dataclass(frozen=True, slots=True)
class Synced:
    """All that was appended under this boot id is durable."""

    boot_id: int


@dataclass(frozen=True, slots=True)
class ReadDone:
    """The bytes that were asked for, in order, unverified."""

    pieces: Sequence[Buffer]


@dataclass(frozen=True, slots=True)
class Fenced:
    """The fence is durable."""

    boot_id: int


@dataclass(frozen=True, slots=True)
class Scanned:
    """A chunk's bytes; None when the chunk was never there."""

    content: Buffer | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many of the chunks were there."""

    count: int


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of a listing; ``more`` when there are chunks behind its last."""

    chunks: Sequence[ChunkId]
    more: bool


@dataclass(frozen=True, slots=True)
class SpaceIs:
    """Slots of the disk by what they are."""

    limit: int
    used: int
    reserve: int
    quarantined: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class StatusIs:
    """How the disk is; ``failure`` is empty while it works."""

    boot_id: int
    space: SpaceIs
    damaged_slots: int
    failure: str


@dataclass(frozen=True, slots=True)
class Reopened:
    """Where appending goes on; ``found`` False: the chunk is positively not there."""

    boot_id: int
    found: bool
    next_index: int
    end: int
    lsn: int


@dataclass(frozen=True, slots=True)
class Installed:
    """The copy is there and durable."""

    boot_id: int


@dataclass(frozen=True, slots=True)
class Examined:
    """For each chunk (state, end, records, CRC-32C), the state as in `Presence` of the store."""

    copies: Sequence[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class Pong:
    """The node is alive."""

    boot_id: int


@dataclass(frozen=True, slots=True)
class Reported:
    """What background work answers, in JSON."""

    answer: Buffer


Request = (
    Open
    | Append
    | Sync
    | Read
    | Fence
    | Scan
    | Delete
    | List
    | Space
    | Status
    | Reopen
    | Install
    | Examine
    | Ping
    | Report
)
Answer = (
    Opened
    | Appended
    | Synced
    | ReadDone
    | Fenced
    | Scanned
    | Deleted
    | Listed
    | SpaceIs
    | StatusIs
    | Reopened
    | Installed
    | Examined
    | Pong
    | Reported
    | Error
)
Message = Hello | Proof | Request | Answer


def in_flight_bytes(request: Request, slot_bytes: int) -> int:
    """Return the bytes that a request and its answer keep in memory, about.

    Both sides count with it, so that a client that keeps to the server's cap is never paused.
    """
    match request:
        case Append():
            return 256 + len(request.record)
        case Read():
            return 256 + sum(64 + size for _, _, size in request.reads)
        case Scan():
            return 256 + slot_bytes
        case Install():
            return 256 + len(request.content)
        case Examine():
            return 256 + 128 * len(request.chunks) + slot_bytes
        case Sync() | Delete():
            return 256 + 64 * len(request.chunks)
        case List():
            return 256 + 64 * request.limit
        case Report():
            return 256 + len(request.question) + limits.PEER_REPORT_BYTES_MAX
        case _:
            return 256
