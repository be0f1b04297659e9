"""Volumes whose log has copies: what is answered when disks fail, and who may go on."""

import asyncio
import contextlib
from dataclasses import replace

import pytest

from tests.unit.cluster.replicas import BLOCK, Replicas, SimNode, block, let_pass, run
from torus import limits
from torus.cluster import replicated_writes
from torus.cluster.replicated import VolumeChunks
from torus.cluster.replicated_chunk import Copy
from torus.errors import Corruption, DiskFailed, Fenced, PoolFull, TorusError, Unavailable
from torus.ids import ChunkId
from torus.metadata.base import Put
from torus.metadata.keys import head_key
from torus.metadata.schema import Head, RingHead, Span
from torus.ring.builder import first_ring
from torus.ring.table import Ring
from torus.store.content import Presence, walk
from torus.volume.attachment import Attachment
from torus.volume.volume import Volume


async def write(volume: Volume, *numbers: int, flush: bool = False) -> None:
    """Write some blocks."""
    for number in numbers:
        await volume.write(number * BLOCK, block(number), durable=False)
    if flush:
        await volume.flush()


async def read_back(volume: Volume, *numbers: int) -> None:
    """Read blocks that `write` wrote."""
    for number in numbers:
        assert await volume.read(number * BLOCK, BLOCK) == block(number), number


async def head_of(replicas: Replicas) -> Head:
    """Return the head as it is published."""
    return (await replicas.catalog.get("one")).head


async def spans_of(replicas: Replicas) -> list[Span]:
    """Return the spans of the newest epoch."""
    head = await head_of(replicas)
    return [span for span in head.spans if span.epoch == head.epoch]


def owners_now(replicas: Replicas, attachment: Attachment, copies: int = 3) -> list[SimNode]:
    """Return the nodes of the chunk that is being written."""
    return replicas.owners(attachment.volume.core.journal.chunk, copies)


def copy_of(attachment: Attachment, node: SimNode) -> Copy:
    """Return what the writer knows of a node's copy of the chunk that is being written."""
    chunks = attachment.volume.core.chunks
    assert isinstance(chunks, VolumeChunks)
    return chunks._open.chunks[attachment.volume.core.journal.chunk].copies[node.disk_id]


