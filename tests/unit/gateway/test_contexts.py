"""Metadata contexts of an export: offered, selected, answered and given back."""

import asyncio
import struct
from collections.abc import Callable

import pytest

from torus.errors import DiskFailed, NotFound, Unavailable
from torus.limits import MIB, NBD_CONTEXTS_MAX
from torus.nbd import constants as nbd
from torus.testing.memory_export import MemoryExport
from torus.testing.nbd_client import BareClient, context_bytes, info_bytes

ALLOCATION = "base:allocation"
DEPTH = "qemu:allocation-depth"
CHANGED = "torus:changed-since:a"


def disk(**states: dict[int, int]) -> MemoryExport:
    """Return an export with these states beside base:allocation."""
    export = MemoryExport("disk", 8 * MIB)
    export.states = states or {DEPTH: {1: 1, 2: 3}, CHANGED: {2: 1}}
    return export


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until it is so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for signals nothing
            await asyncio.sleep(0)


async def listed(client: BareClient, *queries: str) -> list[tuple[int, str]]:
    found = await client.option(nbd.NBD_OPT_LIST_META_CONTEXT, context_bytes("disk", *queries))
    assert found[-1].kind == nbd.NBD_REP_ACK
    return [(int.from_bytes(r.payload[:4], "big"), r.payload[4:].decode()) for r in found[:-1]]


def test_contexts_are_listed_as_the_export_has_them(run, serving):
    """All, a namespace, or one; a listing opens nothing."""

    async def scenario() -> None:
        async with serving(disk()) as served:
            client = await BareClient.connect(served.path)
            client.say_flags()
            await client.option(nbd.NBD_OPT_STRUCTURED_REPLY)
            assert await listed(client) == [(0, ALLOCATION), (0, DEPTH), (0, CHANGED)]
            assert await listed(client, "torus:") == [(0, CHANGED)]
            assert await listed(client, "qemu:", "torus:changed-since:b") == [(0, DEPTH)]
            served.disk.states["torus:changed-since:b"] = {}
            assert len(await listed(client, "torus:")) == 2
            assert served.exports.open_counts == {"disk": 0}
            assert served.exports.open_contexts_count == 0
            await client.close()

    run(scenario)


@pytest.mark.parametrize("extended", [False, True])
def test_every_selected_context_answers(run, serving, extended):
    """Each with its own number and its own extents; those not selected stay silent."""

    async def scenario() -> None:
        async with serving(disk()) as served:
            client = await BareClient.go(
                served.path, contexts=(CHANGED, DEPTH, ALLOCATION), extended=extended
            )
            await client.ask(1, 4096, payload=b"x" * 8192)
            assert served.exports.open_contexts_count == 3
            reply = await client.ask(7, 0, 16384)
            assert reply.extents == {
                1: [(4096, 3), (8192, 0), (4096, 3)],
                2: [(4096, 0), (4096, 1), (4096, 3), (4096, 0)],
                3: [(8192, 0), (4096, 1), (4096, 0)],
            }
            reply = await client.ask(7, 4096, 12288, flags=nbd.NBD_CMD_FLAG_REQ_ONE)
            assert reply.extents == {1: [(8192, 0)], 2: [(4096, 1)], 3: [(4096, 0)]}
            other = await BareClient.go(served.path, contexts=(CHANGED,), extended=extended)
            assert (await other.ask(7, 0, 16384)).extents == {1: [(8192, 0), (4096, 1), (4096, 0)]}
            await client.close()
            await other.close()

    run(scenario)


def test_a_context_that_went_meanwhile_is_refused_at_go(run, serving):
    """GO says why; the connection lives on and can choose anew."""

    async def scenario() -> None:
        async with serving(disk()) as served:
            client = await BareClient.connect(served.path)
            client.say_flags()
            await client.option(nbd.NBD_OPT_STRUCTURED_REPLY)
            await client.option(nbd.NBD_OPT_SET_META_CONTEXT, context_bytes("disk", CHANGED))
            for failure, kind in (
                (NotFound("snapshot a is gone"), nbd.NBD_REP_ERR_UNKNOWN),
                (Unavailable("away"), nbd.NBD_REP_ERR_PLATFORM),
            ):
                served.exports.contexts_failure = failure
                (reply,) = await client.option(nbd.NBD_OPT_GO, info_bytes("disk"))
                assert (reply.kind, reply.payload.decode()) == (kind, str(failure))
            await client.option(nbd.NBD_OPT_SET_META_CONTEXT, context_bytes("disk"))
            assert (await client.option(nbd.NBD_OPT_GO, info_bytes("disk")))[-1].kind == 1
            assert (await client.ask(7, 0, 4096)).error == nbd.NBD_EINVAL
            await client.close()

    run(scenario)


