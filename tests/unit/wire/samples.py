"""One of every message, with awkward values: for unit, golden and fuzz tests."""

from torus._fast.crc import checksum
from torus.ids import ChunkId
from torus.wire import frames
from torus.wire import messages as m

CHUNK = ChunkId(0x0102030405060708, 0x090A0B0C, 0x0D0E, 0x0F101112)
NEXT = CHUNK._replace(sequence=0x0F101113)

MESSAGES: tuple[m.Message, ...] = (
    m.Hello(
        b"cluster-cluster-", b"disk-disk-disk-d", 2**64 - 1, 4 << 20, 8 << 20, 32 << 20, 1024, "né",
        b"nonce-nonce-nonc", b"proof-proof-proof-proof-proof-pr",
    ),
    m.Proof(b"proof-proof-proof-proof-proof-pr"),
    m.Error(9, "volume 5 has epoch 3 now", "stop"),
    m.Error(1, "", None),
    m.Open(CHUNK, True),
    m.Append(CHUNK, 0x21222324, 0x31323334, b"record bytes"),
    m.Sync((CHUNK, NEXT)),
    m.Sync(()),
    m.Read(((CHUNK, 512, 4096), (NEXT, 0, 1))),
    m.Fence(CHUNK.volume, CHUNK.epoch),
    m.Scan(CHUNK, 0x41424344, 512),
    m.Delete(CHUNK.volume, 0x51525354, (CHUNK, NEXT)),
    m.List(CHUNK.volume, None, 100),
    m.List(CHUNK.volume, CHUNK, 1),
    m.Space(),
    m.Status(),
    m.Reopen(CHUNK, 0x51525354),
    m.Install(CHUNK, 0x51525354, 0x61626364, b"record bytes"),
    m.Examine((CHUNK, NEXT), True),
    m.Examine((), False),
    m.Ping(),
    m.Opened(0x6162636465666768),
    m.Appended(0x6162636465666768),
    m.Synced(0x6162636465666768),
    m.ReadDone((b"first", b"", b"third")),
    m.Fenced(0x6162636465666768),
    m.Scanned(b"the rest of the slot"),
    m.Scanned(b""),
    m.Scanned(None),
    m.Deleted(3),
    m.Listed((CHUNK, NEXT), True),
    m.Listed((), False),
    m.SpaceIs(100, 20, 4, 1, 4 << 20),
    m.StatusIs(7, m.SpaceIs(100, 20, 4, 1, 4 << 20), 2, "disk failed"),
    m.Reopened(7, True, 0x11121314, 0x21222324, 0x3132333435363738),
    m.Reopened(7, False, 0, 0, 0),
    m.Installed(0x6162636465666768),
    m.Examined(((1, 0x21222324, 9, 0x31323334), (0, 0, 0, 0), (2, 0, 0, 0))),
    m.Pong(0x6162636465666768),
    m.Report(b'{"ask":"upkeep"}'),
    m.Reported(b'{"disks":[]}'),
)  # fmt: skip


def header_of(header: m.Buffer, body: bytes) -> frames.Header:
    """Return ``header`` made right for another body."""
    parsed = frames.parse_header(header)
    return parsed._replace(body_bytes=len(body), body_crc=checksum(body))