async def until(happened, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not happened():
            await let_pass(0.002)


async def not_done(task: asyncio.Task[object], seconds: float = 0.3) -> None:
    """Expect that a task is still waiting after a while."""
    await asyncio.wait([task], timeout=seconds)
    assert not task.done()


# --- one writer -----------------------------------------------------------------------------


def test_a_volume_is_written_flushed_and_read() -> None:
    """The simplest life: written, flushed, read, given back, and read by another process."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        volume = attachment.volume
        for number in range(64):
            await volume.write(number * BLOCK, block(number), durable=False)
        await volume.flush()
        assert await volume.read(5 * BLOCK, BLOCK) == block(5)
        await attachment.detach()

        again = await replicas.attach(2)
        for number in range(64):
            assert await again.volume.read(number * BLOCK, BLOCK) == block(number)
        await again.detach()

    run(1, scenario)


def test_a_write_is_answered_when_every_copy_has_it() -> None:
    """As long as one of the disks has not answered, and is not known to be lost, nobody is told."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        slow = owners_now(replicas, attachment)[2]
        slow.silent = True

        waiting = asyncio.ensure_future(write(attachment.volume, 1))

        await not_done(waiting)
        waiting.cancel()

    run(2, scenario)


def test_a_dead_node_is_left_out_and_the_write_goes_on() -> None:
    """Survivors have it durably, the span is closed where it is, the next leaves the disk out."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0, 1, flush=True)
        dead = owners_now(replicas, attachment)[1]
        dead.kill()

        await write(attachment.volume, 2, 3)

        closed, opened = await spans_of(replicas)
        assert (closed.tag, closed.excluded) == (0, ())
        assert closed.end is not None
        assert (opened.tag, opened.excluded) == (1, (dead.disk_id,))
        assert opened.first == closed.last + 1
        await read_back(attachment.volume, 0, 1, 2, 3)
        # all that was answered in the closed span is durable: the survivors can lose power
        for node in replicas.nodes.values():
            node.lose_power() if node is not dead else None
        again = await replicas.attach(2)
        await read_back(again.volume, 0, 1, 2)

    run(3, scenario)


@pytest.mark.parametrize("kind", ["hang", "silent", "failed"])
def test_a_node_that_hangs_or_fails_is_left_out(kind: str) -> None:
    """Silence and a failed disk are losses, too."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        bad = owners_now(replicas, attachment)[0]
        if kind == "hang":
            bad.faults["append"] = ["hang"]
        elif kind == "silent":
            bad.silent = True
        else:
            bad.refusing = DiskFailed("planned")

        await write(attachment.volume, 1, flush=True)

        assert (await spans_of(replicas))[-1].excluded == (bad.disk_id,)
        await read_back(attachment.volume, 0, 1)

    run(4, scenario)


def test_a_flush_finds_a_dead_node_too() -> None:
    """Nothing is told to be durable before the span without the disk is published."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        dead = owners_now(replicas, attachment)[2]
        dead.kill()

        await attachment.volume.flush()

        assert (await spans_of(replicas))[-1].excluded == (dead.disk_id,)
        for node in replicas.nodes.values():
            node.lose_power() if node is not dead else None
        again = await replicas.attach(2)
        await read_back(again.volume, 0)

    run(5, scenario)


def test_a_slow_sync_of_a_node_that_answers_is_waited_for() -> None:
    """A disk may take long to sync; only silence is a loss."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        slow = owners_now(replicas, attachment)[1]
        sync = slow.chunks.sync

        async def slowly(chunks):  # type: ignore[no-untyped-def]
            await let_pass(3 * limits.REPLICA_SILENCE_S)
            await sync(chunks)

        slow.chunks.sync = slowly  # type: ignore[method-assign]

        await attachment.volume.flush()

        assert len(await spans_of(replicas)) == 1

    run(6, scenario)


def test_nothing_is_answered_while_the_metadata_are_away() -> None:
    """A loss waits for its compare-and-swap; it is repeated, and the write is answered then."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        owners_now(replicas, attachment)[0].kill()
        replicas.metadata.fail(1, count=10**9)

        waiting = asyncio.ensure_future(write(attachment.volume, 1))
        await not_done(waiting, 3)
        assert "cannot be published" in attachment.holder.waiting
        replicas.metadata.fail(0)

        await waiting
        assert attachment.holder.waiting == ""
        await read_back(attachment.volume, 0, 1)

    run(7, scenario)


def test_a_second_flush_waits_for_the_publication_too() -> None:
    """A flush that comes when the survivors are durable already, and the span without the lost
    disk is not published yet, is not answered: a takeover may hear of the lost disk alone."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        owners_now(replicas, attachment)[0].kill()
        replicas.metadata.fail(1, count=10**9)
        first = asyncio.ensure_future(attachment.volume.flush())
        await until(lambda: attachment.holder.waiting)

        second = asyncio.ensure_future(attachment.volume.flush())
        third = attachment.volume.flush_soon()
        await not_done(second, 3)
        assert not third.done()
        replicas.metadata.fail(0)

        await asyncio.gather(first, second, third)

    run(7, scenario)


def test_a_publication_that_happened_unheard_is_not_made_twice() -> None:
    """The answer of the compare-and-swap is lost: it is repeated, and counts as done."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        owners_now(replicas, attachment)[0].kill()
        replicas.metadata.fail(1, late=True)

        await write(attachment.volume, 1, 2)

        assert [span.tag for span in await spans_of(replicas)] == [0, 1]

    run(8, scenario)


@pytest.mark.parametrize("lost", [False, True])
def test_no_more_chunks_are_unsynced_than_upkeep_takes_for_the_tail(
    lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a disk takes its time to sync, writes go on only so far; then they wait for it."""
    monkeypatch.setattr(replicated_writes, "_UNSYNCED_CHUNKS_MAX", 4)

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        volume = attachment.volume
        opened = volume.core.chunks._open  # type: ignore[attr-defined]
        most = 0
        for number in range(200):
            await write(volume, number)
            most = max(most, len(opened.chunks))
            if lost and number == 100:
                replicas.nodes["a"].faults["sync"] = [DiskFailed("planned")]
        assert volume.core.journal.chunk.sequence > 8
        assert most <= 4
        assert len(await spans_of(replicas)) == 1 + lost
        await read_back(volume, *range(200))

    run(9, scenario)


def test_the_survivors_are_durable_before_the_span_is_published() -> None:
    """At the moment in which the new span is published, all nodes lose power: what was written
    is there."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0, 1, 2)
        dead = owners_now(replicas, attachment)[1]
        commit = replicas.metadata.commit

        async def commit_and_crash(expect, changes):  # type: ignore[no-untyped-def]
            done = await commit(expect, changes)
            replicas.metadata.commit = commit
            for node in replicas.nodes.values():
                node.lose_power()
            return done

        replicas.metadata.commit = commit_and_crash  # type: ignore[method-assign]
        dead.kill()
        await write(attachment.volume, 3)

        dead.up = True
        again = await replicas.attach(2)
        await read_back(again.volume, 0, 1, 2, 3)

    run(9, scenario)


# --- healing --------------------------------------------------------------------------------


def test_a_process_that_restarts_goes_on() -> None:
    """Its page cache has everything: it takes up its chunk again, without another span."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0, 1)
        owners_now(replicas, attachment)[1].restart()

        await write(attachment.volume, 2)
        owners_now(replicas, attachment)[0].restart()
        await attachment.volume.flush()

        assert len(await spans_of(replicas)) == 1
        for node in replicas.nodes.values():
            node.lose_power()
        again = await replicas.attach(2)
        await read_back(again.volume, 0, 1, 2)

    run(10, scenario)


@pytest.mark.parametrize("synced", [0, 1, 2])
def test_a_machine_that_lost_power_gets_its_records_again(synced: int) -> None:
    """A flush is answered only by the opening of the disk that had the appends: what a restart
    lost is sent again, and then it is durable there, too."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, *range(synced), flush=True)
        await write(attachment.volume, 2, 3)
        restarted = owners_now(replicas, attachment)[1]
        restarted.lose_power()

        await attachment.volume.flush()

        assert len(await spans_of(replicas)) == 1
        # only this one comes back after all of them lost power
        for node in replicas.nodes.values():
            node.lose_power()
            node.up = node is restarted
        again = await replicas.attach(2)
        await read_back(again.volume, *range(synced), 2, 3)

    run(11 + synced, scenario)


def test_a_connection_that_breaks_costs_nothing() -> None:
    """Whether a record arrived or not, it is sent again."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        one, two, three = owners_now(replicas, attachment)
        one.faults["append"], two.faults["append"] = ["drop"], ["lose"]
        three.faults["sync"] = ["lose"]
        two.faults["reopen"] = ["drop"]

        await write(attachment.volume, 1, flush=True)

        assert len(await spans_of(replicas)) in (1, 2)
        await read_back(attachment.volume, 0, 1)

    run(15, scenario)


def test_fewer_than_the_least_number_of_copies_wait() -> None:
    """Writes wait, and go on when a node is back; nothing is answered in between."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 2)
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        one, two, _ = owners_now(replicas, attachment)
        one.kill()
        two.kill()

        waiting = asyncio.ensure_future(write(attachment.volume, 1))
        await not_done(waiting, 3)
        assert "too few copies" in attachment.volume.core.chunks.waiting
        two.restart()
        two.up = True

        await waiting
        assert (await spans_of(replicas))[-1].excluded == (one.disk_id,)
        assert attachment.volume.core.chunks.waiting == ""
        await read_back(attachment.volume, 0, 1)

    run(16, scenario)


def test_nodes_that_come_back_at_other_addresses_are_gone_on_with() -> None:
    """All at once, and each listens on another port than before: as after a power failure."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 2)
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        nodes = owners_now(replicas, attachment)
        for node in nodes:
            node.kill()

        waiting = asyncio.ensure_future(write(attachment.volume, 1))
        await not_done(waiting, 3)
        for node in nodes:
            node.restart()
            node.up, node.address = True, node.address + ":again"
            replicas.view.set_place(node.place())

        await asyncio.wait_for(waiting, 30)
        await attachment.volume.flush()
        await read_back(attachment.volume, 0, 1)

    run(17, scenario)


def test_too_few_disks_for_another_span_wait() -> None:
    """With as many nodes as copies that are needed, a loss waits until it is back."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 2)
        attachment = await replicas.attach()
        await write(attachment.volume, 0, flush=True)
        replicas.nodes["a"].kill()

        waiting = asyncio.ensure_future(write(attachment.volume, 1, flush=True))
        await not_done(waiting, 3)
        replicas.nodes["a"].lose_power()
        replicas.nodes["a"].up = True

        await waiting
        await read_back(attachment.volume, 0, 1)

    run(17, scenario, nodes="ab")


def test_a_takeover_that_hears_of_nobody_leaves_nobody_out() -> None:
    """Else its span would be on no disk at all, and the next takeover could ask nobody."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        nodes = list(replicas.nodes.values())
        for node in nodes:
            node.after["fence"] = lambda _node: replicas.view.set_down(*[n.disk_id for n in nodes])
        with pytest.raises(Unavailable):
            await replicas.attach()
        assert [span.excluded for span in await spans_of(replicas)] == [()]
        for node in nodes:
            node.after.clear()
            replicas.view.set_place(node.place())

        again = await replicas.attach(2)

        await write(again.volume, 0, flush=True)
        await read_back(again.volume, 0)

    run(35, scenario, nodes="ab")


def test_a_takeover_notes_the_disks_that_it_missed_and_goes_on_with() -> None:
    """Nobody is left out, so nothing else would tell that they may have less than the others."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 2)
        first = await replicas.attach(1)
        await write(first.volume, 0, flush=True)
        heard, *missed = owners_now(replicas, first)
        for node in missed:
            node.kill()
        await replicas.attach(2)
        closed, opened = (await head_of(replicas)).spans
        assert closed.short == tuple(sorted(node.disk_id for node in missed))
        assert (opened.excluded, opened.short) == ((), ())
        for node in missed:
            node.up = True
        third = await replicas.attach(3)
        await write(third.volume, 1, flush=True)
        assert not any(span.short for span in (await head_of(replicas)).spans[1:])
        assert heard.disk_id not in (await head_of(replicas)).spans[0].short
        await read_back(third.volume, 0, 1)

    run(70, scenario, nodes="abc")


def test_nodes_are_counted_by_weight_and_without_those_left_out() -> None:
    """What decides whether a span may be opened at all."""

    async def scenario(replicas: Replicas) -> None:
        nodes = {"a": "one", "b": "one", "c": "two", "d": "three", "e": "four"}
        replicas.members = [
            replace(member, node_id=nodes[member.node_id], weight=int(member.node_id != "e"))
            for member in replicas.members
        ]
        replicas.ring = first_ring(replicas.members)
        replicas.view.set_ring(replicas.ring)
        await replicas.create(3, 2)
        attachment = await replicas.attach()
        chunks = attachment.volume.core.chunks
        assert isinstance(chunks, VolumeChunks)
        disks = {name: node.disk_id for name, node in replicas.nodes.items()}
        counts = {
            names: chunks._next._left(frozenset(disks[name] for name in names))
            for names in ("", "a", "ab", "c", "cd", "e", "abcd")
        }
        assert counts == {"": 3, "a": 3, "ab": 2, "c": 2, "cd": 1, "e": 3, "abcd": 0}

    run(72, scenario, nodes="abcde")


def test_a_span_waits_while_the_ring_has_too_few_nodes_of_weight() -> None:
    """A disk without weight that owns some slots still is no disk for every slot."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 2)
        attachment = await replicas.attach()
        await write(attachment.volume, 0, flush=True)
        replicas.next_ring("b")
        await let_pass(5)
        assert [span.ring for span in await spans_of(replicas)] == [1]
        await write(attachment.volume, 1, flush=True)  # the old span goes on
        replicas.next_ring()
        await let_pass(5)
        assert (await spans_of(replicas))[-1].ring == 3
        await read_back(attachment.volume, 0, 1)

    run(36, scenario, nodes="ab")


async def with_open_span(replicas: Replicas, excluded: tuple[str, ...]) -> None:
    """Let the head have one open span that leaves these disks out."""
    await replicas.create(2, 1)
    found = await replicas.catalog.get("one")
    head = replace(found.head, epoch=1, spans=(Span(1, 0, 1, ring=1, excluded=excluded),))
    key = head_key(found.spec.volume)
    assert await replicas.metadata.commit([], [Put(key, head.to_bytes())]) is not None


def test_an_open_span_on_no_disk_is_empty() -> None:
    """No record was ever answered in it: that takes a disk."""

    async def scenario(replicas: Replicas) -> None:
        await with_open_span(replicas, tuple(node.disk_id for node in replicas.nodes.values()))
        attachment = await replicas.attach()
        await write(attachment.volume, 0, flush=True)
        await read_back(attachment.volume, 0)

    run(37, scenario, nodes="ab")


def test_an_open_span_whose_disks_were_removed_is_not_taken_for_empty() -> None:
    """They may have had flushed data: whoever attaches waits, and is told why."""

    async def scenario(replicas: Replicas) -> None:
        [kept, *removed] = [node.disk_id for node in replicas.nodes.values()]
        await with_open_span(replicas, (kept,))
        for disk in removed:
            place = replicas.view.disks()[disk]
            replicas.view.set_place(replace(place, address=None, state="removed"))
        with pytest.raises(Unavailable, match="not part of the cluster any more"):
            await replicas.attach()

    run(38, scenario, nodes="abc")


def test_what_was_sent_again_to_a_disk_that_healed_is_synced_before_it_counts() -> None:
    """Too few disks for another span: the lost one heals, the span goes on, and what the flush
    was answered for survives on that disk alone."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 2)
        attachment = await replicas.attach()
        await write(attachment.volume, 0, flush=True)
        late = replicas.nodes["c"]
        late.kill()
        replicas.next_ring("b")
        waiting = asyncio.ensure_future(write(attachment.volume, 1, flush=True))
        await not_done(waiting, 3)
        assert "can take new chunks" in attachment.volume.core.chunks.waiting
        late.restart()
        late.up = True
        await waiting

        for node in replicas.nodes.values():
            node.lose_power() if node is late else node.kill()

        again = await replicas.attach(2)
        await read_back(again.volume, 0, 1)

    run(39, scenario, nodes="abc")


def test_a_disk_that_missed_the_end_of_a_span_is_noted_when_the_next_one_needs_it() -> None:
    """It is not left out, so nothing else would tell that it has less than the others."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 2)
        attachment = await replicas.attach()
        await write(attachment.volume, 0, flush=True)
        short = replicas.nodes["c"]
        short.faults["append"] = ["drop"] * 9
        short.faults["reopen"] = [Corruption("its slot cannot be read")] * 999
        replicas.next_ring("b")

        await write(attachment.volume, 1, flush=True)

        closed, opened = await spans_of(replicas)
        assert closed.short == (short.disk_id,)
        assert (opened.excluded, opened.short) == ((), ())
        await read_back(attachment.volume, 0, 1)
        text = (await head_of(replicas)).to_bytes()
        assert text.count(b'"short"') == 1  # only where there is one

    run(40, scenario, nodes="abc")


def test_closing_does_not_wait_for_ever() -> None:
    """A volume whose writes wait is closed after a while; its write ends in an error."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 2)
        attachment = await replicas.attach()
        await write(attachment.volume, 0, flush=True)
        replicas.nodes["a"].kill()
        waiting = asyncio.ensure_future(write(attachment.volume, 1))
        await not_done(waiting)

        await attachment.detach()

        with pytest.raises(Unavailable, match="being closed"):
            await waiting

    run(18, scenario, nodes="ab")


def test_a_full_disk_is_left_out() -> None:
    """The others go on; when too few are left, the pool is full as ever."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 2)
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        full = PoolFull("planned")
        replicas.nodes["a"].faults["open"] = [full] * 1000

        await write(attachment.volume, *range(1, 64))
        assert (replicas.nodes["a"].disk_id,) in [one.excluded for one in await spans_of(replicas)]

        attachment.volume.queue.stop_waiting()
        for name in "bcd":
            replicas.nodes[name].faults["open"] = [full] * 1000
        with pytest.raises(PoolFull):
            await write(attachment.volume, *range(64, 128))

    run(19, scenario)


@pytest.mark.parametrize("copies", [2, 3])
def test_a_full_disk_is_not_taken_in_before_it_has_room(copies: int) -> None:
    """It answers all the time: spans would end for it every few seconds, and begin again.  With
    three copies on three nodes it is missed, too.  Room for one chunk more is none."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(copies, copies - 1)
        full = replicas.nodes["a"]
        others = await fill_up(full)
        attachment = await replicas.attach()
        number = 0
        for _ in range(300):
            await write(attachment.volume, number % 256, flush=True)
            number += 1
            if number == 150:  # somebody deletes a chunk
                await full.chunks.delete(others[0].volume, 1, [others.pop()])
            await let_pass(2)
        spans = await spans_of(replicas)
        assert len(spans) <= 3, [span.excluded for span in spans]
        assert spans[-1].excluded == (full.disk_id,)

        await full.chunks.delete(others[0].volume, 1, others[:40])
        await until(lambda: attachment.volume.resealer.rolls > 0, 130)
        assert (await spans_of(replicas))[-1].excluded == ()
        for _ in range(60):
            await write(attachment.volume, number % 256, flush=True)
            number += 1
        assert any(one.volume != others[0].volume for one in full.store.chunks())
        assert len(await spans_of(replicas)) == len(spans) + 1

    run(66, scenario, nodes="abc")


def test_a_full_disk_does_not_stand_in_for_one_that_is_lost() -> None:
    """Disks that rest are called back where copies are missing; not one that is full."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 1)
        full, dead = replicas.nodes["a"], replicas.nodes["c"]
        await fill_up(full)
        attachment = await replicas.attach()
        await write(attachment.volume, *range(40), flush=True)
        dead.kill()
        for number in range(40, 100):
            await write(attachment.volume, number, flush=True)
            await let_pass(0.01)
        spans = await spans_of(replicas)
        assert [set(span.excluded) for span in spans] == [
            {full.disk_id}, {full.disk_id, dead.disk_id}
        ]  # fmt: skip
        assert attachment.volume.resealer.seals == 2

    run(68, scenario, nodes="abc")


@pytest.mark.parametrize("dies", [False, True])
def test_a_full_disk_is_taken_in_where_no_span_can_be_without_it(*, dies: bool) -> None:
    """Then the pool is full, and says so; also when it was left out, and another disk dies."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3 if dies else 2, 2)
        if dies:
            await fill_up(replicas.nodes["a"])
        attachment = await replicas.attach()
        number = 0
        while attachment.volume.core.journal.room:  # the next record begins a chunk
            await write(attachment.volume, number, flush=True)
            number += 1
        if dies:
            replicas.nodes["c"].kill()
        else:
            await fill_up(replicas.nodes["a"])
        attachment.volume.queue.stop_waiting()

        async with asyncio.timeout(60):
            with pytest.raises(PoolFull):
                await write(attachment.volume, *range(128))

    run(67, scenario, nodes="abc" if dies else "ab")


async def fill_up(node: SimNode) -> list[ChunkId]:
    """Fill a disk with chunks of another volume; return them."""
    chunks: list[ChunkId] = []
    with contextlib.suppress(PoolFull):
        while True:
            chunk = ChunkId(99, 1, 0, len(chunks) + 1)
            await node.chunks.open(chunk, from_reserve=False)
            chunks.append(chunk)
    assert len(chunks) > 100
    return chunks


# --- better spans ---------------------------------------------------------------------------


def test_a_disk_that_is_back_is_used_again() -> None:
    """After a while the span that leaves it out ends for one that does not."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0)
        back = owners_now(replicas, attachment)[0]
        back.kill()
        await write(attachment.volume, 1)
        assert attachment.volume.resealer.seals == 1
        back.restart()
        back.up = True

        await until(lambda: attachment.volume.resealer.rolls == 1)

        assert (await spans_of(replicas))[-1].tag == 2
        assert (await spans_of(replicas))[-1].excluded == ()
        await write(attachment.volume, 2, flush=True)
        await read_back(attachment.volume, 0, 1, 2)

    run(20, scenario)


def test_a_new_ring_begins_a_new_span() -> None:
    """What is open stays where it is; what follows lies where the new ring has it."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0, 1)

        replicas.next_ring("a")
        await until(lambda: attachment.volume.resealer.rolls == 1)
        await write(attachment.volume, 2, flush=True)

        assert [span.ring for span in await spans_of(replicas)] == [1, 2]
        await read_back(attachment.volume, 0, 1, 2)
        await attachment.detach()
        again = await replicas.attach(2)
        await read_back(again.volume, 0, 1, 2)

    run(21, scenario)


def test_checkpoints_and_seals_beside_each_other() -> None:
    """Losses at any time in a checkpoint, a snapshot or a flush: one head follows the other."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 1)
        attachment = await replicas.attach()
        volume = attachment.volume
        for turn in range(12):
            work = [
                asyncio.ensure_future(write(volume, *range(turn, turn + 6))),
                asyncio.ensure_future(volume.checkpointer.write()),
                asyncio.ensure_future(attachment.snapshot(f"s{turn}", turn)),
                asyncio.ensure_future(volume.flush()),
            ]
            for _ in range(replicas.rng.randrange(60)):
                await asyncio.sleep(0)
            node = replicas.nodes["abcd"[turn % 4]]
            node.kill()
            await asyncio.gather(*work)
            node.lose_power()
            node.up = True
            await read_back(volume, *range(turn + 6))
        await attachment.detach()
        again = await replicas.attach(2)
        await read_back(again.volume, *range(17))
        assert len(again.volume.core.pins.numbers) == 12

    for seed in range(220, 226):
        run(seed, scenario)


# --- two writers ----------------------------------------------------------------------------


def test_the_old_writer_is_refused_by_any_node_that_the_new_one_reached() -> None:
    """One node that was fenced is enough: not all copies can be had any more."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        old = await replicas.attach()
        await write(old.volume, 0)
        reached = owners_now(replicas, old)[0]
        others = {name for name in replicas.nodes if name != reached.name}

        new = await replicas.attach(2, cut=others)

        with pytest.raises(Fenced):
            await write(old.volume, 1)
        with pytest.raises(Fenced):
            await old.volume.flush()
        assert await new.volume.read(0, 2 * BLOCK) == block(0) + bytes(BLOCK)

    run(23, scenario, nodes="abc")


def test_the_old_writer_cannot_leave_out_the_node_that_fenced_it() -> None:
    """It takes the refusing node for lost, has enough others, and loses the compare-and-swap."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        old_cut: set[str] = set()
        old = await replicas.attach(cut=old_cut)
        await write(old.volume, 0)
        reached = owners_now(replicas, old)[0]
        others = {name for name in replicas.nodes if name != reached.name}
        new = await replicas.attach(2, cut=others)
        old_cut.add(reached.name)  # the old one does not hear of it

        with pytest.raises(Fenced, match="is held by"):
            await write(old.volume, 1, flush=True)
        with pytest.raises(Fenced):
            await old.volume.flush()
        assert await new.volume.read(BLOCK, BLOCK) == bytes(BLOCK)

    run(24, scenario, nodes="abc")


@pytest.mark.parametrize("paused", [False, True])
def test_a_heal_does_not_answer_what_a_takeover_has_not_found(paused: bool) -> None:
    """One copy has a record and loses it with its power, and is taken over from; the other, which
    nobody could fence, gets the record again only afterwards: the old writer is refused.

    ``paused``: no connection breaks, the record arrives late.
    """

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(2, 1)
        first = await replicas.attach(1)
        await write(first.volume, 0, flush=True)
        lost, late = owners_now(replicas, first, 2)
        for node in replicas.nodes.values():
            node.soon_share = 1.0
        reached, go_on = asyncio.Event(), asyncio.Event()
        kind = "append" if paused else "reopen"

        def hold(node: SimNode) -> None:
            node.faults[kind] = [delay]

        async def delay() -> None:
            reached.set()
            await go_on.wait()

        if not paused:
            late.faults["append"] = ["drop", "drop"]
        hold(late)
        writing = asyncio.ensure_future(write(first.volume, 1))
        await reached.wait()
        await let_pass(0.02)  # the other has answered
        lost.lose_power()
        second = await replicas.attach(2, cut={late.name})
        with pytest.raises(AssertionError):
            await read_back(second.volume, 1)
        await let_pass(0.3)
        go_on.set()

        with pytest.raises(Fenced):
            await writing
        await write(second.volume, 2, flush=True)
        await read_back(second.volume, 0, 2)

    run(61, scenario, nodes="ab")


@pytest.mark.parametrize("drops", [1, 2])
def test_other_copies_are_asked_once_more_when_one_was_sent_again(drops: int) -> None:
    """A disk that was opened anew meanwhile, and that nobody fenced, gets its records again; and
    a write that nothing disturbs costs no question.

    ``drops``: after one the record is sent again, after two the copy is healed.
    """

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 2)
        attachment = await replicas.attach(1)
        await write(attachment.volume, 0, 1, flush=True)
        assert not any("ping" in node.asked for node in replicas.nodes.values())
        broken, blinks, _ = owners_now(replicas, attachment)
        for node in replicas.nodes.values():
            node.soon_share = 1.0
        act = [lambda _: blinks.lose_power()]
        broken.faults["append"] = ["drop"] * drops + (act if drops == 1 else [])
        broken.faults["reopen"] = act if drops == 2 else []

        await write(attachment.volume, 2)

        assert copy_of(attachment, blinks).next_index == 4
        assert "reopen" in blinks.asked
        assert attachment.volume.resealer.seals == 0
        for node in replicas.nodes.values():
            if node is not blinks:
                node.kill()
        again = await replicas.attach(2)
        await read_back(again.volume, 0, 1, 2)

    run(62, scenario, nodes="abc")


