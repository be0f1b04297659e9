"""What only a peer's chunks can meet: lost connections, restarts, foreign nodes, deadlines."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.contract.chunk_places import CLUSTER, FIRST, LOOPS, SLOT_BYTES, Place, build, record
from torus import limits
from torus.cluster.dialing import Dialing, connect
from torus.cluster.peer import PeerChunks
from torus.errors import (
    Busy,
    Corruption,
    ForeignData,
    RemoteProtocolError,
    TimedOut,
    Unavailable,
    UnknownVersion,
)
from torus.ids import ChunkId
from torus.net.address import TcpAddress, UnixAddress
from torus.net.connecting import connect_error
from torus.node.server import PeerServer, listen_for_peers
from torus.node.service import PeerService
from torus.node.session import Outcome
from torus.store.store import Store
from torus.wire import codec, frames
from torus.wire import messages as m

ONE = ChunkId(5, 2, 0, 1)


@pytest.fixture(params=list(LOOPS))
def place(request: pytest.FixtureRequest, tmp_path: Path, socket_folder: Path) -> Place:
    """Give a store behind the peer protocol, on each loop."""
    return Place("peer", request.param, tmp_path / "data", socket_folder)


def peer(place: Place) -> PeerChunks:
    """Return the place's chunks as what they are."""
    assert isinstance(place.chunks, PeerChunks)
    return place.chunks


class ByMessage(PeerService):
    """Serves every request through `serve`."""

    by_kind = False


class AnswersGetLost(ByMessage):
    """Carries the first ``count`` requests of ``kind`` out, then drops the connection."""

    kind: type = m.Append
    count = 1
    seen = 0
    server: PeerServer  # which the place sets

    def serve(self, request: m.Request) -> Outcome:
        outcome = super().serve(request)
        if isinstance(request, self.kind):
            type(self).seen += 1
            if type(self).seen <= self.count:
                for session in self.server.sessions:
                    session.abort()
        return outcome


def losing(kind: type, count: int = 1) -> Callable[[Store], PeerService]:
    """Return a service whose first answers to ``kind`` get lost."""
    return type("Losing", (AnswersGetLost,), {"kind": kind, "count": count, "seen": 0})


class NeverAnswers(ByMessage):
    """Takes requests of every kind but open and forgets them."""

    def serve(self, request: m.Request) -> Outcome:
        if isinstance(request, m.Open):
            return super().serve(request)
        return self._wait()

    async def _wait(self) -> m.Answer:
        await asyncio.get_running_loop().create_future()
        raise AssertionError


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition`` holds; the test has a deadline."""
    while not condition():  # noqa: ASYNC110, nothing in the service tells a test
        await asyncio.sleep(0)


# --- connecting -----------------------------------------------------------------------------


def test_connect_without_a_node_is_unavailable(place: Place) -> None:
    """The message says where nobody was and what to start."""

    async def scenario() -> None:
        nowhere = UnixAddress(place.address.path + "-not")
        with pytest.raises(Unavailable, match="No such file") as caught:
            await PeerChunks.connect(nowhere, CLUSTER)
        assert caught.value.hint is not None

    place.run(scenario)


def test_connect_to_another_cluster_is_refused(place: Place) -> None:
    """Both cluster ids stand in the message; the node goes on serving its own."""

    async def scenario() -> None:
        with pytest.raises(ForeignData, match=CLUSTER):
            await PeerChunks.connect(place.address, "ee" * 16)
        await place.chunks.list(1)

    place.run(scenario)


def test_connect_with_another_version_says_so(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of the next version learns that the versions differ, not that bytes are bad."""

    async def scenario() -> None:
        packed = frames.pack_header

        def next_version(header: frames.Header) -> bytes:
            data = bytearray(packed(header))
            data[4] = frames.VERSION + 1
            data[-4:] = codec.checksum(data[:-4]).to_bytes(4, "little")
            return bytes(data)

        monkeypatch.setattr(codec, "pack_header", next_version)
        hello = m.Hello(bytes.fromhex(CLUSTER), bytes(16), 0, 0, 1 << 23, 1 << 25, 9, "new")
        with pytest.raises(UnknownVersion, match="version 3") as caught:
            await connect(place.address, Dialing(hello))
        assert caught.value.hint == "update the older of the two"
        monkeypatch.undo()

    place.run(scenario)