def test_a_client_that_leaves_while_its_contexts_are_opened(run, serving):
    """They are given back when they come."""

    async def scenario() -> None:
        async with serving(disk()) as served:
            served.exports.contexts_gate = asyncio.Event()
            client = await BareClient.connect(served.path)
            client.say_flags()
            await client.option(nbd.NBD_OPT_STRUCTURED_REPLY)
            await client.option(nbd.NBD_OPT_SET_META_CONTEXT, context_bytes("disk", CHANGED))
            client.say_option(nbd.NBD_OPT_GO, info_bytes("disk"))
            await client.writer.drain()
            await until(lambda: served.exports.open_counts["disk"] == 1)
            await client.close()
            await until(lambda: served.server.stats.connections_open == 0)
            served.exports.contexts_gate.set()

    run(scenario)


def test_contexts_selected_for_another_export_are_not_opened(run, serving):
    """GO to another name forgets them."""

    async def scenario() -> None:
        async with serving(disk(), MemoryExport("other", MIB)) as served:
            client = await BareClient.connect(served.path)
            client.say_flags()
            await client.option(nbd.NBD_OPT_STRUCTURED_REPLY)
            await client.option(nbd.NBD_OPT_SET_META_CONTEXT, context_bytes("disk", CHANGED))
            assert (await client.option(nbd.NBD_OPT_GO, info_bytes("other")))[-1].kind == 1
            assert served.exports.open_contexts_count == 0
            assert (await client.ask(7, 0, 4096)).error == nbd.NBD_EINVAL
            await client.close()

    run(scenario)


def test_export_name_opens_what_was_selected(run, serving):
    """The oldest option begins a transmission too; a context that fails closes there."""

    async def scenario() -> None:
        async with serving(disk()) as served:
            for failure in (None, DiskFailed("planned")):
                served.exports.contexts_failure = failure
                client = await BareClient.connect(served.path)
                client.say_flags()
                await client.option(nbd.NBD_OPT_STRUCTURED_REPLY)
                await client.option(nbd.NBD_OPT_SET_META_CONTEXT, context_bytes("disk", CHANGED))
                client.say_option(nbd.NBD_OPT_EXPORT_NAME, b"disk")
                if failure is None:
                    await client.reader.readexactly(10)
                    assert served.exports.open_contexts_count == 1
                    assert 1 in (await client.ask(7, 0, 4096)).extents
                else:
                    assert await client.is_closed()
                await client.close()

    run(scenario)


def test_the_number_of_contexts_is_bounded(run, serving):
    """Any number is listed; one more than the bound cannot be selected."""

    async def scenario() -> None:
        names = [f"torus:changed-since:{number}" for number in range(1000)]
        async with serving(disk(**{name: {} for name in names})) as served:
            client = await BareClient.connect(served.path)
            client.say_flags()
            await client.option(nbd.NBD_OPT_STRUCTURED_REPLY)
            assert len(await listed(client)) == 1001
            for count in (NBD_CONTEXTS_MAX + 1, NBD_CONTEXTS_MAX):
                argument = context_bytes("disk", *names[:count])
                found = await client.option(nbd.NBD_OPT_SET_META_CONTEXT, argument)
                wanted = nbd.NBD_REP_ACK if count == NBD_CONTEXTS_MAX else nbd.NBD_REP_ERR_TOO_BIG
                assert found[-1].kind == wanted
            numbers = [struct.unpack(">I", reply.payload[:4])[0] for reply in found[:-1]]
            assert numbers == list(range(1, NBD_CONTEXTS_MAX + 1))
            await client.option(nbd.NBD_OPT_GO, info_bytes("disk"))
            assert len((await client.ask(7, 0, 8192)).extents) == NBD_CONTEXTS_MAX
            await client.close()

    run(scenario)