def test_what_the_old_writer_was_told_is_what_the_new_one_finds() -> None:
    """Writes race with a takeover that hears of one node only: none is answered that the new
    owner does not have."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        old = await replicas.attach()
        await write(old.volume, 0)
        reached = owners_now(replicas, old)[1]
        others = {name for name in replicas.nodes if name != reached.name}
        told: list[int] = []

        async def go_on() -> None:
            for number in range(1, 200):
                await old.volume.write(number * BLOCK, block(number), durable=False)
                told.append(number)

        racing = asyncio.ensure_future(go_on())
        for _ in range(replicas.rng.randrange(200)):
            await asyncio.sleep(0)
        new = await replicas.attach(2, cut=others)
        with pytest.raises(TorusError):
            await racing

        await read_back(new.volume, 0, *told)

    for seed in range(25, 37):
        run(seed, scenario, nodes="abc")


def test_a_disk_is_fenced_and_read_in_one_step() -> None:
    """Between the read and the fence nothing may be answered: also on a disk that was away when
    all were fenced."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        old = await replicas.attach()
        await write(old.volume, 0)
        chunk = old.volume.core.journal.chunk
        reached = replicas.owners(chunk)[1]
        told: list[int] = []

        async def go_on() -> None:
            for number in range(1, 10):  # one record each, in the same chunk
                await old.volume.write(number * BLOCK, block(number), durable=False)
                told.append(number)

        racing = asyncio.ensure_future(go_on())
        for _ in range(replicas.rng.randrange(60)):
            await asyncio.sleep(0)
        found = await replicas.catalog.get("one")
        others = {name for name in replicas.nodes if name != reached.name}
        chunks = replicas.pool(others).chunks_of(found.spec)
        chunks.learn(found.spec.volume, found.head.spans)

        data = await chunks.scan(chunk, found.head.epoch + 1, limits.SLOT_HEADER_BYTES)

        with pytest.raises(Fenced):
            await racing
        assert data is not None
        assert walk(data, chunk).records >= 2 + len(told)
        await chunks.stop()

    for seed in range(60, 80):
        run(seed, scenario, nodes="abc")