def test_connect_beyond_the_most_peers_is_busy(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One peer too many is told so; when one leaves there is room again."""

    async def scenario() -> None:
        monkeypatch.setattr(limits, "PEER_CONNECTIONS_MAX", 2)
        second = await PeerChunks.connect(place.address, CLUSTER)
        with pytest.raises(Busy, match="2 peers"):
            await PeerChunks.connect(place.address, CLUSTER)
        await second.close()
        await until(lambda: place.server.connections == 1)
        third = await PeerChunks.connect(place.address, CLUSTER)
        await third.close()

    place.run(scenario)


def test_silent_server_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that accepts and says nothing does not hold a gateway for ever."""

    async def scenario() -> None:
        monkeypatch.setattr(limits, "PEER_CONNECT_TIMEOUT_S", 0.05)
        path = place.address.path + "-silent"
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(path)
            silent.listen()
            with pytest.raises(Unavailable, match="say hello"):
                await PeerChunks.connect(UnixAddress(path), CLUSTER)

    place.run(scenario)


def test_silent_client_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that connects and says nothing is told why it is hung up on."""

    async def scenario() -> None:
        monkeypatch.setattr(limits, "PEER_HELLO_TIMEOUT_S", 0.05)
        reader, writer = await asyncio.open_unix_connection(place.address.path)
        answer = await reader.read()
        assert b"no hello in 0.05 s" in answer
        writer.close()

    place.run(scenario)


def test_socket_is_for_the_own_user_only(place: Place) -> None:
    """Whoever may connect may read every volume."""

    async def scenario() -> None:
        assert stat.S_IMODE(os.stat(place.address.path).st_mode) == 0o600

    place.run(scenario)


def test_tcp_works_like_a_unix_socket(place: Place) -> None:
    """The same protocol on the other kind of address."""

    async def scenario() -> None:
        server = PeerServer(CLUSTER, [place.service], secret="ab")
        listener = await listen_for_peers(TcpAddress("127.0.0.1", 0), server)
        chunks = await PeerChunks.connect(listener.address, CLUSTER, secret="ab")
        writer = await chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST))

        assert await chunks.read([(ONE, FIRST, 512)]) == [record(ONE, 0, FIRST)[:512]]
        [session] = server.sessions
        assert session.transport is not None
        sock = session.transport.get_extra_info("socket")
        # a host that vanishes must not have a connection for ever
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await chunks.close()
        listener.close()
        await server.close()

    place.run(scenario)


def test_nothing_can_be_done_at_once(place: Place) -> None:
    """The fast lane for chunks of this process is not open to a node's."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)

        assert place.chunks.io is None
        assert place.chunks.place(ONE) is None
        assert place.chunks.open_now(ONE, from_reserve=False) is None
        assert writer.append_now(0, FIRST, build(ONE, 0, FIRST)) is False

    place.run(scenario)


# --- lost connections -----------------------------------------------------------------------


def test_append_whose_answer_was_lost_is_sent_again(place: Place) -> None:
    """The record is stored once, and the writer never learns of the trouble."""
    place.make_service = losing(m.Append)

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        made = build(ONE, 0, FIRST)
        await writer.append(0, FIRST, made)
        await writer.append(1, FIRST + made.size, build(ONE, 1, FIRST + made.size))
        await place.chunks.sync([ONE])

        assert peer(place).reconnects == 1
        assert await place.chunks.read([(ONE, FIRST, made.size)]) == [record(ONE, 0, FIRST)]

    place.run(scenario)


@pytest.mark.parametrize("kind", [m.Open, m.Sync, m.Read, m.Fence, m.Scan, m.List, m.Delete])
def test_every_request_is_asked_again(place: Place, kind: type) -> None:
    """A connection that is lost under any request is made anew and the request repeated."""
    place.make_service = losing(kind, 2)

    async def scenario() -> None:
        chunks = place.chunks
        writer = await chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST))
        await chunks.sync([ONE])
        await chunks.read([(ONE, FIRST, 512)])
        await chunks.fence(5, 2)
        await chunks.scan(ONE, 2, FIRST)
        assert list(await chunks.list(5)) == [ONE]
        await chunks.delete(5, 2, [ONE])

        assert peer(place).reconnects == 2
        assert list(await chunks.list(5)) == []

    place.run(scenario)


def test_node_that_stays_away_is_unavailable(place: Place) -> None:
    """Requests fail after the retry time; the first one after its return connects again."""
    place.retry_s = 0.1

    async def scenario() -> None:
        await place.chunks.open(ONE, from_reserve=False)
        await place.stop()
        results = await asyncio.gather(
            place.chunks.list(5), place.chunks.read([(ONE, 0, 1)]), return_exceptions=True
        )
        assert [type(result) for result in results] == [Unavailable, Unavailable]
        await place.start()
        assert list(await place.chunks.list(5)) == []

    place.run(scenario)


