"""Garbage for the NBD parsers: only RemoteProtocolError may come out, whatever comes in.

TORUS_FUZZ_INPUTS sets how many inputs the seeded loops make (100,000 by default, shared by all).
"""

import os
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torus._fast.frame import RequestBatch
from torus.errors import RemoteProtocolError
from torus.nbd import constants as nbd
from torus.nbd.handshake import (
    ContextsRequested,
    ExportDescription,
    ExportRequested,
    Handshake,
    ListRequested,
)
from torus.testing.nbd_client import context_bytes, info_bytes, request_bytes

pytestmark = pytest.mark.fuzz

INPUTS = int(os.environ.get("TORUS_FUZZ_INPUTS", "100000"))
SEED = int(os.environ.get("TORUS_FUZZ_SEED", "20240611"))
SIZE = 1 << 20
REQUEST_MAX = 1 << 16  # small, so that payloads end within the input
DISK = ExportDescription("disk", SIZE, False, "fuzzed")
OFFERED = ["base:allocation", *(f"torus:changed-since:s{number}" for number in range(20))]


def play_requests(stream: bytes, cuts: random.Random | None, extended: bool) -> list[object]:
    """Return what a stream of requests means: the requests, then how it ended."""
    batch = RequestBatch(
        REQUEST_MAX, size_bytes=SIZE, structured=True, extended=extended, contexts=True
    )
    found: list[object] = []
    try:
        while stream:
            limit = cuts.randrange(1, 200) if cuts else len(stream)
            taken = batch.feed(stream[:limit])
            stream = stream[taken:]
            count = batch.received(taken)
            while count:
                for index in range(count):
                    item = batch.request(index)
                    found.append(item)
                    if item[0] == nbd.NBD_CMD_WRITE and not item[5]:
                        found.append(batch.payload(index))
                count = batch.received(0)
            if batch.ended:
                found.append("ended")
                return found
    except RemoteProtocolError as garbage:
        found.append(str(garbage))
    return found


def play_handshake(stream: bytes, cuts: random.Random | None) -> list[object]:
    """Return what a handshake's stream is answered with, then how it ended."""
    handshake = Handshake()
    found: list[object] = []
    try:
        while stream:
            limit = cuts.randrange(1, 100) if cuts else 4096
            handshake.receive(stream[:limit])
            stream = stream[limit:]
            while (event := handshake.next_event()) is not None:
                found.append(event)
                if isinstance(event, ListRequested):
                    found.append(handshake.list_exports(["disk"]))
                elif isinstance(event, ContextsRequested):
                    found.append(handshake.list_or_set_contexts(event, event.name, OFFERED))
                elif isinstance(event, ExportRequested):
                    found.append(handshake.describe(event, DISK))
    except RemoteProtocolError as garbage:
        found.append(str(garbage))
    return found


def make_requests(chance: random.Random, extended: bool) -> bytes:
    """Return a few requests that are mostly well formed."""
    stream = b""
    for _ in range(chance.randrange(1, 6)):
        command = chance.choice((0, 1, 1, 2, 3, 4, 5, 6, 7, chance.randrange(65536)))
        length = chance.choice((0, 512, 4096, chance.randrange(2**32)))
        flags = chance.choice((0, 0, 32 if extended else 1, chance.randrange(65536)))
        payload = b""
        if flags & 32 if extended else command == 1:
            length = min(length, 4096)
            payload = bytes(length)
        offset = chance.choice((0, 4096, SIZE, chance.randrange(2**64)))
        stream += request_bytes(
            command, offset, length, flags=flags, payload=payload, extended=extended
        )
    return stream


def make_handshake(chance: random.Random) -> bytes:
    """Return a few options that are mostly well formed."""
    stream = struct.pack(">I", chance.choice((0, 1, 2, 3, 3, 3, 4)))
    for _ in range(chance.randrange(1, 6)):
        option = chance.choice((*range(12), chance.randrange(2**32)))
        argument = chance.choice(
            (
                b"",
                b"disk",
                info_bytes("disk", 0, 1, 2, 3),
                context_bytes("disk", "base:allocation"),
                context_bytes("disk", "base:", "x:y"),
                context_bytes("disk", "torus:", "torus:changed-since:s7"),
                context_bytes("disk", *OFFERED),
                chance.randbytes(chance.randrange(40)),
            )
        )
        stream += struct.pack(">QII", nbd.IHAVEOPT, option, len(argument)) + argument
    return stream


def mutate(chance: random.Random, stream: bytes) -> bytes:
    """Flip, cut, repeat or insert a few bytes; sometimes nothing."""
    changed = bytearray(stream)
    for _ in range(chance.choice((0, 1, 1, 2, 8))):
        if not changed:
            break
        at = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at : at + chance.randrange(1, 40)]
            case 2:
                changed[at:at] = changed[at : at + chance.randrange(1, 40)]
            case _:
                changed[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), chance.randbytes(4)))
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("extended", [False, True])
def test_requests_mutated_only_the_documented_error_whatever_the_cuts(extended):
    """Mutated request streams: same meaning whole and in pieces, no other exception."""
    chance = random.Random(f"requests {SEED} {extended}")
    for number in range(INPUTS * 2 // 5):
        stream = mutate(chance, make_requests(chance, extended))

        whole = play_requests(stream, None, extended)

        if number % 4 == 0:
            seed = chance.randrange(2**32)
            pieces = play_requests(stream, random.Random(seed), extended)
            assert pieces == whole, (SEED, number, stream.hex(), seed)


@pytest.mark.slow
def test_handshake_mutated_only_the_documented_error_whatever_the_cuts():
    """Mutated handshakes: same answers whole and in pieces, no other exception."""
    chance = random.Random(f"handshake {SEED}")
    for number in range(INPUTS // 5):
        stream = mutate(chance, make_handshake(chance))

        whole = play_handshake(stream, None)

        if number % 4 == 0:
            seed = chance.randrange(2**32)
            pieces = play_handshake(stream, random.Random(seed))
            assert pieces == whole, (SEED, number, stream.hex(), seed)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_requests_arbitrary_bytes_behind_a_good_header(tail, extended):
    """Whatever follows a good request, the good one is understood."""
    good = request_bytes(0, 0, 4096, cookie=42, extended=extended)
    found = play_requests(good + tail, None, extended)
    assert (found[0][2] if isinstance(found[0], tuple) else "") == 42 or len(tail) >= 28


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.integers(0, 12), st.binary(max_size=200))
def test_handshake_arbitrary_option_data(option, argument):
    """Any data of any option are answered or end the connection."""
    stream = struct.pack(">IQII", 3, nbd.IHAVEOPT, option, len(argument)) + argument
    assert play_handshake(stream, None)