# --- takeover -------------------------------------------------------------------------------


def test_what_was_taken_over_is_durable() -> None:
    """A record that was in page caches only, and that the new owner serves, survives a loss of
    power everywhere."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        old = await replicas.attach()
        await write(old.volume, 0, flush=True)
        await write(old.volume, 1)

        new = await replicas.attach(2)
        await read_back(new.volume, 0, 1)
        for node in replicas.nodes.values():
            node.lose_power()
        third = await replicas.attach(3)

        await read_back(third.volume, 0, 1)

    run(40, scenario)


def test_a_short_copy_is_made_as_long_as_the_longest() -> None:
    """A writer died in the middle of an append: every disk has what was chosen afterwards."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        old = await replicas.attach()
        await write(old.volume, 0)
        chunk = old.volume.core.journal.chunk
        _, two, three = replicas.owners(chunk)
        two.faults["append"] = ["drop"]
        two.silent = three.silent = True
        three.faults["append"] = ["drop"]
        dying = asyncio.ensure_future(write(old.volume, 1))
        await not_done(dying)
        two.silent = three.silent = False

        new = await replicas.attach(2)

        await read_back(new.volume, 0, 1)
        found = [(await node.chunks.examine([chunk]))[0] for node in replicas.owners(chunk)]
        assert {one.state for one in found} == {Presence.PRESENT}
        assert len({(one.end, one.crc) for one in found}) == 1
        dying.cancel()

    run(41, scenario)


