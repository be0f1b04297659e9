"""A client that writes without end and finds its volume wherever it is served."""

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.disk_client import DiskClient, RequestFailed
from tests.processes import wait_until
from torus.nbd import constants as nbd

BLOCK = 4096
DEPTH = 8
_PATIENCE_S = 30.0


class Writer:
    """Writes random blocks and knows what every block must hold.

    What was not answered when a connection ends is sent again on the next one, as qemu and the
    kernel do.  A block has at most one write in flight.  Every now and then one is read back.
    """

    def __init__(self, sockets: Sequence[Path], name: str, blocks: int, seed: int) -> None:
        self.sockets = list(sockets)
        self.answered: dict[int, int] = {}  # block: what was written last
        self.worst_gap_s = 0.0  # between two answers
        self.connects = self.answers = 0
        self.failure: Exception | None = None
        self._name = name
        self._blocks = blocks
        self._rng = random.Random(seed)
        self._unanswered: dict[int, int] = {}
        self._count = 0
        self._last_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "Writer":
        """Begin."""
        self._thread.start()
        return self

    def finish(self) -> None:
        """Stop writing, and raise what went wrong."""
        self._stop.set()
        self._thread.join(2 * _PATIENCE_S)
        assert not self._thread.is_alive(), "the writer hangs"
        if self.failure is not None:
            raise self.failure

    def go_on(self) -> None:
        """Wait until something more was answered."""
        before = self.answers

        def answered() -> bool:
            return self.failure is not None or self.answers > before

        wait_until(answered, "the writer goes on")

    def verify(self) -> None:
        """Read everything that was answered."""
        with self._connect() as client:
            for block, value in sorted(self.answered.items()):
                assert client.read(block * BLOCK, BLOCK) == payload(value), (block, value)

    def _run(self) -> None:
        try:
            self._last_s = time.monotonic()
            while not self._stop.is_set() or self._unanswered:
                client = self._connect()
                self.connects += 1
                try:
                    self._write(client)
                except (ConnectionError, RequestFailed):
                    continue
                finally:
                    client.close()
        except (AssertionError, OSError) as exc:
            self.failure = exc

    def _connect(self) -> DiskClient:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            for socket in self.sockets:
                try:
                    return DiskClient(socket, self._name)
                except (ConnectionError, RequestFailed, FileNotFoundError):
                    assert time.monotonic() < deadline, "nobody serves the volume"
            time.sleep(0.002)

    def _write(self, client: DiskClient) -> None:
        cookies = {}
        for block, value in self._unanswered.items():
            cookies[self._send(client, block, value)] = block
        while True:
            while len(cookies) < DEPTH and not self._stop.is_set():
                block = self._rng.randrange(self._blocks)
                if block in self._unanswered:
                    continue
                self._count += 1
                self._unanswered[block] = self._count
                cookies[self._send(client, block, self._count)] = block
            if not cookies:
                return
            cookie, error, _ = client.receive()
            if error:
                raise RequestFailed(error)
            now_s = time.monotonic()
            self.worst_gap_s = max(self.worst_gap_s, now_s - self._last_s)
            self._last_s = now_s
            block = cookies.pop(cookie)
            self.answered[block] = self._unanswered.pop(block)
            self.answers += 1
            if self._count % 64 == 0 and not cookies:
                self._look(client)

    def _look(self, client: DiskClient) -> None:
        block = self._rng.choice(list(self.answered))
        assert client.read(block * BLOCK, BLOCK) == payload(self.answered[block]), block

    def _send(self, client: DiskClient, block: int, value: int) -> int:
        return client.send(nbd.NBD_CMD_WRITE, block * BLOCK, payload=payload(value))


def payload(value: int) -> bytes:
    """Return the block that stands for ``value``."""
    return value.to_bytes(8, "big") * (BLOCK // 8)