def test_pending_requests_fail_when_closed(place: Place) -> None:
    """Nobody waits for an answer on a connection that its owner closed."""
    place.make_service = NeverAnswers

    async def scenario() -> None:
        waiting = asyncio.ensure_future(place.chunks.list(5))
        await asyncio.sleep(0)
        await peer(place).close()
        await peer(place).close()
        with pytest.raises(Unavailable, match="was closed"):
            await waiting
        with pytest.raises(Unavailable, match="was closed"):
            await place.chunks.list(5)
        for session in place.server.sessions:
            for task in session._tasks:
                task.cancel()

    place.run(scenario)


def test_request_without_an_answer_times_out(place: Place) -> None:
    """The late request is TimedOut, a younger one Unavailable; neither is asked again."""
    place.make_service, place.timeout_s = NeverAnswers, 0.05

    async def scenario() -> None:
        link = peer(place)._link
        assert link is not None
        with pytest.raises(TimedOut, match=r"did not answer LIST in 0\.05 s"):
            await place.chunks.list(5)
        assert link.failure is not None
        assert peer(place).reconnects == 0
        for session in place.server.sessions:
            for task in session._tasks:
                task.cancel()

    place.run(scenario)


def test_cancelled_request_leaves_the_connection_usable(place: Place) -> None:
    """The answer that nobody waits for any more is dropped."""

    async def scenario() -> None:
        waiting = asyncio.ensure_future(place.chunks.wait_for_space())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        assert list(await place.chunks.list(5)) == []
        assert peer(place).reconnects == 0

    place.run(scenario)


# --- restarts -------------------------------------------------------------------------------


def test_a_sync_covers_the_append_that_was_sent_before_it(place: Place) -> None:
    """In one packet, and not answered yet: a node serves a connection's requests in order."""

    async def scenario() -> None:
        chunks = peer(place)
        writer = await chunks.open(ONE, from_reserve=False)
        commits, begun = place.store.commits, []
        begin = commits._begin

        def noting(segment: int) -> asyncio.Future[None]:
            slot = place.store.find(ONE)
            assert slot is not None
            begun.append(slot.next_index)
            return begin(segment)

        commits._begin = noting
        data = record(ONE, 0, FIRST)
        appended = chunks.append_soon(ONE, 0, FIRST, data, writer.boot_id)
        synced = writer.sync_soon()
        assert appended is not None
        assert synced is not None

        assert await appended == await synced == place.store.boot_id
        assert begun == [1]

    place.run(scenario)


def test_sync_after_a_restart_is_corruption(place: Place) -> None:
    """Appended, restarted, synced: the records may be gone, so the sync must not succeed."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST))
        await place.restart()

        with pytest.raises(Corruption, match="restarted since the appends") as caught:
            await place.chunks.sync([ONE])
        assert f"{1000:016x}, now {1001:016x}" in caught.value.message

    place.run(scenario)


def test_what_was_scanned_before_a_restart_is_not_taken_for_synced(place: Place) -> None:
    """A takeover read the log's end, then the node lost power: the end may be gone."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST))
        await place.chunks.fence(ONE.volume, ONE.epoch + 1)
        assert await place.chunks.scan(ONE, ONE.epoch + 1, FIRST) is not None
        await place.restart()

        with pytest.raises(Corruption, match="restarted"):
            await place.chunks.sync([ONE])

    place.run(scenario)


def test_append_after_a_restart_is_corruption(place: Place) -> None:
    """A chunk is not continued on a node that may have lost its beginning."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        made = build(ONE, 0, FIRST)
        await writer.append(0, FIRST, made)
        await place.restart()

        with pytest.raises(Corruption, match="restarted"):
            await writer.append(1, FIRST + made.size, build(ONE, 1, FIRST + made.size))

    place.run(scenario)


def test_restart_between_sync_and_append_of_others_is_fine(place: Place) -> None:
    """What was synced before the restart is safe, and syncing it again says so."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST))
        await place.chunks.sync([ONE])
        await place.restart()

        await place.chunks.sync([ONE])
        two = ONE._replace(sequence=2)
        writer = await place.chunks.open(two, from_reserve=False)
        await writer.append(0, FIRST, build(two, 0, FIRST))
        await place.chunks.sync([two])

    place.run(scenario)


