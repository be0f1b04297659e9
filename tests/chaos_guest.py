"""A client of a volume that goes on while everything around it fails, and checks what it sees.

It runs in a thread of its own.  Who takes its volume away says so beforehand (`expect_loss`) and
where to go on afterwards (`go_on_at`); without that, an error or a closed connection is a
violation.  The connection to the owner that lost the volume is kept as a `Ghost`.
"""

import random
import select
import socket
import threading
import time
from pathlib import Path

from tests.block_history import BLOCK, SECTOR, BlockHistory, Change, Violation
from tests.disk_client import REPLY, DiskClient, RequestFailed
from torus.nbd import constants as nbd

DEPTH = 4
_PROVOKE_S = 0.5
PATIENCE_S = 45.0  # a request that takes longer is stuck
_PIECE = 1 << 20


class Replies:
    """The replies on a connection, as far as they came; a server may be stopped in the middle of
    one."""

    def __init__(self, client: DiskClient) -> None:
        self.client = client
        self._held = b""

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to take; tell whether there is."""
        return bool(select.select([self.client.socket], [], [], seconds)[0])

    def take(self) -> list[tuple[int, int, bytes]]:
        """Return cookie, error and payload of those that are whole, without waiting.

        Raises: ConnectionError when the server has hung up and nothing is left.
        """
        more = b""
        try:
            more = self.client.socket.recv(1 << 20, socket.MSG_DONTWAIT)
            self._held += more
        except BlockingIOError:
            pass
        else:
            if not more:
                raise ConnectionResetError("the server closed the connection")
        found = []
        while len(self._held) >= REPLY.size:
            magic, error, cookie = REPLY.unpack_from(self._held)
            assert magic == nbd.NBD_SIMPLE_REPLY_MAGIC, hex(magic)
            (length,) = [size for other, size in self.client.in_flight if other == cookie]
            size = REPLY.size + (0 if error else length)
            if len(self._held) < size:
                break
            self.client.in_flight.remove((cookie, length))
            found.append((cookie, error, self._held[REPLY.size : size]))
            self._held = self._held[size:]
        return found


class Ghost:
    """A connection to an owner that lost the volume, with what it never answered.

    It may still answer what it had sent to every disk before: the next owner found that.
    """

    def __init__(self, replies: Replies, pending: "dict[int, Change]") -> None:
        self.client = replies.client
        self.found: set[int] = set()  # numbers of changes that the next owner found
        self.late = 0  # answers to these
        self._replies = replies
        self._changes = pending

    def provoke(self) -> None:
        """Ask for one more write: it must not be answered with success."""
        # Should a gateway that hangs have left the socket full, it sees half of a request.
        self.client.socket.settimeout(_PROVOKE_S)
        try:
            cookie = self.client.send(nbd.NBD_CMD_WRITE, 0, payload=bytes(BLOCK))
        except OSError:
            return  # closed already
        self._changes[cookie] = Change(0, 0, bytes(BLOCK), plain=True)

    def end(self, seconds: float = 30.0) -> None:
        """Wait until the server closes the connection.

        Raises: Violation when it answers a write that the next owner did not find, or never
            closes.
        """
        deadline = time.monotonic() + seconds
        try:
            while self._replies.wait(deadline - time.monotonic()):
                for cookie, error, _ in self._replies.take():
                    change = self._changes.get(cookie)
                    if error or change is None:
                        continue
                    if change.number not in self.found:
                        raise Violation(
                            f"write {change.number} (0: asked for afterwards) was answered by an "
                            "owner that had lost the volume"
                        )
                    self.late += 1
        except ConnectionError:
            self.client.close()
        else:
            raise Violation(f"the former owner kept its client for {seconds:g} s")


class Guest:
    """The load on one volume."""

    def __init__(self, volume: str, size_bytes: int, rng: random.Random, socket: Path) -> None:
        self.volume = volume
        self.history = BlockHistory(size_bytes)
        self.failure: BaseException | None = None
        self.ghost: Ghost | None = None
        self.longest_s = 0.0  # of a request since somebody set it to 0
        self.first_answer: float | None = None  # after the last connection
        self.images = 0  # that were compared
        self.started = False
        self._size = size_bytes
        self._rng = rng
        self._pending: dict[int, tuple[float, Change | None]] = {}  # by cookie
        self._reads: dict[int, tuple[int, int]] = {}  # cookie: offset, length
        self._may_lose = threading.Event()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._moved = threading.Event()
        self._next: Path | None = socket
        self._thread = threading.Thread(target=self._run, name=f"guest-{volume}")

    # --- from outside -------------------------------------------------------------------

    def start(self) -> None:
        """Begin; returns at once."""
        self.started = True
        self._thread.start()
        self._wake.set()

    def expect_loss(self) -> None:
        """Its connection may break from now on."""
        self._may_lose.set()

    def go_on_at(self, socket: Path) -> None:
        """The volume is served there now; returns when the image was compared."""
        self._moved.clear()
        self._next = socket
        self._wake.set()
        deadline = time.monotonic() + 2 * PATIENCE_S
        while not self._moved.wait(0.05):
            self.check()
            if time.monotonic() > deadline:
                raise Violation(f"{self.volume}: its client did not get on at {socket}")

    def wait_answers(self, count: int, seconds: float = PATIENCE_S) -> None:
        """Wait until so many more changes were answered.  Raises: Violation, what it saw."""
        target = self.history.answers + count
        deadline = time.monotonic() + seconds
        pause = threading.Event()
        while self.history.answers < target:
            self.check()
            if time.monotonic() > deadline:
                raise Violation(f"{self.volume}: no answers for {seconds:g} s")
            pause.wait(0.005)

    def check(self) -> None:
        """Raise what the guest saw."""
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """End after what is in flight was answered, and compare the image once more."""
        self._stop.set()
        self._wake.set()
        self._thread.join(2 * PATIENCE_S)
        self.check()
        if self._thread.is_alive():
            raise Violation(f"{self.volume}: the client never ends")

    def abandon(self) -> None:
        """End at once, after a failure elsewhere."""
        self.failure = self.failure or Violation("abandoned")
        self._stop.set()
        self._wake.set()
        self._thread.join(2 * PATIENCE_S)

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        replies: Replies | None = None
        try:
            while not self._stop.is_set() or replies is not None:
                if self._next is not None:
                    replies = self._connect(self._next, replies)
                elif replies is None:
                    self._wake.wait()
                    self._wake.clear()
                    continue
                replies = self._load(replies)
        except (AssertionError, OSError, RequestFailed) as exc:
            self.failure = self.failure or exc
        finally:
            if replies is not None:
                replies.client.close()

    def _connect(self, path: Path, old: Replies | None) -> Replies:
        """Leave the former owner and go on at the next one, from the image that is there."""
        ghost = None
        if old is not None:
            self._drain(old)
            changes = {cookie: one for cookie, (_, one) in self._pending.items() if one is not None}
            ghost = Ghost(old, changes)
        client = DiskClient(path, self.volume)
        self._pending.clear()
        self._reads.clear()
        self._next = None
        found = self._compare(client)
        if ghost is not None:
            ghost.found = found
        self.ghost, self.first_answer = ghost, None
        self._may_lose.clear()
        self._moved.set()
        return Replies(client)

    def _compare(self, client: DiskClient) -> set[int]:
        found = b"".join(client.read(at, _PIECE) for at in range(0, self._size, _PIECE))
        self.images += 1
        return self.history.recover(found)

    def _drain(self, replies: Replies) -> None:
        """Take the answers that were sent before the volume changed hands."""
        try:
            while replies.wait(0):
                self._receive(replies)
        except (OSError, RequestFailed):
            return

    def _load(self, replies: Replies) -> Replies | None:
        """Go on until told otherwise; returns None when the connection is gone."""
        client = replies.client
        try:
            while self._next is None and not (self._stop.is_set() and not self._pending):
                self.check()
                while len(self._pending) < DEPTH and not self._stop.is_set():
                    if not self._send(client):
                        break
                self._wait(replies)
        except (ConnectionError, RequestFailed) as exc:
            if not self._may_lose.is_set():
                raise Violation(f"{self.volume}: the client saw {exc!r}") from exc
            client.close()
            return None
        if self._next is not None:
            return replies
        self._compare(client)  # asked to stop
        client.close()
        return None

    def _wait(self, replies: Replies) -> None:
        if replies.wait(0.02):
            self._receive(replies)
            self._wake.wait(0.0005)  # not the whole processor for the client
        for began, _ in self._pending.values():
            waited = time.monotonic() - began
            self.longest_s = max(self.longest_s, waited)
            if waited > PATIENCE_S and not self._may_lose.is_set():
                raise Violation(f"{self.volume}: a request was not answered for {waited:.0f} s")

    def _send(self, client: DiskClient) -> bool:
        rng = self._rng
        kind = rng.random()
        if kind < 0.03:
            cookie = client.send(nbd.NBD_CMD_FLUSH)
            self._pending[cookie] = (time.monotonic(), None)
            return True
        unit = SECTOR if kind < 0.15 else BLOCK
        length = unit * rng.choice((1, 1, 1, 1, 2, 3, 8))  # so that it all fits a socket
        offset = rng.randrange((self._size - length) // unit + 1) * unit
        blocks = range(offset // BLOCK, -(-(offset + length) // BLOCK))
        reading = any(
            at // BLOCK < blocks.stop and blocks.start < -(-(at + size) // BLOCK)
            for at, size in self._reads.values()
        )
        if self.history.busy(blocks) or reading:
            return False
        if kind > 0.8:
            cookie = client.send(nbd.NBD_CMD_READ, offset, length)
            self._reads[cookie] = (offset, length)
            self._pending[cookie] = (time.monotonic(), None)
            return True
        self._change(client, offset, length, unit)
        return True

    def _change(self, client: DiskClient, offset: int, length: int, unit: int) -> None:
        chance = self._rng.random()
        if chance < 0.04:
            change = self.history.write(offset, length, zeroes=True, plain=False)
            cookie = client.send(nbd.NBD_CMD_WRITE_ZEROES, offset, length)
        else:
            flags = nbd.NBD_CMD_FLAG_FUA if chance < 0.07 else 0
            change = self.history.write(offset, length, plain=unit == BLOCK and not flags)
            cookie = client.send(nbd.NBD_CMD_WRITE, offset, payload=change.content, flags=flags)
        self._pending[cookie] = (time.monotonic(), change)

    def _receive(self, replies: Replies) -> None:
        for cookie, error, payload in replies.take():
            if error:
                raise RequestFailed(error)
            began, change = self._pending.pop(cookie)
            now = time.monotonic()
            self.longest_s = max(self.longest_s, now - began)
            self.first_answer = self.first_answer or now
            read = self._reads.pop(cookie, None)
            if read is not None:
                self.history.check_read(read[0], payload)
            elif change is not None:
                self.history.answered(change)
