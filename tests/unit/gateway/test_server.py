"""The NBD server with a bare client: commands, refusals, memory, ends."""

import asyncio
import logging
import random
import socket
import struct

import pytest

from torus.errors import Corruption, Fenced, PoolFull
from torus.limits import MIB, NBD_IN_FLIGHT_BYTES_MAX
from torus.nbd import constants as nbd
from torus.testing.memory_export import MemoryExport
from torus.testing.nbd_client import BareClient, context_bytes, info_bytes, request_bytes

MODES = [{}, {"structured": True}, {"extended": True}]


async def settle(condition) -> None:
    """Let the loop run until ``condition()``; the scenario's time limit ends it otherwise."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("waiting", [False, True])
def test_commands_every_mode_read_back_what_was_written(run, serving, mode, waiting):
    """WRITE, READ, FLUSH, TRIM, CACHE, WRITE_ZEROES in every header mode, fast and waiting."""

    async def scenario() -> None:
        chance = random.Random(3)
        async with serving() as served:
            served.disk.refuse_now = waiting
            client = await BareClient.go(served.path, **mode)
            model = bytearray(1 * MIB)
            for round_ in range(120):
                offset = chance.randrange(0, 2040) * 512
                length = min(chance.choice((512, 4096, 8192, 65536)), MIB - offset)
                payload = chance.randbytes(length)
                match chance.randrange(5):
                    case 0 | 1:
                        flags = chance.randrange(2)
                        reply = await client.ask(1, offset, flags=flags, payload=payload)
                        model[offset : offset + length] = payload
                    case 2:
                        reply = await client.ask(4, offset, length)
                        model[offset : offset + length] = bytes(length)
                    case 3:
                        reply = await client.ask(6, offset, length, flags=chance.choice((0, 2)))
                        model[offset : offset + length] = bytes(length)
                    case _:
                        reply = await client.ask(5, offset, length)
                assert reply.error == 0
                reply = await client.ask(0, offset, length, cookie=round_)
                assert reply.cookie == round_
                assert reply.content == model[offset : offset + length]
            assert (await client.ask(3)).error == 0
            assert (await client.ask(0, 0, MIB)).content == model
            await client.close()

    run(scenario)


@pytest.mark.parametrize("mode", MODES)
def test_refusals_leave_the_connection_alive(run, serving, mode):
    """Every bad request gets its error, and the next good one is served."""

    async def scenario() -> None:
        async with serving(size_bytes=MIB) as served:
            client = await BareClient.go(served.path, **mode)
            for command, offset, length, flags, payload, error in [
                (0, MIB, 512, 0, b"", nbd.NBD_EINVAL),
                (0, 2**64 - 512, 1024, 0, b"", nbd.NBD_EINVAL),
                (0, 1, 512, 0, b"", nbd.NBD_EINVAL),
                (0, 0, 0, 0, b"", nbd.NBD_EINVAL),
                (1, MIB - 512, 0, 0, bytes(1024), nbd.NBD_ENOSPC),
                (6, MIB, 512, 0, b"", nbd.NBD_ENOSPC),
                (4, MIB, 512, 0, b"", nbd.NBD_EINVAL),
                (6, 0, 512, nbd.NBD_CMD_FLAG_FAST_ZERO | 2, b"", nbd.NBD_ENOTSUP),
                (7, 0, 512, 0, b"", nbd.NBD_EINVAL),
                (8, 0, 0, 0, b"", nbd.NBD_EINVAL),
                (3, 512, 0, 0, b"", nbd.NBD_EINVAL),
                (1, 0, 0, 2, bytes(512), nbd.NBD_EINVAL),
            ]:
                reply = await client.ask(command, offset, length, flags=flags, payload=payload)
                assert reply.error == error, (command, offset, length, flags)
                assert bool(reply.message) == bool(mode)
            assert (await client.ask(0, 0, 512)).content == bytes(512)
            await client.close()

    run(scenario)


def test_read_only_export_refuses_what_writes(run, serving):
    """EPERM, and reads go on."""

    async def scenario() -> None:
        async with serving(MemoryExport("disk", MIB, read_only=True)) as served:
            client = await BareClient.go(served.path)
            assert client.flags & nbd.NBD_FLAG_READ_ONLY
            assert (await client.ask(1, 0, payload=bytes(4096))).error == nbd.NBD_EPERM
            assert (await client.ask(4, 0, 4096)).error == nbd.NBD_EPERM
            assert (await client.ask(6, 0, 4096)).error == nbd.NBD_EPERM
            assert (await client.ask(0, 0, 4096)).error == 0
            await client.close()

    run(scenario)


def test_fua_waits_for_a_durable_write(run, serving):
    """FUA goes through ``write(durable=True)``, a plain write does not wait."""

    async def scenario() -> None:
        async with serving() as served:
            client = await BareClient.go(served.path)
            await client.ask(1, 0, payload=bytes(4096))
            assert served.disk.calls == []
            await client.ask(1, 0, payload=bytes(4096), flags=nbd.NBD_CMD_FLAG_FUA)
            await client.ask(1, 512, payload=bytes(512))
            assert served.disk.calls == ["write-durable", "write"]
            await client.close()

    run(scenario)


def test_read_structured_has_holes_and_df_has_not(run, serving):
    """Ranges that were never written come as HOLE chunks; DF gets one DATA chunk."""

    async def scenario() -> None:
        async with serving() as served:
            served.disk.refuse_now = True
            client = await BareClient.go(served.path, structured=True)
            await client.ask(1, 8192, payload=b"x" * 4096)
            sparse = await client.ask(0, 0, 16384)
            assert [(o, n, d is None) for o, n, d in sparse.parts] == [
                (0, 8192, True),
                (8192, 4096, False),
                (12288, 4096, True),
            ]
            whole = await client.ask(0, 0, 16384, flags=nbd.NBD_CMD_FLAG_DF)
            assert [(o, n) for o, n, _ in whole.parts] == [(0, 16384)]
            assert whole.content == sparse.content
            await client.close()

    run(scenario)


@pytest.mark.parametrize("extended", [False, True])
def test_block_status_extents(run, serving, extended):
    """Extents are merged, clipped, and one with REQ_ONE."""

    async def scenario() -> None:
        async with serving(size_bytes=8 * MIB) as served:
            client = await BareClient.go(served.path, contexts=True, extended=extended)
            await client.ask(1, 8192, payload=b"x" * 8192)
            reply = await client.ask(7, 4096, 8 * MIB - 4096)
            assert reply.extents == {1: [(4096, 3), (8192, 0), (8 * MIB - 16384, 3)]}
            reply = await client.ask(7, 8192, 4096, flags=nbd.NBD_CMD_FLAG_REQ_ONE)
            assert reply.extents == {1: [(4096, 0)]}
            await client.close()

    run(scenario)


def test_block_status_extended_length_beyond_32_bits(run, serving):
    """An effect length of 1 TiB is one extent of 64 bits."""

    class Huge(MemoryExport):
        def _extents(self, offset: int, length: int) -> list[tuple[int, int]]:
            return [(length, 3)]

    async def scenario() -> None:
        export = Huge("disk", MIB)
        export.size_bytes = 1 << 40
        async with serving(export) as served:
            client = await BareClient.go(served.path, contexts=True, extended=True)
            reply = await client.ask(7, 0, 1 << 40)
            assert reply.extents == {1: [(1 << 40, 3)]}
            await client.close()

    run(scenario)


def test_replies_come_out_of_order(run, serving):
    """A request that waits does not hold up those behind it."""

    async def scenario() -> None:
        async with serving() as served:
            served.disk.gate = asyncio.Event()
            client = await BareClient.go(served.path)
            client.say(3, cookie=1)
            client.say(0, 0, 4096, cookie=2)
            assert (await client.reply()).cookie == 2
            served.disk.gate.set()
            assert (await client.reply()).cookie == 1
            await client.close()

    run(scenario)


@pytest.mark.parametrize("mode", MODES)
def test_failures_of_the_export_become_nbd_errors(run, serving, mode):
    """Corruption is EIO, a full pool ENOSPC; with a message where one can be sent."""

    async def scenario() -> None:
        async with serving() as served:
            served.disk.refuse_now = True
            served.disk.failures = {
                "read": Corruption("block 7 has the wrong checksum"),
                "read_sparse": Corruption("block 7 has the wrong checksum"),
                "write": PoolFull("no slot is free"),
            }
            client = await BareClient.go(served.path, **mode)
            reply = await client.ask(0, 0, 4096)
            assert (reply.error, bool(reply.message)) == (nbd.NBD_EIO, bool(mode))
            assert (await client.ask(1, 0, payload=bytes(4096))).error == nbd.NBD_ENOSPC
            assert (await client.ask(3)).error == 0
            assert served.server.stats.commands[nbd.NBD_CMD_READ].errors == 1
            await client.close()

    run(scenario)


@pytest.mark.parametrize("call", ["flush", "read_now", "write_now"])
def test_fenced_export_ends_the_connection_with_one_line(run, serving, caplog, call):
    """A writer that lost its volume stops at once and says why."""

    async def scenario() -> None:
        async with serving() as served:
            served.disk.failures = {call: Fenced("epoch 4 exists, this writer has 3")}
            client = await BareClient.go(served.path)
            client.say(3, cookie=1)
            client.say(1, 0, cookie=2, payload=bytes(4096))
            client.say(0, 0, 4096, cookie=3)
            if call == "flush":
                await client.reply()
                await client.reply()
            assert await client.is_closed()
            await client.close()

    with caplog.at_level(logging.ERROR, "torus"):
        run(scenario)
    assert [record.message for record in caplog.records] == ["nbd.export.lost"]
    assert "epoch 4" in caplog.records[0].fields["error"]


def test_crash_of_a_request_ends_its_connection_alone(run, serving, caplog):
    """A bug in one request is logged with its traceback; other connections go on."""

    class Broken(MemoryExport):
        async def cache(self, offset: int, length: int) -> None:
            raise ZeroDivisionError

    async def scenario() -> None:
        async with serving(Broken("disk", MIB)) as served:
            client = await BareClient.go(served.path)
            other = await BareClient.go(served.path)
            client.say(5, 0, 4096)
            assert await client.is_closed()
            assert (await other.ask(0, 0, 4096)).error == 0
            await client.close()
            await other.close()

    with caplog.at_level(logging.ERROR, "torus"):
        run(scenario)
    assert [record.message for record in caplog.records] == ["nbd.request.crashed"]


@pytest.mark.parametrize("phase", ["flags", "option", "transmission"])
def test_garbage_ends_that_connection_with_one_line(run, serving, caplog, phase):
    """Garbage in any phase closes that connection and nothing else."""

    async def scenario() -> None:
        async with serving() as served:
            other = await BareClient.go(served.path)
            if phase == "transmission":
                client = await BareClient.go(served.path)
            else:
                client = await BareClient.connect(served.path)
                if phase == "option":
                    client.say_flags()
            client.writer.write(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")
            assert await client.is_closed()
            assert served.server.stats.protocol_errors == 1
            assert (await other.ask(0, 0, 4096)).error == 0
            await client.close()
            await other.close()

    with caplog.at_level(logging.WARNING, "torus"):
        run(scenario)
    assert len(caplog.records) == 1, [record.message for record in caplog.records]


@pytest.mark.slow
def test_reads_never_collected_take_bounded_memory_and_block_nobody(run, serving):
    """1,024 reads of 1 MiB without reading a reply: bounded, and others are served."""

    async def scenario() -> None:
        async with serving() as served:
            greedy = await BareClient.go(served.path)
            greedy.writer.transport.pause_reading()
            for cookie in range(1024):
                greedy.say(0, 0, MIB, cookie=cookie)
            other = await BareClient.go(served.path)
            for _ in range(200):
                assert (await other.ask(0, 0, 4096)).error == 0
            (member,) = [m for m in served.server._gateway.members if m._unsent]
            held = member._transport.get_write_buffer_size() + member._held_bytes
            assert held <= NBD_IN_FLIGHT_BYTES_MAX
            assert held < 16 * MIB  # what the transport is allowed, and a slice

            greedy.writer.transport.resume_reading()
            for cookie in range(1024):
                reply = await greedy.reply()
                assert reply.cookie == cookie
                assert len(reply.payload) == MIB
            await other.close()
            await greedy.close()

    run(scenario)


def test_waiting_writes_hold_bounded_memory(run, serving):
    """A full pool that makes writes wait does not make the gateway hoard payloads."""

    async def scenario() -> None:
        async with serving() as served:
            served.disk.refuse_now = True
            served.disk.gate = asyncio.Event()
            client = await BareClient.go(served.path)
            count = 2 * NBD_IN_FLIGHT_BYTES_MAX // MIB
            for cookie in range(count):
                client.say(1, 0, cookie=cookie, payload=bytes(MIB))
            (member,) = served.server._gateway.members
            await settle(lambda: not member._reading and member._turn is None)
            assert member._held_bytes <= NBD_IN_FLIGHT_BYTES_MAX
            served.disk.gate.set()
            found = sorted([(await client.reply()).cookie for _ in range(count)])
            assert found == list(range(count))
            await client.close()

    run(scenario)


def test_client_vanishes_in_the_middle_of_a_write(run, serving):
    """Half a 32 MiB write changes nothing, and its memory goes."""

    async def scenario() -> None:
        async with serving() as served:
            client = await BareClient.go(served.path)
            half = b"x" * (16 * MIB)
            client.writer.write(request_bytes(1, 0, 32 * MIB) + half)
            await client.writer.drain()
            client.writer.transport.abort()
            await settle(lambda: not served.server._gateway.members)
            assert not any(served.disk.content[: 4 * MIB])
            await client.close()

    run(scenario)


def test_client_vanishes_with_requests_in_flight(run, serving):
    """What waits is cancelled, and the export is given back."""

    async def scenario() -> None:
        async with serving() as served:
            served.disk.gate = asyncio.Event()
            client = await BareClient.go(served.path)
            client.say(3)
            await settle(lambda: served.disk.calls)
            client.writer.transport.abort()
            await settle(lambda: served.exports.open_counts["disk"] == 0)
            await client.close()

    run(scenario)


def test_disconnect_finishes_what_is_in_flight(run, serving):
    """DISC: the flush before it is answered, then the connection closes without a reply."""

    async def scenario() -> None:
        async with serving() as served:
            served.disk.gate = asyncio.Event()
            client = await BareClient.go(served.path)
            client.say(3, cookie=5)
            client.say(2)
            client.say(0, 0, 4096, cookie=6)
            await settle(lambda: served.disk.calls)
            served.disk.gate.set()
            assert (await client.reply()).cookie == 5
            assert await client.is_closed()
            await client.close()

    run(scenario)


def test_half_closed_client_gets_its_replies(run, serving):
    """A client that shuts down its side still gets what it asked for."""

    async def scenario() -> None:
        async with serving() as served:
            client = await BareClient.go(served.path)
            client.say(3, cookie=1)
            client.say(0, 0, 4096, cookie=2)
            client.writer.write_eof()
            assert {(await client.reply()).cookie for _ in range(2)} == {1, 2}
            assert await client.is_closed()
            await client.close()

    run(scenario)


def test_close_drains(run, serving):
    """Stopping the server answers what is in flight, then closes."""

    async def scenario() -> None:
        async with serving() as served:
            served.disk.gate = asyncio.Event()
            client = await BareClient.go(served.path)
            idle = await BareClient.connect(served.path)
            client.say(3, cookie=9)
            await settle(lambda: served.disk.calls)
            closing = asyncio.ensure_future(served.server.close())
            await asyncio.sleep(0)
            assert not closing.done()
            served.disk.gate.set()
            assert (await client.reply()).cookie == 9
            assert await client.is_closed()
            assert await idle.is_closed()
            await closing
            await client.close()
            await idle.close()

    run(scenario)


def test_close_gives_up_on_a_client_that_takes_nothing(run, serving):
    """After the deadline connections are cut."""

    async def scenario() -> None:
        async with serving(drain_timeout_s=0.05) as served:
            served.disk.gate = asyncio.Event()
            client = await BareClient.go(served.path)
            client.say(3)
            await settle(lambda: served.disk.calls)
            await served.server.close()
            assert await client.is_closed()
            await client.close()

    run(scenario)


def test_handing_an_export_over_drains_its_connections_only(run, serving):
    """What is in flight is answered, then they are closed; those of other exports stay."""

    async def scenario() -> None:
        disk, other = MemoryExport("disk", 1 << 20), MemoryExport("other", 1 << 20)
        async with serving(disk, other) as served:
            disk.gate = asyncio.Event()
            clients = [await BareClient.go(served.path, "disk") for _ in range(2)]
            stays = await BareClient.go(served.path, "other")
            clients[0].say(3, cookie=9)
            await settle(lambda: disk.calls)
            moving = asyncio.ensure_future(served.server.hand_over(disk, 20))
            assert await clients[1].is_closed()
            assert not moving.done()
            disk.gate.set()
            assert (await clients[0].reply()).cookie == 9
            assert await clients[0].is_closed()
            assert await moving == 2
            assert await served.server.hand_over(disk, 20) == 0
            stays.say(3, cookie=7)
            assert (await stays.reply()).cookie == 7
            for client in (*clients, stays):
                await client.close()

    run(scenario)


def test_handing_over_does_not_wait_for_a_client_that_takes_nothing(run, serving):
    """After the deadline its connection is cut, without an answer to what it asked."""

    async def scenario() -> None:
        async with serving() as served:
            served.disk.gate = asyncio.Event()
            client = await BareClient.go(served.path)
            client.say(3)
            await settle(lambda: served.disk.calls)
            assert await served.server.hand_over(served.disk, 0.05) == 1
            assert await client.is_closed()
            await client.close()

    run(scenario)


def test_handshake_timeout_closes(run, serving, caplog):
    """A client that says nothing is sent away."""

    async def scenario() -> None:
        async with serving(handshake_timeout_s=0.02) as served:
            client = await BareClient.connect(served.path)
            assert await client.is_closed()
            assert served.server.stats.handshakes_failed == 1
            await client.close()

    with caplog.at_level(logging.WARNING, "torus"):
        run(scenario)
    assert [record.message for record in caplog.records] == ["nbd.handshake.timeout"]


def test_connection_limit_refuses_the_next_one(run, serving):
    """One more than the limit is closed; when one leaves, there is room again."""

    async def scenario() -> None:
        async with serving(connections_max=3) as served:
            clients = [await BareClient.go(served.path) for _ in range(3)]
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await BareClient.connect(served.path)
            assert served.server.stats.connections_refused == 1
            await clients.pop().close()
            await settle(lambda: served.server.stats.connections_open == 2)
            clients.append(await BareClient.go(served.path))
            for client in clients:
                await client.close()

    run(scenario)


def test_two_hundred_connections_are_all_served(run, serving):
    """200 clients at once, each served."""

    async def scenario() -> None:
        async with serving() as served:
            clients = [await BareClient.go(served.path) for _ in range(200)]
            replies = await asyncio.gather(*(client.ask(0, 0, 4096) for client in clients))
            assert all(reply.error == 0 for reply in replies)
            for client in clients:
                await client.close()

    run(scenario)


def test_resize_reaches_open_connections(run, serving):
    """The new range can be used at once; past a shrunken end is refused; INFO sees the size."""

    async def scenario() -> None:
        async with serving(size_bytes=MIB) as served:
            client = await BareClient.go(served.path)
            assert (await client.ask(1, MIB, payload=bytes(4096))).error == nbd.NBD_ENOSPC
            served.disk.resize(2 * MIB)
            assert (await client.ask(1, MIB, payload=b"n" * 4096)).error == 0
            assert (await client.ask(0, MIB, 4096)).payload == b"n" * 4096
            served.disk.resize(MIB // 2)
            assert (await client.ask(0, MIB // 2, 512)).error == nbd.NBD_EINVAL
            newer = await BareClient.go(served.path)
            assert newer.size_bytes == MIB // 2
            await client.close()
            await newer.close()

    run(scenario)


def test_names_default_unknown_and_listed(run, serving):
    """LIST, INFO of an unknown name, the empty name with one export and with two."""

    async def scenario() -> None:
        async with serving() as served:
            client = await BareClient.go(served.path, "")
            await client.close()
        exports = (MemoryExport("disk", MIB), MemoryExport("other", 2 * MIB))
        async with serving(*exports) as served:
            client = await BareClient.connect(served.path)
            client.say_flags()
            listed = await client.option(nbd.NBD_OPT_LIST)
            assert [r.payload[4:] for r in listed[:-1]] == [b"disk", b"other"]
            for name in ("nothing", ""):
                (reply,) = await client.option(nbd.NBD_OPT_GO, info_bytes(name))
                assert reply.kind == nbd.NBD_REP_ERR_UNKNOWN
                assert reply.payload
            await client.option(nbd.NBD_OPT_STRUCTURED_REPLY)
            argument = context_bytes("nothing", "base:allocation")
            (reply,) = await client.option(nbd.NBD_OPT_SET_META_CONTEXT, argument)
            assert reply.kind == nbd.NBD_REP_ERR_UNKNOWN
            for name in ("disk", "other"):
                assert (await client.option(nbd.NBD_OPT_INFO, info_bytes(name)))[-1].kind == 1
                assert sum(served.exports.open_counts.values()) == 1
            await client.option(nbd.NBD_OPT_GO, info_bytes("other"))
            assert client.size_bytes == 2 * MIB
            assert (await client.ask(0, 0, 4096)).error == 0
            await client.close()

    run(scenario)


def test_export_name_unknown_closes_and_known_serves(run, serving):
    """The oldest option cannot be refused but by closing."""

    async def scenario() -> None:
        async with serving() as served:
            client = await BareClient.connect(served.path)
            client.say_flags()
            client.say_option(nbd.NBD_OPT_EXPORT_NAME, b"nothing")
            assert await client.is_closed()
            await client.close()
            client = await BareClient.connect(served.path)
            client.say_flags(1)
            client.say_option(nbd.NBD_OPT_EXPORT_NAME, b"disk")
            head = await client.reader.readexactly(134)
            assert struct.unpack_from(">Q", head)[0] == 64 * MIB
            assert (await client.ask(0, 0, 4096)).payload == bytes(4096)
            await client.close()

    run(scenario)


def test_requests_sent_ahead_of_the_handshake_are_served(run, serving):
    """What follows GO in the same packet is not lost."""

    async def scenario() -> None:
        async with serving() as served:
            client = await BareClient.connect(served.path)
            client.say_flags()
            client.say_option(nbd.NBD_OPT_GO, info_bytes("disk"))
            client.say(0, 0, 4096, cookie=77)
            for _ in range(3):
                _, _, _, length = struct.unpack(">QIII", await client.reader.readexactly(20))
                await client.reader.readexactly(length)
            assert (await client.reply()).cookie == 77
            await client.close()

    run(scenario)


def test_abort_is_acknowledged_and_closed(run, serving):
    """ABORT ends the session, the process lives on."""

    async def scenario() -> None:
        async with serving() as served:
            client = await BareClient.connect(served.path)
            client.say_flags()
            assert (await client.option(nbd.NBD_OPT_ABORT))[-1].kind == nbd.NBD_REP_ACK
            assert await client.is_closed()
            await client.close()
            await (await BareClient.go(served.path)).close()

    run(scenario)


def test_stats_count_requests_bytes_and_errors(run, serving):
    """Counters by command, on the fast path too."""

    async def scenario() -> None:
        async with serving() as served:
            client = await BareClient.go(served.path)
            for cookie in range(10):
                client.say(1, 0, cookie=cookie, payload=bytes(8192))
            for _ in range(10):
                await client.reply()
            await client.ask(0, 0, 4096)
            await client.ask(0, 1, 4096)
            await client.ask(99)
            found = served.server.stats.by_name()
            assert (found["write"].requests, found["write"].bytes) == (10, 81920)
            assert (found["read"].requests, found["read"].bytes, found["read"].errors) == (
                2,
                4096,
                1,
            )
            assert found["unknown"].errors == 1
            assert found["write"].latency.count == 10
            await client.close()

    run(scenario)


def test_listeners_survive_a_stranger_that_only_connects(run, serving):
    """Port scanners cost nothing."""

    async def scenario() -> None:
        async with serving() as served:
            for _ in range(20):
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(served.path)
            client = await BareClient.go(served.path)
            assert (await client.ask(3)).error == 0
            await client.close()

    run(scenario)
