"""Bad days of the peer protocol: who is refused, what a hung node costs, who gets no memory."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.certificates import make_certificates
from tests.contract.chunk_places import CLUSTER, DISK, FIRST, LOOPS, Place, build, record
from torus import limits
from torus.cluster.peer import PeerChunks
from torus.errors import (
    ConfigError,
    ForeignData,
    LocalProtocolError,
    NotFound,
    PermissionDenied,
    TimedOut,
    TorusError,
    Unavailable,
)
from torus.ids import ChunkId
from torus.net.address import TcpAddress, UnixAddress
from torus.net.tls import TlsFiles, client_context, server_context
from torus.node.server import PeerServer, listen_for_peers
from torus.wire import codec, frames
from torus.wire import messages as m

ONE = ChunkId(5, 2, 0, 1)
SECRET = "ab" * 32


@pytest.fixture(params=list(LOOPS))
def place(request: pytest.FixtureRequest, tmp_path: Path, socket_folder: Path) -> Place:
    """Give a store behind a unix socket, on each loop."""
    return Place("peer", request.param, tmp_path / "data", socket_folder)


@pytest.fixture(params=["tcp-asyncio", "tls-uvloop"])
def far(request: pytest.FixtureRequest, tmp_path: Path, socket_folder: Path) -> Place:
    """Give a store behind TCP, with and without TLS."""
    kind, _, loop = request.param.partition("-")
    return Place(kind, loop, tmp_path / "data", socket_folder)


# --- who is refused -----------------------------------------------------------------------


def test_wrong_secret_is_refused(far: Place) -> None:
    """Neither another secret nor none opens a node, and it goes on serving its own."""

    async def scenario() -> None:
        for wrong in ("cd" * 32, "ab" * 31):
            with pytest.raises(PermissionDenied, match="does not know the cluster's secret"):
                await PeerChunks.connect(far.address, CLUSTER, secret=wrong, tls=far.tls)
        with pytest.raises(PermissionDenied, match="no secret"):
            await PeerChunks.connect(far.address, CLUSTER, tls=far.tls)
        await far.chunks.list(1)

    far.run(scenario)


def test_tcp_without_a_secret_is_refused_by_the_node(place: Place) -> None:
    """A single machine's node that is made to listen on TCP serves nobody there."""

    async def scenario() -> None:
        listener = await listen_for_peers(TcpAddress("127.0.0.1", 0), place.server)
        with pytest.raises(PermissionDenied, match="no secret"):
            await PeerChunks.connect(listener.address, CLUSTER, secret=SECRET)
        listener.close()

    place.run(scenario)


def test_one_listener_serves_every_disk_of_a_node(place: Place, tmp_path: Path) -> None:
    """The hello chooses; a disk that is not there is named; none is only right for one disk."""
    other = Place("local", "asyncio", tmp_path / "other", tmp_path)
    other.disk_id = "d2" * 16

    async def scenario() -> None:
        await other.start()
        place.server.add(type(place.service)(other.store))
        first = await PeerChunks.connect(place.address, CLUSTER, disk_id=DISK)
        second = await PeerChunks.connect(place.address, CLUSTER, disk_id="d2" * 16)
        await first.open(ONE, from_reserve=False)

        assert (first.disk_id, second.disk_id) == (DISK, "d2" * 16)
        assert list(await first.list(5)) == [ONE]
        assert list(await second.list(5)) == []
        for wanted in ("", "d3" * 16):
            with pytest.raises(NotFound, match="serves 2 disks"):
                await PeerChunks.connect(place.address, CLUSTER, disk_id=wanted)
        place.server.remove("d2" * 16)
        with pytest.raises(NotFound):
            await PeerChunks.connect(place.address, CLUSTER, disk_id="d2" * 16)
        with pytest.raises(TorusError):
            await second.list(5)
        assert list(await first.list(5)) == [ONE]
        await first.close()
        await second.close()
        await other.stop()

    place.run(scenario)


def test_node_with_another_clusters_disk_is_refused(place: Place) -> None:
    """A disk that was carried over is told by its cluster, from both sides."""

    async def scenario() -> None:
        server = PeerServer("ee" * 16, [place.service])
        listener = await listen_for_peers(UnixAddress(place.address.path + "-2"), server)  # type: ignore[union-attr]
        with pytest.raises(ForeignData, match=CLUSTER):
            await PeerChunks.connect(listener.address, CLUSTER)
        listener.close()
        await server.close()

    place.run(scenario)