def test_a_takeover_waits_when_nobody_can_tell() -> None:
    """No disk of the open span answers: there is no end of the log to be known."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        old = await replicas.attach()
        await write(old.volume, 0)
        for node in owners_now(replicas, old):
            node.kill()

        with pytest.raises(Unavailable, match="where the log ends cannot be told"):
            await replicas.attach(2)

        for node in replicas.nodes.values():
            node.up = True
        new = await replicas.attach(3)
        await read_back(new.volume, 0)

    run(42, scenario)


def test_a_failed_disk_does_not_say_that_a_chunk_is_not_there() -> None:
    """It says nothing: the one that works is asked."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        old = await replicas.attach()
        await write(old.volume, 0)
        one, two, three = owners_now(replicas, old)
        one.refusing = DiskFailed("planned")
        two.kill()

        new = await replicas.attach(2)

        await read_back(new.volume, 0)
        assert {one.disk_id, two.disk_id} <= set((await spans_of(replicas))[-1].excluded)
        assert three.up

    run(43, scenario)


def test_several_spans_of_one_epoch_are_replayed() -> None:
    """Seals since the last checkpoint: each span is read to its end, from a copy that has it."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 1)
        old = await replicas.attach()
        written = 0
        for turn in range(6):
            await write(old.volume, *range(written, written + 7))
            written += 7
            node = owners_now(replicas, old)[turn % 3]
            node.kill()
            await write(old.volume, written)
            written += 1
            node.lose_power()
            node.up = True

        new = await replicas.attach(2)

        await read_back(new.volume, *range(written))

    run(44, scenario)


def test_a_closed_chunk_without_an_answer_is_unknown_not_damaged() -> None:
    """The only disks that have a closed chunk are away: an attach says so, and works later."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 1)
        old = await replicas.attach()
        await write(old.volume, 0)
        behind = owners_now(replicas, old)[0]
        behind.kill()
        await write(old.volume, 1, 2, 3)
        behind.up = True
        for node in replicas.nodes.values():
            if node is not behind:
                node.kill()

        with pytest.raises(Unavailable):
            await replicas.attach(2)

        for node in replicas.nodes.values():
            node.up = True
        new = await replicas.attach(3)
        await read_back(new.volume, 0, 1, 2, 3)

    run(45, scenario)


