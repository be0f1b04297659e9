"""Converting a volume to another redundancy: told to the disks, watched until it is done.

Decides when a conversion is done: when every disk that is up has looked twice since it was told,
and has nothing of the volume to make or to give up.  What is done is upkeep's: each disk makes
its parts and gives up what it need not have, whoever watches.

Implements docs/upkeep.md, "What can be seen".
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torus import limits
from torus.cluster.membership import Place
from torus.daemon.rebalance import ClusterState, Watching
from torus.errors import TorusError
from torus.ids import ChunkId, split_part, whole_id
from torus.log import get_logger
from torus.metadata.schema import Head

log = get_logger("torus.convert")

ASK_LOOK = json.dumps({"ask": "look"}).encode()
_LOOK_S = 1.0
_WRITER_S = 60.0  # a writer that cannot follow so long is not waited for
_ROUNDS = 2  # one may have been under way with what was known before
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Parts:
    """What the disks that are up have of a volume."""

    chunks: int
    cut: int  # chunks that lie in shards alone
    copies: int  # whole copies
    shards: int
    silent: int  # disks that could not be asked


async def tell(watching: Watching) -> None:
    """Have all disks look at what is to be done soon; those that do not hear it find out."""
    for node in _nodes(await watching.look()):
        try:
            await watching.ask(node, ASK_LOOK)
        except TorusError as exc:
            log.debug("convert.not_told", node=node.node_id, reason=exc.message)


async def wait(watching: Watching, before: Head, volume: int, report: Report) -> None:
    """Return when every disk that is up is done with a volume; ``report(done, total)`` counts
    parts.

    ``before``: its head when it was converted.  A process that writes it goes on in another span;
    only then can the chunks of that one be converted.
    """
    await _wait_for_writer(watching, before, volume)
    total, first = 0, _rounds(await watching.look())
    await tell(watching)
    while True:
        state = await watching.look()
        left = sum(
            int((one.report or {}).get("unfinished", {}).get(str(volume), 0)) for one in state.disks
        )
        total = max(total, left)
        report(total - left, total)
        if _is_done(state, first) and not left:
            return
        if not left and not _is_done(state, first):
            await tell(watching)
        await asyncio.sleep(_LOOK_S)


async def _wait_for_writer(watching: Watching, before: Head, volume: int) -> None:
    """Return when the span that was open is not open any more, if there is a living writer."""
    if not before.spans or before.spans[-1].last is not None:
        return
    was = before.spans[-1]
    give_up_s = asyncio.get_running_loop().time() + _WRITER_S
    while asyncio.get_running_loop().time() < give_up_s:
        head = await watching.head(volume)
        if head is None or head.owner is None or watching.is_gone(head.owner):
            return
        last = head.spans[-1] if head.spans else None
        if last is None or (last.epoch, last.tag) != (was.epoch, was.tag):
            return
        await asyncio.sleep(_LOOK_S)


def _rounds(state: ClusterState) -> dict[str, int]:
    return {
        one.place.disk_id: int(one.report["rounds"])
        for one in state.disks
        if one.report is not None
    }


def _is_done(state: ClusterState, first: dict[str, int]) -> bool:
    """Tell whether every disk that is up has looked often enough."""
    for one in state.disks:
        if not one.place.up:
            continue
        if one.report is None:
            return False
        before = first.setdefault(one.place.disk_id, int(one.report["rounds"]))
        if int(one.report["rounds"]) < before + _ROUNDS:
            return False
    return True


def _nodes(state: ClusterState) -> list[Place]:
    """Return one disk of each node that is up."""
    found: dict[str, Place] = {}
    for one in state.disks:
        if one.place.up:
            found.setdefault(one.place.node_id, one.place)
    return list(found.values())


async def count_parts(watching: Watching, volume: int) -> Parts:
    """Return what there is of a volume, as every disk that is up lists it."""
    state = await watching.look()
    up = [one.place for one in state.disks if one.place.up]
    answers = await asyncio.gather(*[_list(watching, place, volume) for place in up])
    listed = [answer for answer in answers if answer is not None]
    parts = Counter(part for answer in listed for part in answer)
    chunks = {whole_id(part) for part in parts}
    whole = {part for part in parts if split_part(part)[1] is None}
    copies = sum(parts[part] for part in whole)
    return Parts(
        chunks=len(chunks),
        cut=len(chunks - whole),
        copies=copies,
        shards=sum(parts.values()) - copies,
        silent=len(state.disks) - len(listed),
    )


async def _list(watching: Watching, place: Place, volume: int) -> Sequence[ChunkId] | None:
    try:
        async with asyncio.timeout(limits.PEER_REQUEST_TIMEOUT_S):
            return await watching.parts_on(place, volume)
    except (TimeoutError, TorusError) as exc:
        log.debug("convert.not_listed", disk=place.disk_id, reason=str(exc))
        return None
