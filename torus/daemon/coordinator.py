"""The coordinator: the one node of a cluster that changes the ring by itself.

Decides who it is (whoever holds a key under a lease), when it looks, and how a decision becomes
one compare-and-swap.  What is decided stands in `torus.daemon.coordinator_plan`.  Holding the
key is no safety: every change expects everything that it was decided from, the key included, so
that one who was paused and woke up changes nothing.

Implements docs/operations.md, "The coordinator".
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from torus import limits
from torus.clock import Clock
from torus.cluster.membership import Membership
from torus.daemon.coordinator_plan import Decision, Patience, Seen, Share, decide, look
from torus.daemon.leased_key import LeasedKey
from torus.errors import Corruption, TorusError, UnknownVersion
from torus.log import get_logger
from torus.metadata.base import Delete, Expect, Put
from torus.metadata.keys import COORDINATOR, MEMBERS, RING_HEAD, member_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Coordinator, Member, Node, RingHead

log = get_logger("torus.coordinator")


@dataclass(frozen=True, slots=True)
class Ground:
    """What a decision rests on, as it was read; changes expect it to be so still."""

    members: dict[str, Member]
    revisions: dict[str, int]  # of the members, by disk
    head: RingHead | None
    head_revision: int
    ring: tuple[Share, ...] | None


class Coordinating:
    """A node's candidacy, and the coordinator's work while it is elected."""

    def __init__(
        self,
        metadata: AsyncMetadata,
        clock: Clock,
        membership: Membership,
        node: Node,
        *,
        auto_out_s: float,
        settled: Callable[[], bool] = lambda: True,
    ) -> None:
        """``auto_out_s``: 0 never puts a disk out.  ``settled`` says that no data moves any
        more because of the ring that holds."""
        self._metadata = metadata
        self._clock = clock
        self._membership = membership
        self._patience = Patience(int(auto_out_s * 1e9))
        self.settled = settled
        mine = Coordinator(node.node_id, node.instance_id, node.host, clock.wall_ns())
        self._key = LeasedKey(
            metadata, clock, COORDINATOR, mine.to_bytes,
            ttl_s=limits.COORDINATOR_LEASE_S, is_mine=lambda value: _is_of(value, node),
            wait_s=limits.COORDINATOR_LEASE_S,
        )  # fmt: skip
        self._key.on_held = self._on_elected
        self._seen = Seen({}, {})
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.decision = Decision()

    @property
    def elected(self) -> bool:
        """Say whether this node is the coordinator, as far as it knows."""
        return self._key.held

    def start(self) -> None:
        """Be a candidate from now on."""
        self._membership.on_change.append(self._changed.set)
        self._key.start()
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Stop, and let another node be elected; idempotent."""
        task, self._task = self._task, None
        if task is not None:
            self._membership.on_change.remove(self._changed.set)
            task.cancel()
            await asyncio.wait([task])
        await self._key.close()

    def _on_elected(self, held: bool) -> None:
        log.info("coordinator.elected" if held else "coordinator.ended")
        self._seen = Seen({}, {})  # what an earlier coordinator saw go is seen going anew
        self._changed.set()

    async def _run(self) -> None:
        while True:
            try:
                if self.elected:
                    await self.step()
            except TorusError as exc:
                log.warning("coordinator.step.failed", error=str(exc))
            self._changed.clear()
            try:
                async with asyncio.timeout(limits.COORDINATOR_STEP_S):
                    await self._changed.wait()
            except TimeoutError:
                continue  # time alone may be a reason: somebody is gone for too long

    async def step(self) -> bool:
        """Look, decide and carry out; say whether something was changed.

        Reads the metadata only when what is followed says that there is something to do.

        Raises: Unavailable, Corruption.
        """
        if self._membership.away_since_ns is not None:
            self._seen = Seen({}, {})  # nobody can be seen to be gone
            return False
        head = self._membership.head
        ring = None if head is None else shares_of(self._membership.ring)
        followed = self._decide(dict(self._membership.members()), ring)
        if not _acts(followed, head):
            self.decision = followed
            return False
        ground = await self._read()
        self.decision = self._decide(ground.members, ground.ring)
        if not _acts(self.decision, ground.head):
            return False
        return await self._carry_out(self.decision, ground)

    def _decide(self, members: dict[str, Member], ring: tuple[Share, ...] | None) -> Decision:
        now_ns = self._clock.monotonic_ns()
        up = {disk for disk, place in self._membership.disks().items() if place.up}
        self._seen = look(self._seen, members, up, now_ns)
        return decide(members, ring, self._seen, now_ns, self._patience, settled=self.settled())

    async def _read(self) -> Ground:
        members, revisions = {}, {}
        for entry in (await self._metadata.list(MEMBERS)).entries:
            member = Member.from_bytes(entry.value, entry.key)
            members[member.disk_id], revisions[member.disk_id] = member, entry.revision
        entry_ = await self._metadata.get(RING_HEAD)
        if entry_ is None:
            return Ground(members, revisions, None, 0, None)
        head = RingHead.from_bytes(entry_.value, entry_.key)
        ring = await self._membership.fetch_ring(head.version)
        return Ground(members, revisions, head, entry_.revision, shares_of(ring))

    async def _carry_out(self, decision: Decision, ground: Ground) -> bool:
        """Make what was decided true in one commit; say whether it held.

        States of members go first: the ring that follows from them is the next step's.
        """
        expect = [Expect(COORDINATOR, self._key.revision), Expect(RING_HEAD, ground.head_revision)]
        changes: list[Put | Delete] = []
        now_ns = self._clock.wall_ns()
        for member in decision.members[: limits.METADATA_COMMIT_CHANGES_MAX // 2]:
            key = member_key(member.disk_id)
            expect.append(Expect(key, ground.revisions[member.disk_id]))
            changes.append(Put(key, replace(member, since_ns=now_ns).to_bytes()))
        if decision.members:
            done = await self._metadata.commit(expect, changes)
            self._tell(decision, None, held=done is not None)
            return done is not None
        head = ground.head
        version = None
        if decision.ring is not None:
            from torus.daemon.rings import next_version

            version = await asyncio.to_thread(
                next_version, None if head is None else self._membership.ring, decision.ring,
                decision.reason, now_ns,
            )  # fmt: skip
            changes.append(version.put)
            expect.append(Expect(version.put.key, 0))
        paused = head is not None and head.paused
        number = version.number if version is not None else (head.version if head else 0)
        new_head = RingHead(number, paused, decision.frozen)
        changes.append(Put(RING_HEAD, new_head.to_bytes()))
        done = await self._metadata.commit(expect, changes)
        self._tell(decision, number if version else None, held=done is not None)
        return done is not None

    def _tell(self, decision: Decision, version: int | None, *, held: bool) -> None:
        """Log what was done: these are rare, and an operator wants to know each."""
        if not held:
            log.info("coordinator.overtaken")
            return
        for member in decision.members:
            log.warning(
                "coordinator.member.changed", disk=member.disk_id, node=member.node_id,
                state=member.state, reason=member.reason,
            )  # fmt: skip
        if version is not None:
            log.info("coordinator.ring.changed", version=version, reason=decision.reason)
        if decision.frozen:
            log.error("coordinator.frozen", reason=decision.frozen)


def _acts(decision: Decision, head: RingHead | None) -> bool:
    """Tell whether a decision changes anything."""
    if decision.members or decision.ring is not None:
        return True
    return head is not None and decision.frozen != head.frozen


def _is_of(value: bytes, node: Node) -> bool:
    try:
        return Coordinator.from_bytes(value, COORDINATOR).instance_id == node.instance_id
    except (Corruption, UnknownVersion):
        return False


def shares_of(ring: object) -> tuple[Share, ...]:
    """Return the disks of a ring."""
    return tuple(
        sorted(Share(m.disk_id, m.node_id, m.zone, m.weight) for m in ring.members)  # type: ignore[attr-defined]
    )
