"""Garbage for the peer protocol: only RemoteProtocolError may come out, whatever comes in.

TORUS_FUZZ_INPUTS sets how many inputs the seeded loops make (100,000 by default, shared by all).
A whole header of another version is `UnknownVersion`, a whole hello of another cluster
`ForeignData`, a whole request without its capability `PermissionDenied`, and an ERROR of the
peer's for the whole connection is what it says: all need right checksums, and are the only other
ways out.
"""

import os
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.unit.wire.samples import MESSAGES, header_of
from torus._fast.crc import checksum
from torus.errors import (
    ForeignData,
    PermissionDenied,
    RemoteProtocolError,
    TorusError,
    UnknownVersion,
)
from torus.wire import codec, frames
from torus.wire import messages as m
from torus.wire.connection import Connection
from torus.wire.states import Role

INPUTS = int(os.environ.get("TORUS_FUZZ_INPUTS", "100000"))
HELLO = m.Hello(b"c" * 16, b"d" * 16, 7, 4 << 20, 8 << 20, 32 << 20, 1024, "fuzz")

Capability = Callable[[int, int], int]
pytestmark = pytest.mark.fuzz


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with a few bytes changed, added, taken away or repeated."""
    broken = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(broken) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(broken):
            broken[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(broken):
            broken[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            broken[at:at] = rng.randbytes(rng.randint(1, 20))
        elif kind == 3:
            del broken[at : at + rng.randint(1, 20)]
        elif kind == 4:
            broken[at:at] = broken[at : at + rng.randint(1, 40)]
        else:
            broken[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0"])
    return bytes(broken)


def test_bodies_with_right_checksums_decode_or_are_refused(rng: random.Random) -> None:
    """Whatever is accepted is a message that has exactly these bytes: nothing is guessed."""
    accepted = 0
    for _ in range(INPUTS // 2):
        message = rng.choice(MESSAGES)
        header, *pieces = codec.encode(message, 7)
        body = mutate(b"".join(pieces), rng)
        parsed = header_of(header, body)
        if rng.randrange(4) == 0:
            parsed = parsed._replace(type=rng.choice(list(m.MessageType)))
        if rng.randrange(8) == 0:
            parsed = parsed._replace(volume=rng.getrandbits(64), epoch=rng.getrandbits(32))
        try:
            found = codec.decode(parsed, body)
        except RemoteProtocolError:
            continue
        accepted += 1
        again = b"".join(codec.encode(found, parsed.request))
        assert again == frames.pack_header(parsed) + body

    assert accepted > INPUTS // 200


SECRET = b"fuzz" * 8
SERVER_HELLO = replace(HELLO, nonce=b"s" * 16)


def opened(role: Role, rng: random.Random) -> tuple[Connection, Capability]:
    """Return a connection that is new, or has met the other side; and what makes the capabilities
    of requests to it."""
    client, server = (
        Connection(Role.CLIENT, HELLO, SECRET),
        Connection(Role.SERVER, SERVER_HELLO, SECRET),
    )
    hello = client.send_hello()
    if rng.randrange(4) == 0:
        return (client if role is Role.CLIENT else server), no_capability
    take(server, hello)
    take(client, server.send_hello())
    take(server, client.send_proof())
    assert client.ready
    assert server.ready
    assert client.capabilities is not None
    if role is Role.CLIENT:
        for _ in range(rng.randrange(4)):
            client.send_request(rng.choice((m.Sync(()), m.Read(()), m.Space(), m.Ping())))
        return client, no_capability
    return server, client.capabilities.of


def no_capability(_volume: int, _epoch: int) -> int:
    """Answers carry none."""
    return 0


def take(connection: Connection, pieces: list[m.Buffer]) -> None:
    """Give a connection all of ``pieces`` that are right."""
    data = b"".join(pieces)
    connection.buffer()[: len(data)] = data
    connection.received(len(data))
    while connection.next_event() is not None:
        pass


def conversation(role: Role, rng: random.Random, capability: Capability) -> bytes:
    """Return what the other side of ``role`` might send, in legal order, then broken."""
    data = b"" if capability is not no_capability else b"".join(codec.encode(HELLO, 0))
    for number in range(1, rng.randint(2, 5)):
        data += b"".join(codec.encode(rng.choice(MESSAGES), number, capability))
    if rng.randrange(3) == 0:
        return mutate(data, rng)
    # One frame changed under a header that is right again.
    header, *pieces = codec.encode(rng.choice(MESSAGES), rng.randrange(4), capability)
    body = mutate(b"".join(pieces), rng)
    changed = bytearray(frames.pack_header(header_of(header, body)))
    if rng.randrange(2):
        changed[rng.randrange(44)] ^= 1 << rng.randrange(8)
        changed[-4:] = checksum(bytes(changed[:-4])).to_bytes(4, "little")
    return data[: rng.choice([0, len(data)])] + bytes(changed) + body


def take_all(connection: Connection, role: Role, frequent: bool) -> None:
    """Take what is there as the two ends do, frequent messages past the codec or through it."""
    while True:
        found = connection.receiver.next_frequent() if frequent and connection.ready else None
        if found is not None:
            kind, _, number, volume, epoch, capability, _ = found
            if role is Role.CLIENT:
                connection.take_answer(number, kind)
            else:
                connection.take_request(number, volume, epoch, capability)
        elif connection.next_event() is None:
            return


def test_connections_survive_any_bytes(rng: random.Random) -> None:
    """Bytes cut anywhere, frames in any order, with and without the kernel: messages, or one
    error and then silence."""
    refused = 0
    for _ in range(INPUTS // 4):
        role = rng.choice(list(Role))
        connection, capability = opened(role, rng)
        data = conversation(role, rng, capability)
        frequent = rng.randrange(2) == 0
        at = 0
        try:
            while at < len(data):
                room = connection.buffer()
                count = min(len(room), len(data) - at, rng.choice([1, 48, 1000]))
                room[:count] = data[at : at + count]
                connection.received(count)
                at += count
                take_all(connection, role, frequent)
        except (RemoteProtocolError, UnknownVersion, ForeignData, PermissionDenied):
            refused += 1
        except TorusError:  # an ERROR for the connection, whose words are the peer's
            if role is Role.SERVER:
                raise
        else:
            continue
        assert connection.next_event() is None

    assert refused > INPUTS // 10


def test_random_bytes_are_refused(rng: random.Random) -> None:
    """Noise of any length is no frame, and no header of noise takes memory."""
    for _ in range(INPUTS // 4):
        data = rng.randbytes(rng.randint(48, 200))
        if rng.randrange(2):
            data = frames.MAGIC + data
        with pytest.raises(RemoteProtocolError):
            frames.parse_header(data)
