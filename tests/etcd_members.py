"""Real etcd clusters for tests: members that are killed, stopped, cut off from the others.

Between the members stand proxies of our own, one in front of each; etcd's members name themselves
in the first request of each connection, so a proxy knows whose connection to refuse.
Nothing waits for a time: everything polls for what should happen, with a deadline.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torus.metadata.etcd import EtcdMetadata
from torus.metadata.etcd_url import parse_etcd

DEADLINE_S = 30.0
_SENDER = re.compile(rb"\r\nx-server-from: ([0-9a-f]+)\r\n", re.IGNORECASE)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class PeerProxy:
    """Passes the connections to one member on, unless their sender is cut off from it."""

    def __init__(self, port: int, target: int) -> None:
        self.port, self._target = port, target
        self.refused: set[bytes] = set()  # ids of members; b"*" stands for all
        self._open: dict[asyncio.Task[None], bytes] = {}

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    def close(self) -> None:
        self._server.close()

    def refuse(self, senders: set[bytes]) -> None:
        """Cut these senders off from now on, and let all others through."""
        self.refused = senders
        for task, sender in tuple(self._open.items()):
            if self._is_refused(sender):
                task.cancel()

    def _is_refused(self, sender: bytes) -> bool:
        return b"*" in self.refused or sender in self.refused

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = b""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            found = _SENDER.search(head)
            sender = self._open[task] = found[1] if found else b""
            if not self._is_refused(sender):
                await self._pass(head, reader, writer)
        del self._open[task]
        writer.close()

    async def _pass(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            back.write(head)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, back))
                group.create_task(_pump(there, writer))
        except* OSError:
            pass
        finally:
            back.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    raise ConnectionResetError("the other side is gone")


def _state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


class EtcdMember:
    """One process of etcd, and the proxy in front of its peer port."""

    def __init__(
        self, name: str, folder: Path, ports: list[int], cluster: str, host: str = "127.0.0.1"
    ) -> None:
        self.name = name
        self.host = host  # where clients reach it
        self.folder = folder
        self.client_port, self.peer_port, proxy_port = ports
        self.proxy = PeerProxy(proxy_port, self.peer_port)
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self.extra: list[str] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.client_port}"

    def start(self) -> None:
        with (self.folder.parent / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "etcd", "--name", self.name, "--data-dir", str(self.folder),
                    "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
                    "--listen-peer-urls", f"http://127.0.0.1:{self.peer_port}",
                    "--initial-advertise-peer-urls", f"http://127.0.0.1:{self.proxy.port}",
                    "--initial-cluster", self._cluster,
                    "--heartbeat-interval", "50", "--election-timeout", "500",
                    "--log-level", "error", *self.extra,
                ],
                stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        """End it as a power cut would, except that the page cache stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Stop every thread of it; returns when they have stopped."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self._process.pid}/task")
        while any(_state(one) != "T" for one in threads.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class EtcdCluster:
    """One or more members in a folder of their own, in memory where that is possible."""

    def __init__(self, size: int, hosts: Sequence[str] = ()) -> None:
        """``hosts``: where clients reach each member; by default the loopback interface."""
        shm = Path("/dev/shm")
        self.folder = Path(
            tempfile.mkdtemp(prefix="etcd-", dir=shm if os.access(shm, os.W_OK) else None)
        )
        ports = free_ports(3 * size)
        names = [f"m{number}" for number in range(size)]
        cluster = ",".join(
            f"{name}=http://127.0.0.1:{ports[3 * number + 2]}" for number, name in enumerate(names)
        )
        self.members = [
            EtcdMember(name, self.folder / name, ports[3 * number : 3 * number + 3], cluster, host)
            for number, (name, host) in enumerate(
                zip(names, hosts or ["127.0.0.1"] * size, strict=True)
            )
        ]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="peer-proxies")
        self._thread.start()
        for member in self.members:
            self._on_loop(member.proxy.start)
            member.start()
        self._raw = self.open("probe")
        self.wait(lambda: self.leader() is not None, "a leader")

    def url(self, prefix: str) -> str:
        hosts = ",".join(f"{member.host}:{member.client_port}" for member in self.members)
        return f"etcd://{hosts}/{prefix}"

    def open(self, prefix: str) -> EtcdMetadata:
        return EtcdMetadata(parse_etcd(self.url(prefix)))

    def status(self, member: EtcdMember) -> Any:
        """Return what a member says of itself; None when it does not answer."""
        number = self.members.index(member)
        messages, grpc = self._raw.link.package.messages, self._raw.link.package.grpc
        with contextlib.suppress(grpc.RpcError):
            stub = self._raw.link.all_members()[number].maintenance
            return stub.Status(messages.StatusRequest(), timeout=1.0)
        return None

    def leader(self) -> EtcdMember | None:
        """Return the member that at least two say leads, or the only one."""
        for member in self.members:
            said = self.status(member)
            if said is not None and said.leader == said.header.member_id:
                return member
        return None

    def time_to_live(self, lease: int) -> int:
        """Return the seconds that a lease has left; -1 when it has ended."""
        messages = self._raw.link.package.messages
        request = messages.LeaseTimeToLiveRequest(ID=lease)
        member = self._raw.link.member(self._raw.link.deadline_ns(5))
        return int(member.lease.LeaseTimeToLive(request, timeout=5.0).TTL)

    def partition(self, member: EtcdMember) -> None:
        """Cut one member off from all others, in both directions."""
        said = self.status(member)
        sender = f"{said.header.member_id:x}".encode()
        for one in self.members:
            refused = {b"*"} if one is member else {sender}
            self._loop.call_soon_threadsafe(one.proxy.refuse, refused)

    def heal(self) -> None:
        for one in self.members:
            self._loop.call_soon_threadsafe(one.proxy.refuse, set())

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.02)

    def close(self) -> None:
        self._raw.close()
        for member in self.members:
            member.kill()
        self._on_loop(self._drain)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _drain(self) -> None:
        for member in self.members:
            member.proxy.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_loop(self, step: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(step(), self._loop).result(DEADLINE_S)


@contextlib.contextmanager
def running(size: int, hosts: Sequence[str] = ()) -> Iterator[EtcdCluster]:
    """Run a cluster for the length of a block."""
    cluster = EtcdCluster(size, hosts)
    try:
        yield cluster
    finally:
        cluster.close()