@pytest.mark.parametrize("copies", [1, 3])
def test_a_rotten_record_of_the_open_span_does_not_forbid_a_takeover(copies: int) -> None:
    """It was durable once, as later records say: what is behind it counts; the damaged block is
    an error and everything else is read."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(copies=copies)
        attachment = await replicas.attach()
        for number in range(6):
            await write(attachment.volume, number, flush=True)
        core = attachment.volume.core
        place = core.blocks.get(2)
        assert place is not None
        chunk = core.journal.chunk
        for node in replicas.owners(chunk, copies):
            slot = node.store.find(chunk)
            assert slot is not None
            at = slot.address + place[1] * 512 + 100
            node.disk.write(at, bytes([node.disk.read(at, 1)[0] ^ 1]))

        again = await replicas.attach(2)

        await read_back(again.volume, 0, 1, 3, 4, 5)
        with pytest.raises(Corruption):
            await again.volume.read(2 * BLOCK, BLOCK)

    run(46, scenario)


def test_disks_that_a_takeover_missed_are_used_when_they_are_back() -> None:
    """With one of three the log is read, but not written; it is when the others are there."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, 0, flush=True)
        replicas.nodes["a"].silent = replicas.nodes["b"].silent = True
        again = await replicas.attach(2)
        waiting = asyncio.ensure_future(write(again.volume, 1, flush=True))
        await not_done(waiting, 3)

        replicas.nodes["a"].silent = replicas.nodes["b"].silent = False

        async with asyncio.timeout(100):
            await waiting
        await read_back(again.volume, 0, 1)

    run(47, scenario, nodes="abc")