def test_version_1_is_told_so(place: Place) -> None:
    """A client of the version before gets a refusal whose header it can read as another's."""

    async def scenario() -> None:
        data = bytearray(codec.encode(m.Space(), 0)[0])
        data[4] = 1
        data[-4:] = codec.checksum(bytes(data[:-4])).to_bytes(4, "little")
        reader, writer = await asyncio.open_unix_connection(place.address.path)  # type: ignore[union-attr]
        writer.write(data)
        answer = await reader.read()

        header = frames.parse_header(answer)
        refusal = codec.decode(header, answer[frames.HEADER_BYTES :])
        assert isinstance(refusal, m.Error)
        assert "speaks version 1 of the protocol, this torus version 2" in refusal.message
        assert header.request == 0
        writer.close()

    place.run(scenario)


def test_garbage_is_refused_and_others_go_on(place: Place) -> None:
    """Noise, a torn frame, silence in the middle: that connection ends, no other one notices."""

    async def scenario() -> None:
        hello = b"".join(codec.encode(m.Hello(
            bytes.fromhex(CLUSTER), bytes(16), 0, 0, 1 << 23, 1 << 25, 9, "x"), 0))  # fmt: skip
        for data in (b"GET / HTTP/1.1\r\n\r\n" * 9, os.urandom(4096), hello + b"\0" * 48,
                     hello + hello, hello[:60] + b"\xff" + hello[61:]):  # fmt: skip
            reader, writer = await asyncio.open_unix_connection(place.address.path)  # type: ignore[union-attr]
            writer.write(data)
            assert b"TPFR" in await reader.read()
            writer.close()
        await place.chunks.list(1)

    place.run(scenario)


def test_certificate_of_another_authority_is_refused(tmp_path: Path, socket_folder: Path) -> None:
    """TLS is mutual; without it nothing is understood."""
    far = Place("tls", "asyncio", tmp_path / "data", socket_folder)
    stranger = make_certificates(socket_folder)["stranger"]
    distrust = TlsFiles(stranger.cert, stranger.key, socket_folder / "other-ca.pem")

    async def scenario() -> None:
        with pytest.raises((PermissionDenied, Unavailable)):
            await PeerChunks.connect(far.address, CLUSTER, secret=SECRET, tls=stranger)
        with pytest.raises(PermissionDenied, match="certificate is refused"):
            await PeerChunks.connect(far.address, CLUSTER, secret=SECRET, tls=distrust)
        with pytest.raises(Unavailable):
            await PeerChunks.connect(far.address, CLUSTER, secret=SECRET)
        await far.chunks.list(1)

    far.run(scenario)


def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """Which file, and why; before anything is listened on."""
    good = make_certificates(tmp_path)["node"]
    stranger = make_certificates(tmp_path)["stranger"]
    text = tmp_path / "text"
    text.write_text("no certificate\n")
    empty = tmp_path / "empty"
    empty.touch()
    nowhere = tmp_path / "nowhere"
    cases = [
        (TlsFiles(nowhere, good.key, good.ca), "--tls-cert .*nowhere.*No such file"),
        (TlsFiles(good.cert, nowhere, good.ca), "--tls-key .*nowhere.*No such file"),
        (TlsFiles(good.cert, good.key, nowhere), "--tls-ca .*nowhere.*No such file"),
        (TlsFiles(good.cert, good.key, empty), "--tls-ca .*empty"),
        (TlsFiles(text, good.key, good.ca), "--tls-cert .*text.*no certificate"),
        (TlsFiles(good.cert, text, good.ca), "--tls-key .*text.*no private key"),
        (TlsFiles(good.cert, good.key, text), "--tls-ca .*text.*no certificates"),
        (TlsFiles(good.cert, stranger.key, good.ca), "--tls-key .*not the key of"),
    ]
    for files, expected in cases:
        for make in (server_context, client_context):
            with pytest.raises(ConfigError, match=expected):
                make(files)
    subprocess.run(
        ["openssl", "ec", "-in", good.key, "-aes128", "-passout", "pass:secret", "-out",
         tmp_path / "locked"], check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"--tls-key .*locked.*password"):
        server_context(TlsFiles(good.cert, tmp_path / "locked", good.ca))


# --- hung and slow ------------------------------------------------------------------------