def test_append_during_a_sync_stays_unflushed(place: Place) -> None:
    """A sync answers for what was appended before it, not for what came meanwhile."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        made = build(ONE, 0, FIRST)
        await writer.append(0, FIRST, made)
        syncing = asyncio.ensure_future(place.chunks.sync([ONE]))
        await asyncio.sleep(0)
        await writer.append(1, FIRST + made.size, build(ONE, 1, FIRST + made.size))
        await syncing
        await place.restart()

        with pytest.raises(Corruption, match="restarted"):
            await place.chunks.sync([ONE])

    place.run(scenario)


def test_another_disk_at_the_address_is_foreign(place: Place, tmp_path: Path) -> None:
    """The node that answers now holds other data: nothing is read from it."""

    async def scenario() -> None:
        await place.stop()
        place._folder, place.disk_id = tmp_path / "other", "d2" * 16
        await place.start()
        with pytest.raises(ForeignData, match="d2" * 16):
            await place.chunks.list(5)

    place.run(scenario)


# --- the service ----------------------------------------------------------------------------


def raw(chunk: ChunkId, index: int, offset: int, data: bytes) -> m.Append:
    """Return an append that no writer would make."""
    return m.Append(chunk, index, offset, data)


def test_append_of_what_is_no_record_is_refused(place: Place) -> None:
    """Every kind of wrong record is refused before a byte of it is stored."""

    async def scenario() -> None:
        await place.chunks.open(ONE, from_reserve=False)
        good = record(ONE, 0, FIRST)
        header, payload = bytearray(good), bytearray(good)
        header[40] ^= 1
        payload[-1] ^= 1
        wrong = {
            "header checksum": bytes(header),
            "payload checksum": bytes(payload),
            "another chunk": record(ONE._replace(sequence=2), 0, FIRST),
            "written for offset": record(ONE, 0, FIRST + 512),
            "record index": record(ONE, 1, FIRST),
            "bytes follow": good + bytes(512),
            "impossible": good[:-512],
            "bad magic": b"x" * 600,
            "end of data": b"x",
        }
        for problem, data in wrong.items():
            with pytest.raises(Corruption, match=problem):
                await peer(place).append(ONE, 0, FIRST, data, place.boot_id)

        assert place.service.refused_records == len(wrong)
        await peer(place).append(ONE, 0, FIRST, good, place.boot_id)

    place.run(scenario)


def test_read_past_the_slot_is_refused(place: Place) -> None:
    """A neighbour's bytes are never handed out."""

    async def scenario() -> None:
        await place.chunks.open(ONE, from_reserve=False)
        for offset, size in ((SLOT_BYTES - 512, 1024), (SLOT_BYTES, 1), (0, SLOT_BYTES + 1)):
            with pytest.raises(Exception, match="end behind its slot"):
                await place.chunks.read([(ONE, offset, size)])
        with pytest.raises(Exception, match="end behind its slot"):
            await place.chunks.scan(ONE, 2, SLOT_BYTES + 1)

    place.run(scenario)


def test_garbage_ends_that_connection_only(place: Place) -> None:
    """One peer's garbage is told to that peer; the others notice nothing."""

    async def scenario() -> None:
        reader, writer = await asyncio.open_unix_connection(place.address.path)
        writer.write(b"GET / HTTP/1.1\r\n" + bytes(100))
        answer = await reader.read()

        assert b"frame begins with" in answer
        writer.close()
        assert list(await place.chunks.list(5)) == []
        assert peer(place).reconnects == 0

    place.run(scenario)


def test_failure_in_a_request_is_told_and_logged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the node is an error of that request, and the connection goes on."""
    place.make_service = ByMessage

    async def scenario() -> None:
        def broken(_chunks: Iterable[ChunkId]) -> None:
            raise ZeroDivisionError("bug")

        monkeypatch.setattr(place.store, "sync", broken)
        await place.chunks.open(ONE, from_reserve=False)
        with pytest.raises(Exception, match="the node failed: ZeroDivisionError: bug"):
            await place.chunks.sync([ONE])
        assert list(await place.chunks.list(5)) == [ONE]
        assert peer(place).reconnects == 0

    place.run(scenario)


def test_close_answers_what_is_under_way(place: Place) -> None:
    """A node that stops finishes the requests that it took, then says goodbye."""
    place.retry_s = 0.0

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST))
        syncing = asyncio.ensure_future(place.chunks.sync([ONE]))
        await until(lambda: any(session._tasks for session in place.server.sessions))
        await place.server.close()
        await place.server.close()

        await syncing
        with pytest.raises(Unavailable, match="shutting down"):
            await place.chunks.list(5)

    place.run(scenario)


# --- bounds ---------------------------------------------------------------------------------


def test_many_requests_stay_within_the_caps(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of reads at once are all answered, with no more under way than the caps allow."""
    place.make_service = ByMessage

    async def scenario() -> None:
        monkeypatch.setattr(limits, "PEER_IN_FLIGHT_BYTES_MAX", 4 * SLOT_BYTES)
        writer = await place.chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST, blocks=8))
        link = peer(place)._link
        assert link is not None
        most = 0

        async def read(size: int) -> int:
            nonlocal most
            [data] = await place.chunks.read([(ONE, FIRST, size)])
            most = max(most, link._in_flight_bytes)
            return len(data)

        sizes = [(index * 997) % 30000 + 1 for index in range(300)]
        assert await asyncio.gather(*map(read, sizes)) == sizes
        assert most <= 4 * SLOT_BYTES
        assert (link._in_flight, link._in_flight_bytes) == (0, 0)

    place.run(scenario)