def test_a_ring_that_a_takeover_has_not_heard_of_is_fetched() -> None:
    """The picture of the cluster may lag behind the head of a volume."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        replicas.next_ring("b")
        await until(lambda: attachment.volume.resealer.rolls)
        await write(attachment.volume, 0, flush=True)
        view = replicas.view
        newest = view.ring
        view.set_head(RingHead(1))
        del view._rings[newest.version]

        async def fetch_ring(version: int) -> Ring:
            if version == newest.version:
                view._rings[version] = newest
            return view.ring_at(version)

        view.fetch_ring = fetch_ring  # type: ignore[method-assign]
        again = await replicas.attach(2)

        await read_back(again.volume, 0)

    run(48, scenario)


# --- deletions ------------------------------------------------------------------------------


def test_an_attach_forgets_no_chunk_that_a_disk_away_may_have() -> None:
    """What is not listed, as not everybody could be asked, still counts."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        await write(attachment.volume, *range(64), flush=True)
        await attachment.volume.checkpointer.write()
        await attachment.detach()
        replicas.nodes["a"].kill()
        chunks = replicas.pool().chunks_of((await replicas.catalog.get("one")).spec)

        _, whole = await chunks.survey(attachment.volume.core.spec.volume)
        await chunks.stop()
        replicas.nodes["a"].up = True
        chunks = replicas.pool().chunks_of((await replicas.catalog.get("one")).spec)
        listed, all_of_them = await chunks.survey(attachment.volume.core.spec.volume)

        assert (whole, all_of_them) == (False, True)
        assert len(listed) > 3
        await chunks.stop()

    run(50, scenario)


