"""The upkeep of all disks of a node, and its answers to other nodes and to people.

Decides nothing about chunks.  Implements docs/protocol.md, "Reports".
"""

import json
from collections.abc import Iterable
from typing import Any

from torus.clock import Clock
from torus.errors import NotFound, RemoteProtocolError
from torus.upkeep.clients import ClientsSaid, Word, read_question
from torus.upkeep.disk import DiskUpkeep
from torus.upkeep.peers import confirm_answer, copies_of


class NodeUpkeep:
    """The disks of a node; a disk may come and go."""

    def __init__(self, clock: Clock, disks: Iterable[DiskUpkeep] = ()) -> None:
        self.disks = {disk.disk_id: disk for disk in disks}
        self.own_clients = ClientsSaid(clock)  # as owners said whose data lie here
        self.far_clients = ClientsSaid(clock)  # as the nodes said that disks here pull from

    async def answer(self, question: bytes) -> bytes:
        """Answer a question of another node.

        Raises: RemoteProtocolError, NotFound for a disk that is not here, DiskFailed.
        """
        try:
            asked = json.loads(question)
            what = asked["ask"]
        except (ValueError, KeyError, TypeError) as exc:
            raise RemoteProtocolError(f"report cannot be read: {question[:80]!r}") from exc
        if what == "confirm":
            disk = self._disk(asked.get("disk"))
            answer = confirm_answer(await disk.confirm(copies_of(asked)))
        elif what == "doubt":
            disk = self._disk(asked.get("disk"))
            for copy in copies_of(asked):
                disk.doubt(copy.chunk)
            answer = {}
        elif what == "look":
            self.poke()
            answer = {}
        elif what == "clients":
            answer = self.hear(*read_question(asked))._asdict()
        elif what == "upkeep":
            answer = {"disks": self.documents()}
        else:
            raise RemoteProtocolError(f"report {what!r} is not known")
        return json.dumps(answer, sort_keys=True).encode()

    def hear(self, who: str, word: Word) -> Word:
        """Note what an owner, or a disk that pulls from here, says; return the like of here."""
        self.own_clients.hear(who, word)
        said = self.own_clients.word
        return Word(said.hurt, max(said.share, self.moving_share()))

    def clients_hurt(self) -> bool | None:
        """Say whether clients feel what moves to or from here; None: nobody has any."""
        words = self.own_clients.word.hurt, self.far_clients.word.hurt
        return None if words == (None, None) else any(words)

    def moving_share(self) -> float:
        """Return the largest share of its rate at which a disk pulls what merely moves."""
        return max((disk.moving_share() for disk in self.disks.values()), default=0.0)

    def poke(self) -> None:
        """Have all disks look soon: something changed."""
        for disk in self.disks.values():
            disk.poke()

    def rest_s(self) -> float:
        """Return how long after a look for full chunks the next one may come."""
        return max((disk.rest_s for disk in self.disks.values()), default=0.0)

    def documents(self) -> list[dict[str, Any]]:
        """Return the progress of every disk as JSON."""
        return [disk.document() for disk in self.disks.values()]

    def settled(self) -> bool:
        """Say whether every disk has all that the newest ring wants it to have."""
        return all(disk.settled() for disk in self.disks.values())

    def needs(self, disk_id: str) -> int:
        """Return how many bytes lie on a disk.  Raises: NotFound."""
        return self._disk(disk_id).needs()

    def _disk(self, disk_id: object) -> DiskUpkeep:
        disk = self.disks.get(disk_id) if isinstance(disk_id, str) else None
        if disk is None:
            raise NotFound(f"disk {disk_id!r} is not on this node")
        return disk

    async def close(self) -> None:
        """End all of it; idempotent."""
        for disk in self.disks.values():
            await disk.close()