def test_server_pauses_a_peer_that_asks_for_too_much(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client without manners is slowed down, not served without bound and not cut off."""
    place.make_service = ByMessage

    async def scenario() -> None:
        await place.chunks.open(ONE, from_reserve=False)
        monkeypatch.setattr(limits, "PEER_IN_FLIGHT_BYTES_MAX", 3 * SLOT_BYTES)
        link = peer(place)._link
        assert link is not None
        monkeypatch.setattr(type(link), "_has_room", lambda _link, _cost: True)
        [session] = place.server.sessions
        most = 0
        reads = place.store.read

        async def counted(places: object) -> list[bytes]:
            nonlocal most
            most = max(most, session.in_flight_bytes)
            return await reads(places)  # type: ignore[arg-type]

        monkeypatch.setattr(place.store, "read", counted)
        found = await asyncio.gather(
            *[place.chunks.read([(ONE, 0, SLOT_BYTES)]) for _ in range(100)]
        )

        assert [len(piece) for [piece] in found] == [SLOT_BYTES] * 100
        assert SLOT_BYTES < most <= 4 * SLOT_BYTES + 1024

    place.run(scenario)


def test_long_lists_come_in_pages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings, reads, syncs and deletions of any length are cut into frames and joined again."""

    async def scenario() -> None:
        monkeypatch.setattr(limits, "PEER_CHUNKS_MAX", 3)
        monkeypatch.setattr(limits, "PEER_READS_MAX", 2)
        made = [ONE._replace(sequence=number) for number in range(1, 11)]
        for chunk in made:
            writer = await place.chunks.open(chunk, from_reserve=False)
            await writer.append(0, FIRST, build(chunk, 0, FIRST))

        assert list(await place.chunks.list(5)) == made
        await place.chunks.sync(made)
        assert peer(place)._unflushed == {}
        found = await place.chunks.read([(chunk, FIRST, 512) for chunk in made])
        assert found == [record(chunk, 0, FIRST)[:512] for chunk in made]
        assert await place.chunks.delete(5, 2, made) == 10

    place.run(scenario)


def test_answer_of_another_size_is_refused(place: Place) -> None:
    """A node that answers with more or fewer bytes than asked is not believed."""

    class Shortens(ByMessage):
        async def _read(self, request: m.Read) -> m.ReadDone:
            answer = await super()._read(request)
            return m.ReadDone([piece[:-1] for piece in answer.pieces])

    place.make_service = Shortens

    async def scenario() -> None:
        await place.chunks.open(ONE, from_reserve=False)
        with pytest.raises(RemoteProtocolError, match=r"\[511\]"):
            await place.chunks.read([(ONE, FIRST, 512)])

    place.run(scenario)


def test_status_tells_how_the_disk_is(place: Place) -> None:
    """Boot id, slots and the reason of a failure."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        before = await peer(place).status()
        place.disk.broken = {"write"}
        with pytest.raises(Exception, match="injected"):
            await writer.append(0, FIRST, build(ONE, 0, FIRST))
        after = await peer(place).status()

        assert before == m.StatusIs(1000, m.SpaceIs(16, 1, 4, 0, SLOT_BYTES), 0, "")
        assert "injected" in after.failure

    place.run(scenario)


def test_connect_error_names_the_reason() -> None:
    """A permission is not an absence."""
    denied = connect_error(UnixAddress("/x"), PermissionError(13, "no"))
    unknown = connect_error(TcpAddress("h", 1), OSError("Name or service not known"))

    assert denied.code == "permission"
    assert "Name or service not known" in unknown.message