class Stopped:
    """A node in a process of its own, which a signal stops without closing its sockets."""

    def __init__(self, folder: Path) -> None:
        self.address = UnixAddress(str(folder / "stopped"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.cluster.peer_child", folder / "disk",
             self.address.path], stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"up\n"

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def with_stopped(folder: Path, loop: str, scenario: Callable[[Stopped], object]) -> None:
    node = Stopped(folder)
    try:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(scenario(node))  # type: ignore[arg-type]
    finally:
        node.end()


@pytest.mark.parametrize("loop", list(LOOPS))
def test_hung_node_is_noticed_in_its_time(socket_folder: Path, loop: str) -> None:
    """Every request fails, those that wait for room too, also when the socket is full."""

    async def scenario(node: Stopped) -> None:
        chunks = await PeerChunks.connect(node.address, CLUSTER, silence_s=0.5, retry_s=0)
        writers = {}
        for sequence in range(1, 6):
            chunk = ONE._replace(sequence=sequence)
            writers[chunk] = await chunks.open(chunk, from_reserve=False)
        node.stop()
        began = time.monotonic()
        data = [
            (chunk, build(chunk, 0, FIRST, blocks=256).tobytes())  # 1 MiB
            for chunk in writers
            for _ in range(16)
        ]
        outcomes = await asyncio.gather(
            *[writers[chunk].append_bytes(0, FIRST, one) for chunk, one in data],
            chunks.sync([ONE]), chunks.read([(ONE, 0, 512)]), chunks.examine([ONE]),
            return_exceptions=True,
        )  # fmt: skip
        took_s = time.monotonic() - began

        assert all(isinstance(outcome, Unavailable) for outcome in outcomes), outcomes
        assert any(isinstance(outcome, TimedOut) for outcome in outcomes)
        # One connecting anew is tried by those that had to wait, and it is not answered either.
        assert took_s < 2.5
        await chunks.close()

    with_stopped(socket_folder, loop, scenario)


def test_hung_node_is_noticed_while_nobody_asks(socket_folder: Path) -> None:
    """A connection that is kept alive ends by itself about a second after the node hangs."""

    async def scenario(node: Stopped) -> None:
        chunks = await PeerChunks.connect(node.address, CLUSTER, silence_s=0.4, retry_s=0)
        link = chunks._link
        assert link is not None
        await asyncio.wait([link.ended], timeout=1.0)
        assert link.failure is None
        node.stop()
        began = time.monotonic()
        await asyncio.wait_for(link.ended, 5)
        assert isinstance(link.failure, TimedOut)
        assert time.monotonic() - began < 1.5
        await chunks.close()

    with_stopped(socket_folder, "asyncio", scenario)


def test_node_that_is_not_asked_for_long_is_left_in_peace(
    socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner is connected with every disk of the cluster: signs of life of all of them, for
    nothing, took a hundred nodes with fifty volumes all they had.  Asked again, a node that hangs
    is noticed as soon as ever."""
    monkeypatch.setattr(limits, "PEER_REST_S", 0.8)

    async def scenario(node: Stopped) -> None:
        chunks = await PeerChunks.connect(node.address, CLUSTER, silence_s=0.4, retry_s=0)
        link = chunks._link
        assert link is not None
        while link._timer is not None:
            await asyncio.wait([link.ended], timeout=0.05)
        assert link.failure is None
        await chunks.ping()
        assert link._timer is not None
        while link._timer is not None:
            await asyncio.wait([link.ended], timeout=0.05)
        node.stop()
        await asyncio.wait([link.ended], timeout=1.0)
        assert link.failure is None, "nobody looks"
        began = time.monotonic()
        with pytest.raises(TimedOut):
            await chunks.examine([ONE])
        assert time.monotonic() - began < 1.5
        await chunks.close()

    with_stopped(socket_folder, "asyncio", scenario)


def test_client_that_was_held_up_reads_first(place: Place) -> None:
    """A process that did not run for a second does not blame the node for its own silence."""
    place.silence_s = 0.3

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        waiting = asyncio.ensure_future(writer.append_bytes(0, FIRST, record(ONE, 0, FIRST)))
        await asyncio.sleep(0)
        threading.Event().wait(1.0)  # holds up both ends, as they share the loop
        await waiting
        await place.chunks.sync([ONE])
        assert place.chunks.reconnects == 0  # type: ignore[union-attr]

    place.run(scenario)


def test_slow_sync_on_a_node_that_is_alive_is_waited_for(place: Place) -> None:
    """Silence is the node's, not the disk's: it says that it is there while it syncs."""
    place.silence_s = 1.5  # much more than a busy machine holds a process up

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST))
        sync = place.disk.sync
        place.disk.sync = lambda segment: (threading.Event().wait(4.0), sync(segment))[1]  # type: ignore[method-assign]
        await place.chunks.sync([ONE])
        assert place.chunks.reconnects == 0  # type: ignore[union-attr]

    place.run(scenario)


def test_client_that_never_reads_its_replies_costs_no_memory(place: Place) -> None:
    """Its requests stay with the kernel once its replies fill the socket; others are served."""

    async def scenario() -> None:
        chunks = place.chunks
        writer = await chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST, blocks=14))
        deaf = await PeerChunks.connect(place.address, CLUSTER)
        link = deaf._link
        assert link is not None
        assert link.transport is not None
        link.transport.pause_reading()
        waiting = [asyncio.ensure_future(deaf.read([(ONE, 512, 50_000)])) for _ in range(600)]
        [session] = [one for one in place.server.sessions if one.connection.peer is not None
                     and one.connection.peer.name == ""]  # fmt: skip
        async with asyncio.timeout(10):
            while session.writable:  # noqa: ASYNC110, nothing tells a test
                await asyncio.sleep(0)
        served = session.requests
        assert served < 600
        assert await chunks.read([(ONE, FIRST, 512)]) == [record(ONE, 0, FIRST, blocks=14)[:512]]
        assert session.requests == served
        assert session.transport is not None
        assert session.transport.get_write_buffer_size() < 2 * limits.MIB
        link.transport.resume_reading()
        found = await asyncio.gather(*waiting)
        assert len(found) == 600
        await deaf.close()

    place.run(scenario)


@pytest.mark.slow
def test_two_thousand_connections(place: Place) -> None:
    """All are served, each with little memory, and the oldest still works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip(f"the most files here are {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))

    async def scenario() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peers: list[PeerChunks] = []
        for _ in range(40):
            peers += await asyncio.gather(
                *[PeerChunks.connect(place.address, CLUSTER) for _ in range(50)]
            )
        found = await asyncio.gather(*[one.list(5) for one in peers])
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

        assert place.server.connections == 2001
        assert found == [[]] * 2000
        assert grown_mib < 300  # both ends are in this process
        await place.chunks.list(5)
        await asyncio.gather(*[one.close() for one in peers])

    place.run(scenario)


def test_all_connections_together_are_bounded(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many peers that ask for much at once get it one after the other."""
    monkeypatch.setattr(limits, "PEER_SERVED_BYTES_MAX", 200_000)

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        await writer.append(0, FIRST, build(ONE, 0, FIRST, blocks=14))
        monkeypatch.setattr(place.service, "read_now", lambda _request, _reads: None)
        peers = [await PeerChunks.connect(place.address, CLUSTER) for _ in range(8)]
        most, reads = 0, place.store.read

        async def counted(places: object) -> list[bytes]:
            nonlocal most
            most = max(most, place.server.load.bytes)
            return await reads(places)  # type: ignore[arg-type]

        monkeypatch.setattr(place.store, "read", counted)
        found = await asyncio.gather(
            *[peer.read([(ONE, 512, 50_000)]) for peer in peers for _ in range(20)]
        )
        assert len(found) == 160
        assert 100_000 < most < 200_000 + 9 * 60_000
        assert place.server.load.bytes == 0
        for peer in peers:
            await peer.close()

    place.run(scenario)


def test_append_that_does_not_fit_its_field_is_a_local_error(place: Place) -> None:
    """This side's bug is told from the other's."""

    async def scenario() -> None:
        writer = await place.chunks.open(ONE, from_reserve=False)
        with pytest.raises(LocalProtocolError, match="out of its range"):
            await writer.append_bytes(1 << 32, FIRST, b"x")
        await place.chunks.list(5)

    place.run(scenario)


def test_socket_that_is_a_listener_of_nothing(socket_folder: Path) -> None:
    """A stale socket is said to be one."""
    path = str(socket_folder / "stale")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)

    async def scenario() -> None:
        with pytest.raises(Unavailable, match="Connection refused"):
            await PeerChunks.connect(UnixAddress(path), CLUSTER)

    asyncio.run(scenario())
