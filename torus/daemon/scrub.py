"""The scrub of a node: one for each disk, constructed, told and asked.

Decides where a disk's scrub gets its repairs from: the other disks in a cluster, nowhere on a
single machine.  Whether they scrub at all is `torus.daemon.scrub_pause`'s.

Implements docs/scrub.md.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from torus import limits
from torus.clock import Clock
from torus.daemon.metrics import Sample
from torus.daemon.scrub_pause import PauseWatch
from torus.errors import RemoteProtocolError
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import ScrubPause
from torus.store.store import Store
from torus.upkeep.mend import Mender
from torus.upkeep.pace import nobody_is_slow
from torus.upkeep.scrub import DiskScrub, Logs
from torus.upkeep.scrub_logs import read_logs
from torus.upkeep.scrub_shown import document_of, sentences, summary
from torus.upkeep.scrub_state import DEEP, LIGHT
from torus.upkeep.scrub_times import ScrubTimes, read_state

ASK = "scrub"
SHOW, BEGIN, LOOK = "show", "begin", "look"


def is_scrub_question(question: bytes) -> bool:
    """Tell whether a report is asked for that is answered here."""
    return question.startswith(b'{"ask": "scrub"')


def scrub_question(action: str = SHOW, volumes: Iterable[int] = (), *, deep: bool = False) -> bytes:
    """Return the question, or order, to a node."""
    asked = {"ask": ASK, "do": action, "deep": deep, "volumes": sorted(volumes)}
    return json.dumps(asked).encode()


def scrub_documents(answer: bytes) -> list[dict[str, Any]]:
    """Return what a node says of its disks' scrubs.  Raises: RemoteProtocolError."""
    try:
        disks = json.loads(answer)["disks"]
        for one in disks:
            one["disk_id"], one["state"], one["findings"]
    except (ValueError, KeyError, TypeError) as exc:
        raise RemoteProtocolError("a node's report on its scrub cannot be read") from exc
    return list(disks)


class NodeScrub:
    """The scrubs of a node's disks."""

    def __init__(self) -> None:
        self.disks: dict[str, ScrubTimes] = {}
        self.pauses: PauseWatch | None = None

    def obey(self, pause: ScrubPause | None) -> None:
        """Let no disk scrub from now on; with None, let them."""
        for disk in self.disks.values():
            disk.obey(pause)

    async def answer(self, question: bytes) -> bytes:
        """Do what is asked, and say how far the disks are.

        Whether they are paused the metadata says; all but `SHOW` have it looked at before.

        Raises: RemoteProtocolError, Unavailable, Corruption.
        """
        try:
            asked = json.loads(question)
            action, deep = asked["do"], bool(asked["deep"])
            volumes = [int(volume) for volume in asked["volumes"]]
        except (ValueError, KeyError, TypeError) as exc:
            raise RemoteProtocolError(f"report cannot be read: {question[:80]!r}") from exc
        if action not in (SHOW, BEGIN, LOOK):
            raise RemoteProtocolError(f"a scrub cannot be told to {action!r}")
        if action != SHOW and self.pauses is not None:
            await self.pauses.look()
        if action == BEGIN:
            for disk in self.disks.values():
                disk.begin(volumes, deep=deep)
        return json.dumps({"disks": self.documents()}, sort_keys=True).encode()

    def documents(self, most: int = limits.SCRUB_SHOWN_MAX) -> list[dict[str, Any]]:
        """Return how far the disks are and what they found: ``most`` findings of each."""
        return [
            document_of(
                disk_id,
                one.state,
                one.going_on,
                total=one.total,
                rate_bytes=one.rate_bytes,
                problem=one.problem,
                pause=one.pause,
                most=most,
            )
            for disk_id, one in self.disks.items()
        ]

    def summary(self) -> dict[str, Any]:
        """Return what all disks of the node found."""
        return summary(self.documents())

    def problems(self) -> list[str]:
        """Return a sentence for each thing that is beyond repair."""
        return sentences(self.summary())

    def samples(self) -> Iterable[Sample]:
        """Return the metrics, all disks together."""
        found = self.summary()
        disks = list(self.disks.values())
        yield Sample("torus_scrub_read_bytes_total", sum(one.scrub.bytes for one in disks))
        yield Sample("torus_scrub_chunks_total", sum(one.scrub.chunks for one in disks))
        for kind, count in found["found"].items():
            yield Sample("torus_scrub_found_total", count, (kind,))
        for kind, count in found["repaired"].items():
            yield Sample("torus_scrub_repaired_total", count, (kind,))
        yield Sample("torus_scrub_open", found["open"])
        yield Sample("torus_scrub_lost", found["lost"])
        yield Sample("torus_scrub_running", found["running"])
        yield Sample("torus_scrub_paused", found["paused"])
        for depth, ended_ns in ((LIGHT, found["last_light_ns"]), (DEEP, found["last_deep_ns"])):
            yield Sample("torus_scrub_last_seconds", (ended_ns or 0) / 1e9, (depth,))

    async def close(self) -> None:
        """End all of it where it is; idempotent."""
        for disk in self.disks.values():
            await disk.close()


async def start_scrub(
    stack: AsyncExitStack,
    stores: Mapping[str, Store],
    metadata: AsyncMetadata,
    clock: Clock,
    menders: Mapping[str, Mender],
    *,
    rate_bytes: int | None,
    clients_slow: Callable[[], bool] = nobody_is_slow,
) -> NodeScrub:
    """Begin the scrub of a node's disks; ``stack`` ends it, before the stores close.

    ``menders``: by disk; a single machine has none.  ``rate_bytes``: what each disk may read in
    a second; None: what it takes; 0: only when it is asked for.
    """

    async def logs() -> Logs:
        return await read_logs(metadata)

    node = NodeScrub()
    for disk_id, store in stores.items():
        state = await store.in_pool(read_state, store)
        scrub = DiskScrub(store, logs, clock, state, menders.get(disk_id))
        node.disks[disk_id] = ScrubTimes(
            scrub, clock, rate_bytes=rate_bytes, clients_slow=clients_slow
        )
    stack.push_async_callback(node.close)
    node.pauses = PauseWatch(metadata, node.obey)
    stack.push_async_callback(node.pauses.stop)
    await node.pauses.start()
    for one in node.disks.values():
        one.start()
    return node