def test_deletions_reach_a_disk_that_was_away() -> None:
    """They are told again as long as the volume is attached."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(3, 2)
        attachment = await replicas.attach()
        volume = attachment.volume
        for _ in range(4):
            await write(volume, *range(32), flush=True)
        away = replicas.nodes["b"]
        away.kill()
        await write(volume, 33)
        await volume.checkpointer.write()
        await volume.checkpointer.delete_due(at_once=True)
        number = volume.core.spec.volume
        left = {chunk for node in replicas.nodes.values() if node is not away
                for chunk in node.store.chunks_of(number)}  # fmt: skip
        assert set(away.store.chunks_of(number)) - left

        away.up = True

        await until(lambda: not set(away.store.chunks_of(number)) - left)

    run(51, scenario)


def test_a_stray_is_deleted_wherever_it_lies() -> None:
    """Of a chunk that no span names nobody knows who had it: all disks are told."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create(copies=1)
        attachment = await replicas.attach()
        await write(attachment.volume, 0, flush=True)
        core = attachment.volume.core
        stray = ChunkId(core.spec.volume, core.epoch, 9, 77)
        owners = replicas.owners(stray, 1)
        other = next(node for node in replicas.nodes.values() if node not in owners)
        await other.chunks.open(stray, from_reserve=False)
        await attachment.detach()

        await replicas.attach(2)

        assert stray not in await other.chunks.list(core.spec.volume)

    run(41, scenario)
