"""The coordinator: the one node of a cluster that changes the ring by itself.

Decides who it is (whoever holds a key under a lease), when it looks, and how a decision becomes
one compare-and-swap.  What is decided stands in `torus.daemon.coordinator_plan`.  Holding the
key is no safety: every change expects everything that it was decided from, the key included, so
that one who was paused and woke up changes nothing.

Implements docs/operations-cluster.md, "The coordinator".
"""

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass, replace

from torus import limits
from torus.clock import Clock
from torus.cluster.membership import Membership
from torus.daemon.coordinator_plan import Decision, Patience, Seen, Shares, decide, look, thawed
from torus.daemon.leased_key import LeasedKey
from torus.daemon.rings import is_frozen_by_operator
from torus.errors import Corruption, TorusError, UnknownVersion
from torus.log import get_logger
from torus.metadata.base import Expect, Put
from torus.metadata.keys import (
    COORDINATOR,
    MEMBERS,
    NEXT_VOLUME,
    RING_HEAD,
    VOLUMES,
    member_key,
    ring_key,
)
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Coordinator, Member, Node, RingHead, RingVersion
from torus.ring.builder import first_ring, next_ring, stages
from torus.ring.codec import pack
from torus.ring.table import Ring

log = get_logger("torus.coordinator")


@dataclass(frozen=True, slots=True)
class Ground:
    """What a decision rests on, as it was read; changes expect it to be so still."""

    members: dict[str, Member]
    revisions: dict[str, int]  # of the members, by disk
    head: RingHead | None
    head_revision: int
    ring: Ring | None


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
        self._done: tuple[int, Shares] | None = None  # version, and what it is final for
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
        membership = self._membership
        if membership.head is not None and is_frozen_by_operator(membership.head):
            self._seen = Seen({}, {})  # who is gone then has all its time when it ends
            self.decision = Decision(frozen=membership.head.frozen)
            return False
        followed = self._decide(
            dict(membership.members()), membership.ring if membership.has_ring else None
        )
        if not _acts(followed, membership.head):
            self.decision = followed
            return False
        ground = await self._read()
        self.decision = self._decide(ground.members, ground.ring)
        if not _acts(self.decision, ground.head):
            return False
        if self.decision.members:
            return await self._change_members(self.decision, ground)
        return await self._change_ring(self.decision, ground)

    def _decide(self, members: dict[str, Member], ring: Ring | None) -> Decision:
        now_ns = self._clock.monotonic_ns()
        up = {disk for disk, place in self._membership.disks().items() if place.up}
        self._seen = look(self._seen, members, up, now_ns)
        done = None
        if ring is not None and self._done is not None and self._done[0] == ring.version:
            done = self._done[1]
        decision = self._plan(members, ring, done, now_ns)
        if self.decision.frozen and not decision.frozen:
            self._seen = thawed(self._seen, now_ns)
            decision = self._plan(members, ring, done, now_ns)
        return decision

    def _plan(
        self, members: dict[str, Member], ring: Ring | None, done: Shares | None, now_ns: int
    ) -> Decision:
        return decide(
            members, None if ring is None else ring.members, self._seen, now_ns, self._patience,
            settled=self.settled(), done=done, wall_ns=self._clock.wall_ns(),
        )  # fmt: skip

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
        return Ground(members, revisions, head, entry_.revision, ring)

    async def _change_members(self, decision: Decision, ground: Ground) -> bool:
        """Store the new states of members in one commit; say whether it held.

        The ring that follows from them is the next step's.
        """
        expect = self._expect(ground)
        changes = []
        for member in decision.members[: limits.METADATA_COMMIT_CHANGES_MAX // 2]:
            key = member_key(member.disk_id)
            expect.append(Expect(key, ground.revisions[member.disk_id]))
            if member.state != ground.members[member.disk_id].state:
                member = replace(member, since_ns=self._clock.wall_ns())
            changes.append(Put(key, member.to_bytes()))
        if await self._metadata.commit(expect, changes) is None:
            return False
        for member in decision.members:
            log.warning(
                "coordinator.member.changed", disk=member.disk_id, node=member.node_id,
                state=member.state, reason=member.reason, up=not member.down_ns,
            )  # fmt: skip
        return True

    async def _change_ring(self, decision: Decision, ground: Ground) -> bool:
        """Publish the next version, or why there is none, in one commit; say whether it held."""
        head = ground.head or RingHead(0)
        following, unused = None, None
        if decision.ring is not None:
            unused = await self._unused()
            following = await asyncio.to_thread(
                _next, ground.ring, decision.ring, at_once=unused is not None
            )
        if following is None and decision.ring is not None:
            self._done = (head.version, decision.ring)
            if head.frozen == decision.frozen:
                return False
        expect = self._expect(ground) + ([] if unused is None else [unused])
        changes = []
        if following is not None:
            value = RingVersion(
                following.version, self._clock.wall_ns(), decision.reason,
                base64.b64encode(pack(following)).decode(),
            )  # fmt: skip
            key = ring_key(following.version)
            expect.append(Expect(key, 0))
            changes.append(Put(key, value.to_bytes()))
            head = replace(head, version=following.version)
        changes.append(Put(RING_HEAD, replace(head, frozen=decision.frozen).to_bytes()))
        if await self._metadata.commit(expect, changes) is None:
            return False
        if following is not None:
            log.info("coordinator.ring.changed", version=following.version, reason=decision.reason)
        if decision.frozen:
            log.error("coordinator.frozen", reason=decision.frozen)
        return True

    async def _unused(self) -> Expect | None:
        """Return what to expect so that there is no volume, None when there are some.

        Without data a change needs no steps.  Who makes a volume changes the expected key.
        """
        entry = await self._metadata.get(NEXT_VOLUME)
        if (await self._metadata.list(VOLUMES)).entries:
            return None
        return Expect(NEXT_VOLUME, 0 if entry is None else entry.revision)

    def _expect(self, ground: Ground) -> list[Expect]:
        """Return what a change by this coordinator expects: that it is one, and the same ring."""
        return [
            Expect(COORDINATOR, self._key.revision),
            Expect(RING_HEAD, ground.head_revision),
        ]


def _next(current: Ring | None, members: Shares, *, at_once: bool) -> Ring | None:
    """Return the version that follows; None: the present one is final."""
    if current is None:
        return first_ring(members)
    if at_once:
        steps = stages(current, members)
        return replace(steps[-1], version=current.version + 1) if steps else None
    following = next_ring(current, members)
    return None if following is current else following


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
